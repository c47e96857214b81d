"""Fonts for pictures: which of the fonts at hand draw a text, and what to write where none does.

matplotlib brings DejaVu Sans, which knows Latin, Greek and Cyrillic but no Korean, Chinese or Japanese. It draws an
empty box for every other character. This file looks for further fonts, first among those of the system, then in Python
packages that carry one. A character that none of them has is spelled out, so that tokens can still be told apart.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

BASE_FAMILY = "DejaVu Sans"  # part of matplotlib itself
SYSTEM_FAMILIES = (
    *("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Nanum Gothic", "NanumBarunGothic", "Pretendard"),
    *("Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic", "Source Han Sans KR", "UnDotum", "Baekmuk Gulim"),
    *(
        "Noto Sans CJK JP",
        "Noto Sans CJK SC",
        "Noto Sans JP",
        "Noto Sans SC",
        "IPAexGothic",
        "Yu Gothic",
        "Hiragino Sans",
    ),
    *(
        "Microsoft YaHei",
        "PingFang SC",
        "PingFang HK",
        "WenQuanYi Zen Hei",
        "WenQuanYi Micro Hei",
        "Droid Sans Fallback",
    ),
    *("Noto Sans", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Hebrew"),
    *("Arial Unicode MS", "Segoe UI Symbol", "Noto Emoji", "Symbola"),
)
PACKAGED_FONTS = (("koreanize_matplotlib", "fonts/NanumGothic.ttf"), ("matplotlib_fontja", "fonts/ipaexg.ttf"))
VISIBLE = {"\n": "⏎", "\r": "⏎", "\t": "⇥", " ": "␣"}
MAX_CHARACTERS = 18


@dataclass(frozen=True)
class Lettering:
    """How to write a set of texts in a picture.

    Args:
        families: Names of the fonts to try for each character, in this order.
        undrawable: Characters of the texts that none of these fonts has.
    """

    families: tuple[str, ...]
    undrawable: frozenset[str] = frozenset()

    def label(self, token: str) -> str:
        r"""The token as a short label: white space visible, undrawable characters spelled out, long tokens cut.

        So are invisible characters, such as zero-width spaces, if there is nothing else to see.

        Example:
            >>> Lettering(("DejaVu Sans",)).label("an end\n")
            'an␣end⏎'
            >>> Lettering(("DejaVu Sans",), frozenset("나는")).label("▁나는")
            '▁‹na·neun›'
        """
        is_blank = all(character not in VISIBLE and _is_invisible(character) for character in token.lstrip("▁"))
        written = Lettering(self.families, frozenset(filter(_is_invisible, token))) if is_blank else self
        text = "".join(VISIBLE.get(character, character) for character in written.sentence(token)) or "∅"
        return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"

    def sentence(self, text: str) -> str:
        """The whole text with its undrawable characters spelled out."""
        parts = []
        for drawable, run in groupby(unicodedata.normalize("NFC", text), lambda it: it not in self.undrawable):
            characters = list(run)
            parts.append("".join(characters) if drawable else f"‹{'·'.join(map(_spell, characters))}›")
        return "".join(parts)


def lettering_for(texts: Iterable[str]) -> Lettering:
    """The fonts that draw these texts; says once in the log which characters none of them has.

    Args:
        texts: Everything that is to be written, tokens or sentences.

    Returns:
        Font names in the order in which to try them, and the characters that remain undrawable.
    """
    missing = {character for text in texts for character in unicodedata.normalize("NFC", text)} - set("\n\r\t ")
    families = [BASE_FAMILY]
    missing -= _characters_of(_base_path())
    if missing:
        for family, path in _fonts_at_hand():
            found = missing & _characters_of(path)
            if found:
                families.append(family)
                missing -= found
    if missing:
        _report("".join(sorted(missing)))
    return Lettering(tuple(families), frozenset(missing))


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Zs")


def _spell(character: str) -> str:
    """A name for one undrawable character: the sound of a Korean syllable, else its number in Unicode."""
    name = unicodedata.name(character, "")
    syllable = name.removeprefix("HANGUL SYLLABLE ")
    return syllable.lower() if syllable != name else f"U+{ord(character):04X}"


def _fonts_at_hand() -> list[tuple[str, str]]:
    """Names and files of the known fonts that this machine has, best first."""
    from matplotlib.font_manager import fontManager

    installed = {entry.name: entry.fname for entry in reversed(fontManager.ttflist)}
    fonts = [(family, installed[family]) for family in SYSTEM_FAMILIES if family in installed]
    return fonts + [(_register(path), path) for path in _packaged_paths()]


def _packaged_paths() -> list[str]:
    """Font files inside installed Python packages, found without importing the packages.

    Importing them would change matplotlib's settings for the whole process.
    """
    paths = []
    for package, file in PACKAGED_FONTS:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            paths.append(Path(folder) / file)
    return [str(path) for path in paths if path.is_file()]


def _register(path: str) -> str:
    """Makes a font file known to matplotlib under its name, once."""
    from matplotlib.font_manager import FontProperties, fontManager

    if all(entry.fname != path for entry in fontManager.ttflist):
        fontManager.addfont(path)
    return str(FontProperties(fname=path).get_name())


def _base_path() -> str:
    from matplotlib.font_manager import findfont

    return str(findfont(BASE_FAMILY))


@lru_cache(maxsize=64)
def _characters_of(path: str) -> frozenset[str]:
    """Every character that a font file can draw."""
    from matplotlib.ft2font import FT2Font

    charmap: dict[Any, Any] = FT2Font(path).get_charmap()
    return frozenset(map(chr, charmap))


@lru_cache(maxsize=256)
def _report(characters: str) -> None:
    """Warns about undrawable characters, once for the same ones."""
    shown = " ".join(character if character.isprintable() else _spell(character) for character in characters[:20])
    logger.warning(
        "no font on this machine draws %d of the characters (%s); they are spelled out in the pictures. "
        'Install a font for them: `pip install "lit-transformer[plot]"` brings a Korean one, '
        "`apt install fonts-noto-cjk` or https://fonts.google.com/noto has the others.",
        len(characters),
        shown,
    )
