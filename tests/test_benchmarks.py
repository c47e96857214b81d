"""The benchmark scripts run from end to end and say what they should, at sizes that measure nothing."""

import importlib
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_transformer import SubwordTokenizer, Transformer, Translator
from lit_transformer.interfaces import SentencePair, TranslationBatch

SCRIPTS = Path(__file__).parent / "benchmarks"
NAMES = ["ours+heap", "trainer", "torch", "hf", "hf-trainer"]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_training_benchmark_measures_everyone_on_the_same_batches(devices, tmp_path):
    names = NAMES if devices == 1 else NAMES[:-1]
    out = tmp_path / "results.json"
    size = ["--size", "toy", "--max-tokens", "256", "--threads", "1", "--devices", str(devices)]
    command = [
        sys.executable,
        SCRIPTS / "training.py",
        *size,
        "--rounds",
        "2",
        "--steps",
        "2",
        "--json",
        out,
        "--contestants",
        *names,
    ]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr
    assert all(f"| {name} |" in finished.stdout for name in names)
    rounds = json.loads(out.read_text())["rounds"]
    assert list(rounds) == names
    for name in names:
        assert [(row["tokens"], row["flops"]) for row in rounds[name]] == [
            (row["tokens"], row["flops"]) for row in rounds["hf"]
        ]
        assert all(abs(loss - 9.5) < 1 for row in rounds[name] for loss in row["losses"])  # log(10000) is 9.2


def test_the_schedule_on_paper_counts_what_the_benchmark_counts():
    """The same operations as ``Size.flops`` for sentences of one length, and the figures of the table beside it."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import schedule
        from contestants import SIZES
    finally:
        sys.path.remove(str(SCRIPTS))
    size, length = replace(SIZES["base"], vocab_size=37_000), 29
    ids = torch.full((10, length), 5)
    batch = TranslationBatch(ids, torch.cat((ids[:, :1], ids), dim=1))
    assert schedule.operations(schedule.settings("base"), 10 * length, length) == pytest.approx(size.flops(batch))
    finished = subprocess.run([sys.executable, SCRIPTS / "schedule.py"], capture_output=True, text=True, check=True)
    table = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    for line in finished.stdout.splitlines():
        if line.startswith(("| base", "| big")):
            name, *figures = [cell.strip() for cell in line.split("|")[1:-1]]
            assert f"| {name}, 40 % | {' | '.join(figures[:-1])} |" in table


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_the_limit_of_decoding_counts_what_the_network_multiplies(size, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    decoding = importlib.import_module("decoding")
    network = Transformer(decoding.VOCAB_SIZE, **decoding.SIZES[size]).eval()
    src, tgt_input = torch.full((2, 5), 7), torch.full((2, 3), 7)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(src, tgt_input)
    counts = counter.get_flop_counts()["Global"]
    by_weights = sum(counts.get(operation, 0) for operation in (torch.ops.aten.addmm, torch.ops.aten.mm))
    assert decoding.multiplications(size, src.numel(), tgt_input.numel()) == by_weights / 2


@pytest.mark.slow
def test_the_loss_curve_is_that_of_marian(tmp_path, monkeypatch):
    lines = [" ".join(random.Random(n).choices("abcdefgh", k=n % 9 + 1)) for n in range(300)]
    for name in ("train.en", "train.de", "val.en", "val.de"):
        (tmp_path / name).write_text("\n".join(lines if "train" in name else lines[:20]) + "\n")
    monkeypatch.setenv("MULTI30K", str(tmp_path))
    options = ["--size", "toy", "--steps", "6", "--every", "3", "--precision", "float64", "--max-tokens", "256"]
    command = [sys.executable, SCRIPTS / "loss_curve.py", *options, "--output", tmp_path / "out"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "out/loss_curve_float64.json").read_text())
    for name in ("train", "val"):
        assert found["dropout 0"][f"{name}/loss, Marian against ours"]["largest"] < 2e-6  # the log is in float32
    assert found["dropout 0.3"]["train/loss, Marian against ours"]["median"] > 1e-4
    rows = (tmp_path / "out/loss_curve_float64.csv").read_text().splitlines()
    assert len(rows) == 7
    assert (tmp_path / "out/loss_curve_float64.png").stat().st_size > 10_000


@pytest.mark.slow
def test_data_pipeline_benchmark_resumes_and_streams_rows(tmp_path):
    out = tmp_path / "results.json"
    command = [
        sys.executable,
        SCRIPTS / "data_pipeline.py",
        "resume",
        "memory",
        "--rows",
        "3000",
        "--sources",
        "parquet",
    ]
    finished = subprocess.run([*command, "--json", out], capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    results = json.loads(out.read_text())
    assert [row["resumed at"] for row in results["resume"]] == [0.0]  # later places need more than one pool of rows
    assert [row["rows"] for row in results["memory"]] == [375, 3000]


SMALL = {"num_layers": 1, "d_model": 16, "d_ff": 32, "num_heads": 2}


def write_multi30k(folder):
    """Small files of its names, and a model for them that has learned nothing."""
    lines = [" ".join(random.Random(n).choices("abcdefgh", k=n % 9 + 1)) for n in range(200)]
    for name in ("train", "val", "test_2016_flickr"):
        for side in ("en", "de"):
            text = "\n".join(lines if name == "train" else lines[:20])
            (folder / f"{name}.{side}").write_text(text + "\n", encoding="utf-8")
    tokenizer = SubwordTokenizer(vocab_size=300)
    tokenizer.train([SentencePair(line, line) for line in lines])
    return Translator(Transformer(tokenizer.vocab_size, **SMALL), tokenizer).save(folder / "model")


def run_program(folder, *options):
    """What ``program.py`` prints, and the figures that it writes."""
    out = folder / "results.json"
    command = [sys.executable, SCRIPTS / "program.py", write_multi30k(folder), "--starts", "1", "--json", out, *options]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout, json.loads(out.read_text())


def test_program_benchmark_times_help_pages_and_files(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTI30K", str(tmp_path))
    files = ["--lines", "5", "25", "--stream_beam", "1", "--parts", "help", "stream"]
    printed, results = run_program(tmp_path, *files, "--commands", "translate")
    assert list(results) == ["help", "stream"]
    assert list(results["help"]) == ["--help", "translate --help"]
    assert list(results["stream"]) == ["5 lines", "25 lines"]
    for rows in results.values():
        for name, row in rows.items():
            assert f"| {name} |" in printed
            assert row["seconds"] > 0
            assert row["processor"] > 0
            assert row["rss"] > 1


@pytest.mark.slow
def test_program_benchmark_accounts_for_the_time_of_a_training(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTI30K", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network = [f"--model.network.{name}={value}" for name, value in SMALL.items()]
    rhythm = ["--steps", "4", "--trainer.val_check_interval=2", "--checkpoint.every_n_train_steps=1"]
    printed, results = run_program(
        tmp_path, "--parts", "sentence", "first_step", "training", "--data.vocab_size=300", *network, *rhythm
    )
    assert {"translate", "translate --compile", "transformers, the same model"} <= results["sentence"].keys()
    for marks in results["first_step"].values():
        walls = [wall for wall, _ in marks.values()]
        assert walls == sorted(walls)
        assert list(marks)[-2:] == ["first step", "end"]
    training = results["training"]
    assert training["steps"] == 3  # the clock begins after the first
    assert [training[name][2] for name in ("validation", "checkpoints")] == [2, 3]
    assert 0 < training["translating and scoring"][0] < training["validation"][0] < training["all"][0]
    assert 0 < training["searching"][0] < training["translating and scoring"][0]
    assert "| checkpoints |" in printed
