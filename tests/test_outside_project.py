"""A stranger's project, trained through the command line: every seam of the README is really used."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from command_line import Finished, lit

from lit_transformer import Translator
from lit_transformer.callbacks import write_averaged_checkpoint

SEAMS = {  # the stranger's classes, and what each overrides
    "ScaledAttention": "attend",
    "ScaledTransformer": "build_attention",
    "ConfidentLoss": "forward",
    "ReversalCorpus": "read_row",
    "ReversalData": "build_batches",
    "SummedBatches": "cost",
    "LinearWarmdown": "scale",
    "MeanBeams": "penalty",
    "ExactMatch": "update",
}
NUM_ROWS, NUM_REJECTED = 120, 10


class Project(NamedTuple):
    """What there is after fit, test and predict."""

    folder: Path
    calls: Counter[str]
    fit: Finished
    test: Finished
    predict: Finished


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("stranger") / "project"
    shutil.copytree(Path(__file__).parent / "outside_project", folder, ignore=shutil.ignore_patterns("__pycache__"))
    write_rows(folder / "digits.jsonl")
    calls: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        import reversal

        for name, method in SEAMS.items():
            patch.setattr(getattr(reversal, name), method, counted(getattr(reversal, name), method, calls))
        done = [lit("fit", "--config", "config.yaml")]
        done += [lit(command, "--config", "run/config.yaml") for command in ("test", "predict")]
        yield Project(folder, calls, *done)


def write_rows(path: Path, count: int = NUM_ROWS - NUM_REJECTED) -> None:
    draw = random.Random(3)
    rows = [str(draw.randrange(10**size, 10 ** (size + 1))) for size in draw.choices(range(1, 5), k=count)]
    rows += [f"0{draw.randrange(1000)}" for _ in range(NUM_REJECTED)]
    path.write_text("".join(json.dumps({"digits": row}) + "\n" for row in rows))


def counted(owner: type, name: str, calls: Counter[str]) -> Callable[..., Any]:
    """The method itself, which also notes that it was called."""
    method = vars(owner)[name]  # it must be defined there, not inherited

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls[owner.__name__] += 1
        return method(*args, **kwargs)

    return counting


def logged(folder: Path) -> list[dict[str, str]]:
    """The rows of the training log that hold a loss, one for each step."""
    with (folder / "run" / "logs" / "version_0" / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def last_checkpoint(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / "run" / "checkpoints" / "step=60.ckpt", weights_only=True)
    return checkpoint


def test_the_journey_works(project: Project) -> None:
    for finished in (project.fit, project.test, project.predict):
        assert finished.status == 0, finished.err
    assert "test/bleu" in project.test.out
    assert "learn a copy" not in project.fit.err  # one column has both sides, which ReversalCorpus tells apart


@pytest.mark.parametrize("name", SEAMS)
def test_every_seam_is_called(project: Project, name: str) -> None:
    assert project.calls[name] > 0


def test_the_temperature_of_every_attention_was_trained(project: Project) -> None:
    temperatures = {
        name: value for name, value in last_checkpoint(project.folder)["state_dict"].items() if "temperature" in name
    }
    assert len(temperatures) == 3  # one layer on each side: two self-attentions, one over the source
    for value in temperatures.values():
        assert not torch.equal(value, torch.ones(2, 1, 1))


def test_the_checkpoint_names_the_network_of_the_stranger(project: Project) -> None:
    spec = last_checkpoint(project.folder)["hyper_parameters"]["network"]
    assert spec["class_path"].startswith("reversal.")
    assert spec["class_path"].endswith(".ScaledTransformer")


def test_the_loss_is_the_one_of_the_stranger(project: Project) -> None:
    for row in logged(project.folder):  # a token of probability p counts sqrt(1 - p) < 1 of its cross-entropy
        assert float(row["train/loss"]) < math.log(float(row["train/perplexity"]))


def test_rows_are_read_by_the_stranger(project: Project) -> None:
    assert f"{NUM_REJECTED} rejected" in project.fit.err
    lines = project.test.out.splitlines()
    source = next(line.split()[1:] for line in lines if line.strip().startswith("source"))
    reference = next(line.split()[1:] for line in lines if line.strip().startswith("reference"))
    assert source == reference[::-1]
    assert "".join(source) == json.loads((project.folder / "digits.jsonl").read_text().splitlines()[0])["digits"]


def test_the_rate_follows_the_schedule_of_the_stranger_and_no_other(project: Project) -> None:
    rates = [float(row["lr-AdamW"]) for row in rates_of(project.folder)]
    expected = [0.005 * (step / 20 if step < 20 else (60 - step) / 40) for step in range(1, 61)]
    assert rates == pytest.approx(expected)


def rates_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "run" / "logs" / "version_0" / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["lr-AdamW"]]


def test_the_score_of_the_stranger_is_logged(project: Project) -> None:
    assert "test/exact" in project.test.out


def test_predictions_are_those_of_the_search_of_the_stranger(project: Project) -> None:
    from reversal import MeanBeams, ReversalCorpus

    checkpoints = sorted((project.folder / "run" / "checkpoints").glob("*.ckpt"))
    write_averaged_checkpoint(checkpoints, project.folder / "mean.ckpt")
    translator = Translator.from_pretrained(project.folder / "mean.ckpt", search=MeanBeams(2, max_extra_length=2))
    sources = [pair.src for pair in ReversalCorpus(str(project.folder / "digits.jsonl"), "digits", max_rows=20)]
    assert (project.folder / "run" / "predictions.txt").read_text().splitlines() == translator(sources)


def test_training_helps(project: Project) -> None:
    losses = [float(row["train/loss"]) for row in logged(project.folder)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.slow
def test_the_network_of_the_stranger_learns_to_reverse(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    monkeypatch.syspath_prepend(str(project.folder))
    write_rows(project.folder / "many.jsonl", count=3000)
    options = {"trainer.max_steps": 2000, "trainer.val_check_interval": 1000, "checkpoint.every_n_train_steps": 100}
    options |= {"trainer.default_root_dir": "long", "trainer.callbacks.init_args.total_steps": 2000}
    options |= {"data.train.path": "many.jsonl"}
    fit = lit("fit", "--config", "config.yaml", *(f"--{key}={value}" for key, value in options.items()))
    assert fit.status == 0, fit.err
    seen = (project.folder / "many.jsonl").read_text()
    unseen = [number for number in map(str, range(13_579, 99_999, 777)) if f'"{number}"' not in seen]
    assert len(unseen) > 90
    translated = lit("translate", "long", stdin="".join(" ".join(number) + "\n" for number in unseen)).out.splitlines()
    right = sum(line.replace(" ", "") == number[::-1] for number, line in zip(unseen, translated, strict=True))
    assert right > 0.9 * len(unseen), translated
