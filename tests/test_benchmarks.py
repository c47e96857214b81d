"""The benchmark scripts run from end to end and say what they should, at sizes that measure nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
