"""Whole runs of ``fit`` on text from a server that drops connections, stalls, answers 503, or is gone."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from command_line import write_digits
from test_network import Server

pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")

FIT = """\
import sys
import datasets
from lit_transformer import cli
from lit_transformer.data import network

network.WAITS, network.STALL_SECONDS = (0.05, 0.1, 0.1, 0.2, 0.2, 0.4, 0.4), 1.0  # as always, only sooner
datasets.config.STREAMING_READ_MAX_RETRIES, datasets.config.STREAMING_READ_RETRY_INTERVAL = 1, 0
cli.main(sys.argv[1:])
"""
CONFIG = """\
seed_everything: 3
model:
  network: {{num_layers: 1, d_model: 16, d_ff: 32, num_heads: 2, dropout: 0.1}}
data:
  train:
  - {{path: "{address}/train.parquet", src: en, tgt: de}}
  - {{path: "{address}/train.jsonl.gz", src: en, tgt: de}}
  val: {{path: val, src: en, tgt: de}}
  vocab_size: 300
  max_tokens: 128
  pool_size: 40
warmup: {{warmup_steps: 4}}
bleu: {{every_n_validations: 0}}
checkpoint: {{every_n_train_steps: 1000}}
trainer:
  accelerator: cpu
  max_steps: 40
  val_check_interval: 15
  log_every_n_steps: 1
  enable_progress_bar: false
  default_root_dir: run
"""


def files(folder: Path) -> dict[str, bytes]:
    """Two corpora, one as parquet in many row groups, one as compressed JSON lines."""
    sides = {side: (folder / f"train.{side}").read_text().splitlines() for side in ("en", "de")}
    half = len(sides["en"]) // 2
    table = io.BytesIO()
    pq.write_table(pa.table({side: lines[:half] for side, lines in sides.items()}), table, row_group_size=20)
    rows = [dict(zip(sides, pair, strict=True)) for pair in zip(sides["en"][half:], sides["de"][half:], strict=True)]
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    return {"train.parquet": table.getvalue(), "train.jsonl.gz": packed}


class Countdown(list):
    """A script for the server that counts what it is asked, and may answer 503 for ever after a number of times."""

    def __init__(self, faults: dict[int, str], down_after: int | None = None) -> None:
        super().__init__(["script"])
        self.faults, self.down_after, self.asked = faults, down_after, 0

    def pop(self, index: int = 0) -> str:
        self.asked += 1
        if self.down_after is not None and self.asked > self.down_after:
            return "503"
        return self.faults.get(self.asked, "ok")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("served")
    write_digits(folder, train=150)
    running = Server(files(folder))
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def fit(folder: Path, server: Server, script: Countdown, *options: object) -> subprocess.CompletedProcess[str]:
    if not folder.exists():
        folder.mkdir()
        write_digits(folder)
        (folder / "run.yaml").write_text(CONFIG.format(address=server.address))
        (folder / "fit.py").write_text(FIT)
    server.script, server.faults = script, []
    command = [sys.executable, "fit.py", "fit", "--config", "run.yaml", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def losses(folder: Path) -> dict[int, str]:
    logs = [log.read_text().splitlines() for log in sorted(folder.glob("run/logs/version_*/metrics.csv"))]
    return {int(row["step"]): row["train/loss"] for log in logs for row in csv.DictReader(log) if row.get("train/loss")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "run/checkpoints/step=40.ckpt", weights_only=True)["state_dict"]


def check_equal(one: Path, other: Path) -> None:
    assert len(losses(one)) == 40
    assert losses(one) == losses(other)
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_a_bad_network_is_that_of_a_calm_day(tmp_path: Path, server: Server, workers: int) -> None:
    options = ["--data.num_workers", workers]
    calm, rough, gone = tmp_path / "calm", tmp_path / "rough", tmp_path / "gone"
    script = Countdown({})
    done = fit(calm, server, script, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    asked = script.asked
    assert asked > 30

    kinds = ["drop", "503", "stall"]
    when = range(asked // 3, asked, 11)  # rarer than what opening a file asks for, or no attempt could succeed
    faults = {number: kinds[place % 3] for place, number in enumerate(when)}
    done = fit(rough, server, Countdown(faults), *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(server.faults) == set(kinds)
    check_equal(calm, rough)

    done = fit(gone, server, Countdown({}, down_after=2 * asked // 3), *options)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lit-transformer: ")
    assert "gave up after 8 attempts" in last
    assert "Traceback" not in done.stderr
    (kept,) = (gone / "run/checkpoints").iterdir()
    assert 0 < int(kept.stem.removeprefix("step=")) < 40
    done = fit(gone, server, Countdown({}), *options, "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr[-3000:]
    check_equal(calm, gone)
