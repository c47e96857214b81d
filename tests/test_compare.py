"""The command that compares systems: its table, and its sentences about what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import lit

from lit_transformer.metrics import paired_bootstrap

REFERENCES = [
    f"the {animal} sat on the {thing} ." for animal in ("cat", "dog", "cow") for thing in ("mat", "bed", "Sofa")
]
FIRST = [line.replace("sat on", "is on") for line in REFERENCES]
BETTER = [*REFERENCES[:7], *FIRST[7:]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where one stands: with the output of two systems, the references, and files of scores in two runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    write("first.txt", FIRST)
    write("better.txt", BETTER)
    write("test.en", REFERENCES)
    for name, lines in (("first", FIRST), ("better", BETTER)):
        write_run(name, lines)
    return tmp_path


def write(name: str, lines: list[str]) -> None:
    Path(name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_run(name: str, lines: list[str], signature: str = "nrefs:1|case:lc|eff:no|tok:char|version:2") -> None:
    Path("runs", name).mkdir(parents=True, exist_ok=True)
    write(f"runs/{name}/test.hyp.txt", lines)
    write(f"runs/{name}/test.ref.txt", REFERENCES)
    content = {"hypotheses": "test.hyp.txt", "references": "test.ref.txt", "scores": {"bleu": {"signature": signature}}}
    Path(f"runs/{name}/test.scores.json").write_text(json.dumps(content))


def table(out: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line) for line in out.partition("\n\n")[0].splitlines()]


@pytest.mark.parametrize("names", [("first.txt", "better.txt"), ("first.txt", "better.txt", "first.txt.copy")])
def test_the_table_has_the_figures_of_the_library(folder: Path, names: tuple[str, ...]) -> None:
    write("first.txt.copy", FIRST)
    finished = lit("compare", *names, "--reference", "test.en", "--num_resamples", "200")
    assert (finished.status, finished.err) == (0, "")
    outputs = dict(zip(names, (FIRST, BETTER, FIRST), strict=False))
    found = paired_bootstrap(outputs, REFERENCES, num_resamples=200)
    head, *rows = table(finished.out)
    assert head == ["system", "BLEU (μ ± 95 %)", "p", "chrF (μ ± 95 %)", "p"]
    assert len(rows) == len(names)
    assert rows[0][0] == "first.txt (first)"
    for row, name in zip(rows[1:], names[1:], strict=True):
        cells = [name]
        for score in ("BLEU", "chrF"):
            one = found[score].systems[name]
            assert one.p_value is not None
            cells += [f"{one.score:.2f} ({one.mean:.2f} ± {one.half_width:.2f})"]
            cells += [f"{one.p_value:.4f}{' *' if one.p_value < 0.05 else ''}"]
        assert row == cells
    for score in ("BLEU", "chrF"):
        assert f"{score} {found[score].signature}" in finished.out
    assert "9 sentences" in finished.out


def test_files_of_scores_tell_references_and_settings(folder: Path) -> None:
    files = ("runs/first/test.scores.json", "runs/better/test.scores.json")
    stored = lit("compare", *files)
    given = lit("compare", "first.txt", "better.txt", "--reference", "test.en", "--tokenize", "char", "--lowercase")
    assert (stored.status, stored.err) == (0, "")
    assert [row[1:] for row in table(stored.out)] == [row[1:] for row in table(given.out)]
    assert "|case:lc|eff:no|tok:char|" in stored.out
    mixed = lit("compare", files[0], "better.txt", "--tokenize", "13a")  # one of them knows the references
    assert "|case:lc|eff:no|tok:13a|" in mixed.out  # each option replaces its own setting only


def test_the_seed_is_sacrebleus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "5")
    finished = lit("compare", "first.txt", "better.txt", "--reference", "test.en", "--num_resamples", "20")
    assert "|bs:20|seed:5|" in finished.out


@pytest.mark.usefixtures("without_mecab")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("first.txt better.txt", "give --reference FILE"),
        ("first.txt none.txt --reference test.en", "cannot open none.txt: No such file"),
        ("first.txt better.txt --reference none.en", "cannot open none.en: No such file"),
        ("first.txt short.txt --reference test.en", "short.txt has 8 lines, but there are 9 references"),
        ("first.txt empty.txt --reference test.en", "empty.txt is empty"),
        ("first.txt latin.txt --reference test.en", "latin.txt line 1 is not UTF-8"),
        ("first.txt first.txt --reference test.en", "a system is given twice"),
        ("first.txt better.txt --reference test.en --tokenize words", "tokenize must be one of"),
        ("first.txt better.txt --reference test.en --tokenize ko-mecab", "pip install sacrebleu[ko]"),
        ("runs/first/test.scores.json other.json", "other.json is not a file of scores"),
        ("runs/first/test.scores.json runs/zh/test.scores.json", "BLEU was not counted in the same way"),
        ("runs/first/test.scores.json runs/zh/test.scores.json --tokenize zh", "case:lc and case:mixed"),
        ("runs/first/test.scores.json runs/other/test.scores.json", "scored against different references"),
        (
            "runs/first/test.scores.json runs/moses/test.scores.json",
            "moses/test.scores.json has a BLEU of another",
        ),
        (
            "runs/first/test.scores.json runs/floor/test.scores.json",
            "floor/test.scores.json has a BLEU of another",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(folder: Path, arguments: str, words: str) -> None:
    write("short.txt", FIRST[:-1])
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes("Männer\n".encode("latin-1"))
    Path("other.json").write_text('{"hypotheses": "first.txt"}')
    write_run("zh", BETTER, "nrefs:1|case:mixed|eff:no|tok:zh|version:2")
    write_run("other", BETTER)
    write_run("moses", BETTER, "nrefs:1|case:lc|eff:no|tok:moses-de|smooth:exp|version:2|sacremoses:0.2.0")
    write_run("floor", BETTER, "nrefs:1|case:lc|eff:no|tok:char|smooth:floor[0.1]|version:2")
    write("runs/other/test.ref.txt", FIRST)
    finished = lit("compare", *arguments.split())
    assert finished.status == 1
    assert words in finished.err
    assert finished.err.count("\n") == 1
    assert finished.out == ""


def test_case_is_chosen_where_the_files_of_scores_disagree(folder: Path) -> None:
    write_run("mixed", BETTER, "nrefs:1|case:mixed|eff:no|tok:char|version:2")
    files = ("runs/first/test.scores.json", "runs/mixed/test.scores.json")
    for option, case in (("--lowercase", "lc"), ("--no-lowercase", "mixed")):
        finished = lit("compare", *files, option, "--num_resamples", "20")
        assert finished.status == 0, finished.err
        assert f"case:{case}|" in finished.out


def test_a_comparison_that_would_take_all_memory_is_refused(folder: Path) -> None:
    finished = lit("compare", "first.txt", "better.txt", "--reference", "test.en", "--num_resamples", "9000000000")
    assert finished.status == 1
    assert "--num_resamples 9000000000 of 9 lines would take 6480 GB of memory, more than there is" in finished.err


def test_one_system_is_no_comparison(folder: Path) -> None:
    finished = lit("compare", "first.txt", "--reference", "test.en")
    assert finished.status == 2
    assert "at least two systems" in finished.err
    misspelt = lit("compare", "first.txt", "better.txt", "--referense", "test.en")
    assert misspelt.status == 2
    assert "Did you mean 'reference'" in misspelt.err


def test_the_help_explains_every_option(folder: Path) -> None:
    page = lit("compare", "--help").out
    for word in ("SYSTEM", "--reference", "--tokenize", "--lowercase", "--num_resamples", "examples:", "scores.json"):
        assert word in page
