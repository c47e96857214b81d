"""The logs that are kept beside the results: all in the form in which Lightning writes them, as ``curves`` reads it."""

import csv
from pathlib import Path

import pytest

from lit_transformer.curves import read_curves

LOGS = sorted(path for path in Path(__file__).parent.glob("results/*/*.csv") if path.parent.name != "marian")


def test_there_are_logs() -> None:
    assert len(LOGS) > 10


@pytest.mark.parametrize("log", LOGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_steps_count_from_zero_as_lightning_counts_them(log: Path) -> None:
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    training = [int(row["step"]) for row in rows if row["train/loss"]]
    assert all((step + 1) % 50 == 0 for step in training)
    assert training == sorted(set(training)), "one training, whose steps go on"
    curves = read_curves(log)
    assert max(curves["train/loss"]) == training[-1] + 1
    assert min(curves["val/loss"]) > 1, "no scores of finished models among those of the training"
