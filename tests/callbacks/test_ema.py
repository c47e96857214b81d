"""Lightning's moving average of the weights, by configuration: what it writes, scores, resumes and translates with."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import lit, tiny_project
from torch import Tensor

from lit_transformer import Translator

DECAY = 0.6
EMA = """
averaging: {num_checkpoints: 1}
checkpoint: {every_n_train_steps: 1, save_top_k: -1}
trainer:
  callbacks:
    - class_path: lightning.pytorch.callbacks.EMAWeightAveraging
      init_args: {decay: 0.6}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of eight steps with a checkpoint of each, and of its corpus."""
    folder = tmp_path_factory.mktemp("ema")
    (folder / "ema.yaml").write_text(EMA)
    config = tiny_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        finished = lit("fit", "--config", config, "--config", "ema.yaml")
    assert finished.status == 0, finished.err
    assert "WeightAveraging" not in finished.err
    return folder


def checkpoint(run: Path, step: int, name: str = "run") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / name / f"checkpoints/step={step}.ckpt", weights_only=True)
    return content


def logged(run: Path, name: str) -> dict[int, float]:
    lines = (run / "run/logs/version_0/metrics.csv").read_text().splitlines()
    return {int(row["step"]) + 1: float(row[name]) for row in csv.DictReader(lines) if row[name]}


def test_checkpoints_hold_the_average_and_beside_it_the_weights_in_training(run: Path) -> None:
    mean: dict[str, Tensor] = {}
    for step in range(1, 9):
        content = checkpoint(run, step)
        for name, raw in content["current_model_state"].items():
            before = mean.get(name, raw.double())
            mean[name] = DECAY * before + (1 - DECAY) * raw.double()
            torch.testing.assert_close(content["state_dict"][name].double(), mean[name], atol=1e-6, rtol=0)
    raw, mean_of = content["current_model_state"], content["state_dict"]
    assert any((mean_of[name] - raw[name]).abs().max() > 1e-4 for name in raw)
    tied = content["state_dict"]
    assert torch.equal(tied["network.projection.weight"], tied["network.tgt_embedding.weight"])


def test_validation_scores_the_average(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    for step in (4, 8):
        finished = lit("validate", "--config=run/config.yaml", f"--ckpt_path=run/checkpoints/step={step}.ckpt")
        assert finished.status == 0, finished.err
        shown = next(line for line in finished.out.splitlines() if "val/loss" in line)
        assert float(shown.split("│")[2]) == pytest.approx(logged(run, "val/loss")[step], rel=1e-5)


def test_test_and_translate_use_the_average(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    finished = lit("test", "--config=run/config.yaml")
    assert finished.status == 0, finished.err
    assert "WeightAveraging" not in finished.err
    assert json.loads((run / "run/test.scores.json").read_text())["checkpoint"]["step"] == 8
    network = Translator.from_pretrained("run").network
    torch.testing.assert_close(network.state_dict(), dict(sorted_weights(checkpoint(run, 8)["state_dict"])))


def sorted_weights(state: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(name.removeprefix("network."), tensor) for name, tensor in state.items() if name.startswith("network.")]


def test_the_mean_of_checkpoints_is_one_of_averages(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    finished = lit("average", "run", "--last", "2", "--output", "mean.ckpt")
    assert finished.status == 0, finished.err
    mean = torch.load("mean.ckpt", weights_only=True)
    assert "current_model_state" not in mean
    name = "network.encoder.layers.0.self_attention.query.weight"
    both = [checkpoint(run, step)["state_dict"][name] for step in (7, 8)]
    torch.testing.assert_close(mean["state_dict"][name], (both[0] + both[1]) / 2)


def test_a_resumed_run_goes_on_exactly(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    options = ("--ckpt_path=run/checkpoints/step=3.ckpt", "--trainer.default_root_dir=again")
    finished = lit("fit", "--config=run/config.yaml", *options)
    assert finished.status == 0, finished.err
    for step in (4, 8):
        one, other = checkpoint(run, step), checkpoint(run, step, "again")
        for part in ("state_dict", "current_model_state"):
            assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items())
