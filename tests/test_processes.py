"""Runs of the command line in two processes: each sentence once, resume on another number, the same scores."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from command_line import write_digits
from tiny_run import sentences, train, write_pairs

from lit_transformer import Translator

SENTENCES = 149  # a prime number: nothing divides it
CONFIG = """\
seed_everything: 3
model:
  network: {num_layers: 1, d_model: 16, d_ff: 32, num_heads: 2, dropout: 0.1}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.003, eps: 0.0001}}
data:
  train: {path: train, src: en, tgt: de}
  val: {path: val, src: en, tgt: de}
  vocab_size: 300
  max_tokens: 128
  eval_max_tokens: 64
  max_length: 64
  pool_size: 40
warmup: {warmup_steps: 4}
bleu: {beam_size: 2, max_extra_length: 2}
checkpoint: {every_n_train_steps: 100}
trainer:
  accelerator: cpu
  max_steps: 15
  val_check_interval: 4
  log_every_n_steps: 1
  enable_progress_bar: false
  default_root_dir: run
  callbacks: [{class_path: spy.Spy}]
"""
SPY = """\
import json
from lightning.pytorch import Callback

class Spy(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        decode = trainer.datamodule.tokenizer.decode
        texts = [decode(row) for row in batch.tgt.tolist()] if batch.num_labels else []
        with open(f"seen.{trainer.global_rank}", "a") as file:
            file.write(json.dumps([trainer.fit_loop.total_batch_idx, trainer.global_rank, texts]) + "\\n")
"""
DDP = ["--trainer.strategy", "ddp", "--trainer.devices", 2]
FSDP = [
    "--trainer.strategy",
    '{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", '
    '"init_args": {"save_distributed_checkpoint": false}}',
    "--trainer.devices",
    2,
]
EXACT = ["--model.network.dropout", 0]  # dropout differs between processes
LAST = ["--ckpt_path", "last"]


def run(folder: Path, command: str, *options: object) -> str:
    call = [sys.executable, "-m", "lit_transformer", command, *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def project(folder: Path) -> Path:
    folder.mkdir()
    write_digits(folder, train=SENTENCES, held_out=13)
    (folder / "run.yaml").write_text(CONFIG)
    (folder / "spy.py").write_text(SPY)
    return folder


def fit(folder: Path, *options: object) -> None:
    run(folder, "fit", "--config", "run.yaml", *options)


def seen(folder: Path) -> list[str]:
    """The target sentences in the order of the global sequence: by batch, then by process."""
    records = [json.loads(line) for path in folder.glob("seen.*") for line in path.read_text().splitlines()]
    order = {(batch, rank): texts for batch, rank, texts in records}
    assert len(order) == len(records)
    return [text for key in sorted(order) for text in order[key]]


def check_epochs(folder: Path, at_least: int) -> None:
    """Each block of as many sentences as the corpus has is the corpus; the last, cut off block repeats none."""
    sentences, corpus = seen(folder), Counter((folder / "train.de").read_text().splitlines())
    blocks = [Counter(sentences[start : start + SENTENCES]) for start in range(0, len(sentences), SENTENCES)]
    assert len(blocks) > at_least
    assert all(block == corpus for block in blocks[:-1])
    assert blocks[-1] <= corpus


def logged(folder: Path, name: str) -> dict[int, str]:
    """What was logged at each step, to the last digit; every restart must log the same where it repeats a step."""
    found: dict[int, str] = {}
    for path in sorted(folder.glob("run/logs/version_*/metrics.csv")):
        for row in csv.DictReader(path.read_text().splitlines()):
            if row.get(name):
                assert found.setdefault(int(row["step"]), row[name]) == row[name]
    return found


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"run/checkpoints/step={step}.ckpt", weights_only=True)["state_dict"]


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[name], other[name], atol=3e-5) for name in one)


def numbers(values: dict[int, str]) -> dict[int, float]:
    return {step: float(value) for step, value in values.items()}


def test_two_processes_see_each_sentence_once(tmp_path: Path) -> None:
    folder = project(tmp_path / "run")
    fit(folder, *DDP, "--trainer.max_steps", 5, "--trainer.limit_val_batches", 0)
    assert {path.name for path in folder.glob("seen.*")} == {"seen.0", "seen.1"}
    check_epochs(folder, at_least=1)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_one_pass_ends_with_every_sentence(tmp_path: Path, lanes: int) -> None:
    folder = project(tmp_path / "run")
    fit(folder, *DDP, "--trainer.max_steps=-1", "--trainer.max_epochs=1", "--data.num_lanes", lanes)
    assert Counter(seen(folder)) == Counter((folder / "train.de").read_text().splitlines())
    counts = [len((folder / f"seen.{rank}").read_text().splitlines()) for rank in (0, 1)]
    assert counts[0] == counts[1]  # a process without a sentence takes part in the step


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_a_resumed_run_repeats_itself(tmp_path: Path, strategy: list[object]) -> None:
    whole, broken = project(tmp_path / "whole"), project(tmp_path / "broken")
    fit(whole, *strategy)
    fit(broken, *strategy, "--trainer.max_steps", 5)
    shutil.copytree(broken, tmp_path / "other")
    fit(broken, *strategy, *LAST)
    for name in ("train/loss", "val/loss", "val/chrf"):
        assert logged(broken, name) == logged(whole, name)
    one, two = weights(whole, 15), weights(broken, 15)
    assert all(torch.equal(one[name], two[name]) for name in one)
    check_epochs(broken, at_least=3)
    changed = tmp_path / "other"
    fit(changed, "--trainer.max_steps", 10, *LAST)  # one process
    fit(changed, *strategy, *LAST)
    check_epochs(changed, at_least=2)
    assert len(logged(changed, "train/loss")) == 15


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [DDP, FSDP], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("asked", ["parent", "all", "keyboard"])
def test_asked_to_end_they_write_a_checkpoint_first(tmp_path: Path, strategy: list[object], asked: str) -> None:
    """A scheduler asks the process that it started, or all of its group; the keyboard interrupts the group."""
    whole, broken = project(tmp_path / "whole"), project(tmp_path / "broken")
    options = [*strategy, "--trainer.max_steps", 60, "--checkpoint.every_n_train_steps", 5]
    fit(whole, *options)
    call = [sys.executable, "-m", "lit_transformer", "fit", "--config", "run.yaml", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = broken / "output.txt"
    with output.open("w") as log:
        running = subprocess.Popen(call, cwd=broken, env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(broken.glob("run/checkpoints/*.ckpt")):
        assert running.poll() is None, output.read_text()[-3000:]
        assert time.monotonic() < deadline, output.read_text()[-3000:]
        time.sleep(0.01)
    if asked == "parent":
        running.send_signal(signal.SIGTERM)
    else:
        os.killpg(running.pid, signal.SIGTERM if asked == "all" else signal.SIGINT)
    status = 128 + (signal.SIGINT if asked == "keyboard" else signal.SIGTERM)
    assert running.wait(timeout=120) == status, output.read_text()[-3000:]
    assert "--ckpt_path last" in output.read_text()
    assert "Traceback" not in output.read_text()
    steps = [int(path.stem.removeprefix("step=")) for path in broken.glob("run/checkpoints/*.ckpt")]
    assert max(steps) < 60
    fit(broken, *options, *LAST)
    assert logged(broken, "train/loss") == logged(whole, "train/loss")
    one, two = weights(whole, 60), weights(broken, 60)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_strategies_train_the_same_network(tmp_path: Path) -> None:
    alone, copies, shards = (project(tmp_path / name) for name in ("alone", "copies", "shards"))
    clip = ["--trainer.gradient_clip_val", 0.5]
    fit(alone, *EXACT, *clip, "--trainer.accumulate_grad_batches", 2, "--trainer.val_check_interval", 8)
    fit(copies, *EXACT, *clip, *DDP)
    fit(shards, *EXACT, *clip, *FSDP)
    assert seen(alone) == seen(copies) == seen(shards)
    for name in ("train/loss", "val/loss"):
        expected = pytest.approx(numbers(logged(alone, name)), rel=1e-5)
        assert numbers(logged(copies, name)) == expected
        assert numbers(logged(shards, name)) == expected
    assert close(weights(copies, 15), weights(alone, 15))
    assert close(weights(shards, 15), weights(alone, 15))
    tied = weights(shards, 15)
    names = ["network.src_embedding.weight", "network.tgt_embedding.weight", "network.projection.weight"]
    assert {tied[name].data_ptr() for name in names} == {tied[names[0]].data_ptr()}
    translator = Translator.from_pretrained(shards / "run/checkpoints/step=15.ckpt")
    assert isinstance(translator(["a b c"])[0], str)
    fit(shards, *EXACT, *clip, *LAST, "--trainer.max_steps", 16)  # one process reads what two have sharded


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that translates well but not perfectly, with text of a prime number of sentences."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder)
    write_pairs(folder / "test", sentences(37, 5, longest=9))
    return folder


def scores(folder: Path) -> dict[str, str]:
    """What ``test`` logged, to the last digit."""
    newest = max(folder.glob("run/logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    return next(row for row in csv.DictReader(newest.read_text().splitlines()) if row.get("test/bleu"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [DDP, FSDP], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("count", [37, 1], ids=["many", "one_sentence"])
def test_scores_and_translations_are_those_of_one_process(trained: Path, strategy: list[object], count: int) -> None:
    several = ", {path: val, src: en, tgt: de, max_rows: 7}" if count > 1 else ""
    corpus = [
        f"--data.{part}=[{{path: test, src: en, tgt: de, max_rows: {count}}}{several}]" for part in ("test", "predict")
    ]
    average = ["--averaging.num_checkpoints", 2]
    found = []
    for options in ([], strategy):
        common = ["--config", "run/config.yaml", *corpus[:1], *average, *options]
        run(trained, "test", *common, "--bleu.output_path", "test.txt")
        run(trained, "predict", *common, *corpus[1:], "--writer.output_path", "predict.txt", "--writer.scores", "true")
        parts = json.loads((trained / "test.scores.json").read_text())["corpora"]
        texts = [(trained / name).read_bytes() for name in ("test.txt", "predict.txt")]
        found.append((scores(trained), parts, texts))
        expected = [("test", count), ("val", 7)] if several else [("test", count)]
        assert [(part["name"], part["num_sentences"]) for part in parts] == expected
    assert found[0] == found[1]
    assert count == 1 or 20 < float(found[0][0]["test/bleu"]) < 100
