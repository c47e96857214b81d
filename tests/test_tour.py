"""The guided tour is true: its snippets print what the pages show, both pages hold the same, names and files exist."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import lit

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "lit_transformer" / "tour"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TOUR.glob("*.md"))}
NUMBER = re.compile(r"-?\d+\.\d*")
PAPER = {"0.1", "0.6", "0.9", "0.98", "28.4"}  # decimals that the text takes from the paper, not from an output
SECTIONS = {"3.1", "3.2", "3.3", "3.4", "3.5", "5.1", "5.3", "5.4", "6.1"}


def steps(page: str) -> list[tuple[str, str]]:
    """Each Python snippet with the output that is shown below it."""
    return re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", page, re.S | re.M)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.S | re.M)


def prose(page: str) -> str:
    """The page without its blocks of code and its links' addresses."""
    return re.sub(r"^```.*?^```$|\]\([^)]*\)", " ", page, flags=re.S | re.M)


def commands(page: str) -> list[list[str]]:
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to write pictures into, from which the paths of the pages can be reached."""
    for name in ("lit_transformer", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.set_printoptions(profile="default")


def assert_agree(printed: str, shown: str) -> None:
    """The same text; numbers may differ by one in their last digit, as they do between processors."""
    assert _without_numbers(printed) == _without_numbers(shown), f"printed:\n{printed}\nshown:\n{shown}"
    for ours, theirs in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        unit = 10.0 ** -len(theirs.partition(".")[2])
        assert float(ours) == pytest.approx(float(theirs), abs=1.01 * unit), f"printed:\n{printed}\nshown:\n{shown}"


def _without_numbers(text: str) -> str:
    return "".join(NUMBER.sub("#", text).split())


def test_both_languages_are_there() -> None:
    assert set(PAGES) == {"en", "ko"}


def test_the_comparison_sees_a_wrong_output() -> None:
    assert_agree("[0.51, -0.00]", "[0.52,  0.00]")
    for printed, shown in (("0.5", "0.7"), ("0.50", "0.52"), ("True", "False"), ("0.5 1.0", "0.5"), ("고양이", "개")):
        with pytest.raises(AssertionError):
            assert_agree(printed, shown)


def test_every_snippet_prints_what_is_shown(workplace: Path) -> None:
    names: dict[str, Any] = {"__name__": "tour"}
    for code, shown in steps(PAGES["en"]):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "tour/en.md", "exec"), names)
        assert_agree(out.getvalue(), shown)


def test_both_pages_hold_the_same_snippets_outputs_commands_and_pictures() -> None:
    english, korean = PAGES["en"], PAGES["ko"]
    assert steps(english) == steps(korean)
    for page in (english, korean):
        assert len(steps(page)) == len(blocks(page, "python")) == len(blocks(page, "text")) >= 15
        assert page.count("```") == 2 * sum(len(blocks(page, kind)) for kind in ("python", "text", "bash", "math"))
    for kind in ("bash", "math"):
        assert blocks(english, kind) == blocks(korean, kind) != []
    assert re.findall(r"^(#+) ", english, re.M) == re.findall(r"^(#+) ", korean, re.M)
    for pattern in (r"!\[[^\]]+\]\(([^)]+)\)", r"\]\((\.\./[^)]+)\)", r"^\|.*`(\w+)`.*\|$"):
        assert re.findall(pattern, english, re.S | re.M) == re.findall(pattern, korean, re.S | re.M)


def test_snippets_are_short() -> None:
    for code in blocks(PAGES["en"], "python"):
        assert len(code.splitlines()) <= 14, code


@pytest.mark.parametrize("lang", PAGES)
def test_every_picture_is_linked_and_all_of_them_are_small(lang: str) -> None:
    linked = set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGES[lang]))
    assert linked == {path.name for path in TOUR.glob("*.png")}
    assert sum((TOUR / name).stat().st_size for name in linked) < 1_000_000


def test_snippets_and_commands_make_the_pictures(workplace: Path) -> None:
    page = PAGES["en"]
    made = set(re.findall(r'savefig\("([^"]+)"\)', page))
    for program, name, *options in commands(page):
        assert program == "lit-transformer"
        if name == "attention":
            finished = lit(name, *options)
            assert finished.status == 0, finished.err
            made |= set(finished.out.split())
        elif name == "curves":
            made.add("curves.png")
    assert set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)) <= made


@pytest.mark.parametrize("lang", PAGES)
def test_links_lead_somewhere(lang: str) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", PAGES[lang]):
        assert (TOUR / target).exists(), target


@pytest.mark.parametrize("lang", PAGES)
def test_the_classes_of_the_map_are_in_their_files(lang: str) -> None:
    rows = re.findall(r"^\|.*\| (`.*`) \| \[.*\]\((\.\./.*)\.py\) \|$", PAGES[lang], re.M)
    assert len(rows) >= 8
    for names, file in rows:
        module = importlib.import_module("lit_transformer." + file.removeprefix("../").replace("/", "."))
        for name in re.findall(r"`(\w+)`", names):
            assert getattr(module, name).__module__ == module.__name__


@pytest.mark.parametrize("lang", PAGES)
def test_decimals_in_the_text_stand_in_an_output(lang: str) -> None:
    page = PAGES[lang]
    shown = {number.lstrip("-") for _, output in steps(page) for number in NUMBER.findall(output)}
    quoted = set(re.findall(r"(?<![\w.])\d+\.\d+(?!\.?\d)", prose(page)))
    assert len(quoted & shown) >= 8
    assert quoted <= shown | PAPER | SECTIONS


def test_the_readme_links_both_pages() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for lang in PAGES:
        assert f"](lit_transformer/tour/{lang}.md)" in readme
