"""Runs of ``lit-transformer fit`` that are killed, stopped or fail, and go on with ``--ckpt_path last``."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import write_digits

CONFIG = """\
seed_everything: 3
model:
  network: {num_layers: 1, d_model: 16, d_ff: 32, num_heads: 2, dropout: 0.1}
data:
  train: {path: train, src: en, tgt: de}
  val: {path: val, src: en, tgt: de}
  vocab_size: 300
  max_tokens: 128
  pool_size: 40
warmup: {warmup_steps: 4}
bleu: {every_n_validations: 0}
checkpoint: {every_n_train_steps: 3, save_top_k: -1}
trainer:
  accelerator: cpu
  max_steps: 40
  val_check_interval: 7
  log_every_n_steps: 1
  enable_progress_bar: false
  default_root_dir: run
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {save_dir: run, name: logs, flush_logs_every_n_steps: 1}
"""


def start(folder: Path, *options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "lit_transformer", "fit", "--config", "run.yaml", *map(str, options)]
    with (folder / "output.txt").open("a") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def finish(folder: Path, *options: object) -> None:
    assert start(folder, *options).wait(timeout=300) == 0, (folder / "output.txt").read_text()[-3000:]


def project(folder: Path) -> Path:
    folder.mkdir()
    write_digits(folder, train=150)
    (folder / "run.yaml").write_text(CONFIG)
    return folder


def losses(folder: Path) -> dict[int, str]:
    """The loss logged at each step, to the last digit; every restart must log the same where it repeats a step."""
    found: dict[int, str] = {}
    for path in sorted(folder.glob("run/logs/version_*/metrics.csv")):
        for row in csv.DictReader(path.read_text().splitlines()):
            if row.get("train/loss"):
                assert found.setdefault(int(row["step"]), row["train/loss"]) == row["train/loss"]
    return found


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"run/checkpoints/step={step}.ckpt", weights_only=True)["state_dict"]


def stop_after(folder: Path, running: subprocess.Popen, step: int, kind: signal.Signals, delay: float) -> int:
    """Sends a signal soon after the checkpoint of a step is there; returns the exit status."""
    deadline = time.monotonic() + 300
    while not (folder / f"run/checkpoints/step={step}.ckpt").exists():
        assert time.monotonic() < deadline, (folder / "output.txt").read_text()[-3000:]
        assert running.poll() is None, (folder / "output.txt").read_text()[-3000:]
        time.sleep(0.005)
    time.sleep(delay)
    running.send_signal(kind)
    return running.wait(timeout=60)


def newest(folder: Path) -> int:
    return max(
        int(path.stem.removeprefix("step=").split("-")[0]) for path in (folder / "run/checkpoints").glob("*.ckpt")
    )


def compare(whole: Path, broken: Path, steps: int) -> None:
    expected, found = losses(whole), losses(broken)
    assert len(expected) == steps
    assert found == {step: expected[step] for step in found}
    lost = expected.keys() - found.keys()  # killed after the checkpoint was written and before the loss was logged
    assert all((step + 1) % 3 == 0 for step in lost)
    assert newest(broken) == newest(whole) >= steps - 3
    one, other = weights(whole, newest(whole)), weights(broken, newest(whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def kill_and_compare(tmp_path: Path, workers: int, accumulate: int, kills: int) -> None:
    options = ["--data.num_workers", workers, "--trainer.accumulate_grad_batches", accumulate]
    whole, broken = project(tmp_path / "whole"), project(tmp_path / "broken")
    finish(whole, *options)
    draw = random.Random(f"{workers}/{accumulate}/{kills}")
    first = 0
    for number in range(kills):
        first += draw.choice([3, 6, 9]) if kills < 5 else 3 * (number % 2)  # some are killed before they get further
        resumed = ["--ckpt_path", "last"] if number else []
        running = start(broken, *options, *resumed)
        stop_after(broken, running, max(3, first), signal.SIGKILL, draw.random() * 0.1)
    finish(broken, *options, "--ckpt_path", "last")
    compare(whole, broken, 40)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (0, 2), (2, 1), (2, 2), (4, 1)])
def test_killed_runs_go_on_exactly(tmp_path, workers, accumulate):
    kill_and_compare(tmp_path, workers, accumulate, kills=2)


@pytest.mark.slow
@pytest.mark.skipif("LIT_TRANSFORMER_LONG_TESTS" not in os.environ, reason="takes half an hour")
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_kills_change_nothing(tmp_path, workers):
    kill_and_compare(tmp_path, workers, 2, kills=20)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_that_is_asked_to_end_writes_a_checkpoint_first(tmp_path, accumulate):
    options = ["--trainer.accumulate_grad_batches", accumulate, "--trainer.max_steps", 90]
    whole, broken = project(tmp_path / "whole"), project(tmp_path / "broken")
    finish(whole, *options)
    status = stop_after(broken, start(broken, *options), 6, signal.SIGTERM, 0.03)
    assert status == 128 + signal.SIGTERM
    assert 6 <= newest(broken) < 90
    assert "continue with --ckpt_path last" in (broken / "output.txt").read_text()
    finish(broken, *options, "--ckpt_path", "last")
    compare(whole, broken, 90)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 3])
def test_stops_in_finite_epochs_change_nothing(tmp_path, accumulate):
    """Each epoch ends with a group of batches that is not full; some stops fall into the first step after it."""
    options = ["--trainer.accumulate_grad_batches", accumulate, "--trainer.max_steps=-1", "--trainer.max_epochs=4"]
    options += ["--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=1"]
    options += ["--checkpoint.every_n_train_steps=1"]
    whole = project(tmp_path / "whole")
    finish(whole, *options)
    expected, last = losses(whole), newest(whole)
    per_epoch = last // 4
    for stop in (per_epoch, per_epoch + 1, 2 * per_epoch - 1, 3 * per_epoch + 1):
        broken = project(tmp_path / f"stopped_{stop}")
        finish(broken, *options, "--trainer.max_steps", stop)
        finish(broken, *options, "--ckpt_path", "last")
        assert losses(broken) == expected, stop
        one, other = weights(whole, last), weights(broken, last)
        assert all(torch.equal(one[name], other[name]) for name in one), stop


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path):
    whole, broken = project(tmp_path / "whole"), project(tmp_path / "broken")
    finish(whole)
    finish(broken, "--trainer.max_steps", 13)
    damaged = broken / "run/checkpoints/step=12.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    finish(broken, "--ckpt_path", "last")
    assert "step=12.ckpt" in (broken / "output.txt").read_text()
    compare(whole, broken, 40)
