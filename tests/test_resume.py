"""Runs of ``lit-transformer fit`` that are killed, stopped or fail, and go on with ``--ckpt_path last``."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import lit, write_digits

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
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, preexec_fn=heed_the_keyboard)


def heed_the_keyboard() -> None:
    """Also where a shell has started the tests in the background, which ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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
@pytest.mark.parametrize(("accumulate", "number"), [(1, signal.SIGTERM), (3, signal.SIGTERM), (3, signal.SIGINT)])
def test_a_run_that_is_asked_to_end_writes_a_checkpoint_first(tmp_path, accumulate, number):
    options = ["--trainer.accumulate_grad_batches", accumulate, "--trainer.max_steps", 90]
    whole, broken = project(tmp_path / "whole"), project(tmp_path / "broken")
    finish(whole, *options)
    status = stop_after(broken, start(broken, *options), 6, number, 0.03)
    assert status == 128 + number
    assert 6 <= newest(broken) < 90
    by = "SIGTERM" if number == signal.SIGTERM else "the keyboard"
    advice = "lit-transformer fit --config run/config.yaml --ckpt_path last"
    assert f"stopped by {by}; continue with {advice}" in (broken / "output.txt").read_text()
    finish(broken, *options, "--ckpt_path", "last")
    compare(whole, broken, 90)


EPOCHS = ["--trainer.max_steps=-1", "--trainer.max_epochs=4", "--trainer.val_check_interval=1.0"]
EPOCHS += ["--trainer.check_val_every_n_epoch=1"]
EACH_STEP = ["--checkpoint.every_n_train_steps=1"]
EACH_EPOCH = ["--checkpoint.every_n_epochs=1", "--checkpoint.every_n_train_steps=null"]
BEST = ["--checkpoint.monitor=val/loss", "--checkpoint.mode=min"]
BREAK = """\
from lightning.pytorch import Callback

class Break(Callback):
    def __init__(self, batch: int = -1, validation: int = -1):
        self.left, self.validation = batch, validation

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.left:
            raise KeyError("broken on purpose")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == self.validation:
            raise KeyError("broken on purpose")
"""


def fit_here(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    """As ``finish``, in this process: much faster."""
    monkeypatch.chdir(folder)
    finished = lit("fit", "--config", "run.yaml", *options)
    assert finished.status == 0, finished.err[-3000:]


def batches_and_steps(folder: Path, accumulate: int) -> tuple[int, int]:
    """How many batches an epoch of the test corpus has, and how many steps."""
    last = newest(folder)
    loops = torch.load(folder / f"run/checkpoints/step={last}.ckpt", weights_only=True)["loops"]
    batches = loops["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] // 4
    assert batches % 3 == 2  # or no group of batches would be cut short by the end of an epoch
    assert last == 4 * -(-batches // accumulate)
    return batches, last // 4


def check_equal(whole: Path, broken: Path) -> None:
    expected, found, last = losses(whole), losses(broken), newest(whole)
    assert found == {step: expected[step] for step in found}
    assert newest(broken) == last
    one, other = weights(whole, last), weights(broken, last)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_every_checkpoint_of_finite_epochs_can_be_resumed(tmp_path, monkeypatch, accumulate):
    """With 3, each epoch ends with a group of batches that is not full."""
    options = [*EPOCHS, *EACH_STEP, "--trainer.accumulate_grad_batches", accumulate]
    whole = project(tmp_path / "whole")
    fit_here(whole, monkeypatch, *options)
    _, steps = batches_and_steps(whole, accumulate)
    for step in (steps - 1, steps, steps + 1, 3 * steps):
        broken = project(tmp_path / f"from_{step}")
        (broken / "run/checkpoints").mkdir(parents=True)
        shutil.copy(whole / "run/tokenizer.json", broken / "run")
        shutil.copy(whole / f"run/checkpoints/step={step}.ckpt", broken / "run/checkpoints")
        fit_here(broken, monkeypatch, *options, "--ckpt_path", "last")
        assert min(losses(broken)) == step
        check_equal(whole, broken)


@pytest.mark.parametrize("rhythm", [EACH_STEP, EACH_EPOCH, BEST], ids=["steps", "epochs", "validation"])
def test_failures_around_the_end_of_an_epoch_change_nothing(tmp_path, monkeypatch, rhythm):
    options = [*EPOCHS, *rhythm, "--trainer.accumulate_grad_batches=3"]
    whole, *broken = (project(tmp_path / name) for name in ("whole", "in_validation", "first_batch", "second_step"))
    fit_here(whole, monkeypatch, *options)
    batches, steps = batches_and_steps(whole, 3)
    places = [{"validation": steps}, {"batch": batches}, {"batch": 2 * batches + 4}]
    for folder, place in zip(broken, places, strict=True):
        (folder / "break_here.py").write_text(BREAK)
        monkeypatch.chdir(folder)
        callback = json.dumps([{"class_path": "break_here.Break", "init_args": place}])
        with pytest.raises(KeyError, match="on purpose"):
            lit("fit", "--config", "run.yaml", *options, "--trainer.callbacks", callback)
        fit_here(folder, monkeypatch, *options, "--ckpt_path", "last")
        check_equal(whole, folder)


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
