"""The last step always has a checkpoint, from which training goes on as if it had not ended."""

import csv
from pathlib import Path

import pytest
import torch
from command_line import lit, tiny_project


def fit(folder: Path, *options: str) -> list[str]:
    """Runs in a folder of its own, and returns the names of the checkpoints there."""
    finished = lit("fit", "--config", folder.parent / "tiny.yaml", "--trainer.default_root_dir", folder, *options)
    assert finished.status == 0, finished.err
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def losses(folder: Path) -> dict[str, str]:
    logs = [log.read_text().splitlines() for log in folder.glob("logs/*/metrics.csv")]
    return {row["step"]: row["train/loss"] for log in logs for row in csv.DictReader(log) if row.get("train/loss")}


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_project(tmp_path)
    return tmp_path


@pytest.mark.parametrize("accumulate", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_last_step_is_resumed_and_scored(project: Path, accumulate: int) -> None:
    options = [f"--trainer.accumulate_grad_batches={accumulate}"]
    assert fit(project / "a", *options, "--trainer.max_steps=6") == ["step=4.ckpt", "step=6.ckpt"]
    config = ["--config", str(project / "a/config.yaml"), "--trainer.enable_progress_bar=false"]
    tested = lit("test", *config)
    assert "mean of 2 checkpoints" in tested.err
    assert "step=6.ckpt (step 6)" in tested.err
    assert fit(project / "a", *options, "--trainer.max_steps=9", "--ckpt_path=last") == [
        f"step={step}.ckpt" for step in (4, 6, 8, 9)
    ]
    assert fit(project / "b", *options, "--trainer.max_steps=9") == ["step=4.ckpt", "step=8.ckpt", "step=9.ckpt"]
    assert losses(project / "a") == losses(project / "b")
    one, other = weights(project / "a", "step=9.ckpt"), weights(project / "b", "step=9.ckpt")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_no_second_checkpoint_of_a_step(project: Path) -> None:
    assert fit(project / "a", "--trainer.max_steps=8") == ["step=4.ckpt", "step=8.ckpt"]


@pytest.mark.slow
def test_the_oldest_makes_room_for_the_last(project: Path) -> None:
    assert fit(project / "a", "--trainer.max_steps=10", "--checkpoint.save_top_k=2") == ["step=10.ckpt", "step=8.ckpt"]


@pytest.mark.slow
def test_training_by_epochs_ends_with_a_checkpoint_that_the_next_goes_on_from(project: Path) -> None:
    options = ["--trainer.max_steps=-1", "--checkpoint.every_n_train_steps=1000", "--trainer.check_val_every_n_epoch=1"]
    options += ["--trainer.val_check_interval=null"]
    (first,) = fit(project / "a", *options, "--trainer.max_epochs=1")
    both = fit(project / "a", *options, "--trainer.max_epochs=2", "--ckpt_path=last")
    (last,) = fit(project / "b", *options, "--trainer.max_epochs=2")
    assert both == sorted([first, last])
    assert losses(project / "a") == losses(project / "b")
    one, other = weights(project / "a", last), weights(project / "b", last)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_the_last_is_kept_beside_the_best(project: Path) -> None:
    best = [
        "--checkpoint.monitor=val/loss",
        "--checkpoint.mode=max",
        "--checkpoint.save_top_k=1",
    ]  # the worst, the first
    assert fit(project / "a", *best, "--trainer.max_steps=10") == ["step=10.ckpt", "step=4.ckpt"]
