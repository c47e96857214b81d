"""Texts that are written from right to left, in lines that are read from left to right."""

from __future__ import annotations

import unicodedata

_MARK = "\u200e"  # invisible; reads as a letter of a left-to-right script


def pointing(source: str, target: str) -> str:
    """``source → target``, so that the arrow points at the target whatever the two are written in.

    Renderers turn a line around whose texts are Arabic or Hebrew, but not the arrow. Invisible marks beside the arrow
    hold the line's direction; other texts get none.

    Example:
        >>> pointing("I love cats", "나는 고양이를 좋아해"), pointing("", "cats")
        ('I love cats → 나는 고양이를 좋아해', '→ cats')
    """
    if not any(unicodedata.bidirectional(character) in ("R", "AL") for character in source + target):
        return f"{source} → {target}".lstrip()
    return f"{_MARK}{source} {_MARK}→{_MARK} {target}" if source else f"{_MARK}→ {target}"
