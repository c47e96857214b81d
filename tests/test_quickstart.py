"""The quickstart: one command that trains, scores, translates and draws, and says what it did."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from command_line import Finished, lit

from lit_transformer import quickstart
from lit_transformer.interfaces import InputError


@pytest.fixture
def in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of the quickstart with less text and a narrower network."""
    content = yaml.safe_load(quickstart.config_file("quickstart.yaml").read_text(encoding="utf-8"))
    for part, rows in (("train", 300), ("val", 6), ("test", 6)):
        content["data"][part]["init_args"]["max_rows"] = rows
    content["model"]["network"] |= {"num_layers": 1, "d_model": 16, "d_ff": 32}
    content["data"]["vocab_size"] = 600
    content["bleu"] = {"max_extra_length": 2, "beam_size": 1}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "config_file", lambda name: tmp_path / "small.yaml")
    return tmp_path


def check_journey(finished: Finished, folder: Path) -> None:
    assert finished.status == 0, finished.err
    shown = [line.removeprefix("$ lit-transformer ") for line in finished.out.splitlines() if line.startswith("$ ")]
    assert [line.split()[0] for line in shown] == ["fit", "test", "translate", "attention"]
    assert all(str(folder) in line for line in shown)
    assert "test/bleu" in finished.out
    assert "reference    나는 고양이를 좋아해" in finished.out  # the first test sentence is shown
    after = finished.out.partition("$ lit-transformer translate")[2].partition("$ lit-transformer attention")[0]
    assert len(after.strip("\n").splitlines()) == 1 + len(quickstart.SENTENCES)
    for name in ("attention.html", "config.yaml", "tokenizer.json"):
        assert (folder / name).stat().st_size > 0
    assert str(folder / "attention.html") in finished.out
    assert str(folder / "attention.html") in finished.err
    assert "lit-transformer translate" in finished.err
    assert "own_files.yaml" in finished.err
    for noise in ("Warning", "Traceback", "💡"):
        assert noise not in finished.err


def test_the_quickstart_in_small(in_small: Path) -> None:
    check_journey(lit("quickstart", "--max_steps", "2", "--output", "here"), Path("here"))


@pytest.mark.slow
def test_it_can_be_repeated_in_the_same_folder(in_small: Path) -> None:
    for _ in range(2):
        assert lit("quickstart", "--max_steps", "1", "--output", "here").status == 0
    assert [path.name for path in Path("here/checkpoints").iterdir()] == ["step=1.ckpt"]


@pytest.mark.slow
def test_the_quickstart_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_journey(lit("quickstart", "--max_steps", "2"), Path("runs/quickstart"))


def test_another_run_is_not_overwritten(in_small: Path) -> None:
    kept = in_small / "base" / "checkpoints" / "step=9.ckpt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    for config in (None, "data: {train: {path: mine}}\n"):
        if config:
            (in_small / "base" / "config.yaml").write_text(config)
        finished = lit("quickstart", "--output", "base")
        assert finished.status == 1
        assert "base holds a run that is no quickstart, which would be lost: name another --output" in finished.err
        assert kept.exists()


def test_the_extra_of_its_last_step_is_asked_for_first(in_small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    finished = lit("quickstart", "--max_steps", "1", "--output", "here")
    assert finished.status == 1
    assert finished.err.endswith('pip install "lit-transformer[plot]"\n')
    assert finished.err.count("\n") == 1
    assert not Path("here").exists()


@pytest.mark.parametrize("wrong", ["--max_step", "--ouput"])
def test_a_misspelt_option_names_the_right_one(wrong: str) -> None:
    finished = lit("quickstart", wrong, "3")
    assert finished.status == 2
    assert "Did you mean 'max_steps'" in finished.err or "Did you mean 'output'" in finished.err


@pytest.mark.parametrize("steps", ["0", "-1", "two"])
def test_a_number_of_steps_that_makes_no_sense(steps: str) -> None:
    finished = lit("quickstart", "--max_steps", steps)
    assert finished.status == 2
    assert "--max_steps" in finished.err
    assert steps in finished.err


def test_the_help_says_what_will_happen() -> None:
    page = lit("quickstart", "--help").out
    for words in ("teaching corpus", "--output", "--max_steps", "minutes"):
        assert words in page


def test_a_configuration_that_is_not_installed() -> None:
    with pytest.raises(InputError, match=r"nothing\.yaml is not installed"):
        quickstart.config_file("nothing.yaml")
