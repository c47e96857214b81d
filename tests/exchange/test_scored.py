"""The card of a pushed model tells scores of its own weights only; scores are what ``test`` really wrote."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import lit
from tiny_run import sentences, write_pairs
from tiny_run import tiny_run as tiny_run

from lit_transformer import Translator
from lit_transformer.exchange import model_card
from lit_transformer.exchange.scored import why_not_of

NAME = "somebody/tiny"


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "a run"))


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cards that ``push`` would have uploaded."""
    written: list[str] = []

    def take(translator: Translator, name: str, scores: dict[str, Any], *_: object) -> str:
        written.append(model_card(translator, name, scores))
        return "address"

    monkeypatch.setattr("lit_transformer.exchange.push_to_hub", take)
    return written


def score(run: Path, checkpoint: Path, mean_of: int) -> Path:
    """Runs ``test`` as a user does; returns the file with the scores."""
    corpora = [
        {"path": str(write_pairs(run.parent / name, sentences(number, seed=number))), "src": "en", "tgt": "de"}
        for name, number in (("films", 4), ("talks", 2))
    ]
    finished = lit(
        "test", "--config", run / "config.yaml", "--ckpt_path", checkpoint, "--trainer.default_root_dir", run,
        "--data.test", json.dumps(corpora), "--data.val", "null",
        "--averaging.num_checkpoints", mean_of,
    )  # fmt: skip
    assert finished.status == 0, finished.err
    return run / "test.scores.json"


def pushed(*arguments: object) -> str:
    finished = lit("push", *arguments)
    assert (finished.status, finished.out) == (0, "address\n"), finished.err
    return finished.err


def test_scores_of_a_mean_go_with_the_mean(run: Path, cards: list[str]) -> None:
    scores = score(run, run / "checkpoints" / "step=150.ckpt", mean_of=3)
    said = pushed(run, NAME)
    assert said.count("\n") == 1
    assert "are of the mean of 3 checkpoints up to step 150" in said
    assert "## Scores" not in cards[-1]
    assert "model-index" not in cards[-1]

    command = said.split("run lit-transformer ")[1].split(" first,")[0]  # the message can be followed as it stands
    arguments = shlex.split(command)
    averaged = run.parent / arguments[-1]
    assert lit(*arguments[:-1], averaged).status == 0
    assert pushed(averaged, NAME, "--scores", scores) == ""
    assert "## Scores" in cards[-1]
    assert f"| bleu | {json.loads(scores.read_text())['scores']['bleu']['value']:.1f} |" in cards[-1]
    films = json.loads(scores.read_text())["corpora"][0]["scores"]
    values = " | ".join(f"{films[name]['value']:.1f}" for name in ("bleu", "chrf", "ter"))
    assert f"| corpus | sentences | bleu | chrf | ter |\n|---|---|---|---|---|\n| films | 4 | {values} |\n" in cards[-1]

    moved = run.rename(run.parent / "moved")  # names and steps are compared, not folders
    assert pushed(averaged, NAME, "--scores", moved / "test.scores.json") == ""
    assert "step 50" in pushed(moved / "checkpoints" / "step=50.ckpt", NAME, "--scores", moved / "test.scores.json")


def test_scores_of_one_checkpoint_are_left_out_once_training_went_on(run: Path, cards: list[str]) -> None:
    last = run / "checkpoints" / "step=150.ckpt"
    kept = last.rename(run.parent / "step=150.ckpt")
    for other in (run / "checkpoints").glob("last*.ckpt"):
        other.unlink()
    scores = score(run, run / "checkpoints" / "step=100.ckpt", mean_of=1)
    assert pushed(run, NAME) == ""
    assert "## Scores" in cards[-1]
    kept.rename(last)
    said = pushed(run, NAME)
    assert "are of step 100, not of step 150" in said
    assert said.count("\n") == 1
    assert "## Scores" not in cards[-1]

    found, translator = json.loads(scores.read_text()), Translator.from_pretrained(run)
    scored = Translator.from_pretrained(run / "checkpoints" / "step=100.ckpt").network
    norms = [sum(float(one.square().sum()) for one in of.parameters()) ** 0.5 for of in (scored, translator.network)]
    assert found["weights_norm"] == pytest.approx(norms[0])
    found["checkpoint"]["step"] = 150  # as if of another run with the same names
    assert "are of other weights than" in str(why_not_of(found, last, translator.network))
    found["weights_norm"] = norms[1]
    assert why_not_of(found, last, translator.network) is None
    other = {**found, "network": {**found["network"], "class_path": "lit_transformer.Other"}}
    assert "another network" in str(why_not_of(other, last, translator.network))
    assert "do not tell" in str(why_not_of({"scores": found["scores"]}, last, translator.network))
    folder = translator.save(run.parent / "exported")
    assert "has no step" in str(why_not_of(found, folder, translator.network))
