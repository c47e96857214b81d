"""The moving average of the weights, by configuration: what it writes, scores, resumes and translates with."""

from __future__ import annotations

import copy
import csv
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import lit, tiny_project
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from standins import trainer
from torch import Tensor

from lit_transformer import (
    LitTransformer,
    MovingAverage,
    TeachingCorpus,
    Transformer,
    TranslationDataModule,
    Translator,
)
from lit_transformer.errors import InputError

DECAY = 0.6
EMA = """
averaging: {num_checkpoints: 1}
checkpoint: {every_n_train_steps: 1, save_top_k: -1}
trainer:
  callbacks:
    - class_path: lit_transformer.MovingAverage
      init_args: {decay: 0.6}
"""


pytestmark = pytest.mark.usefixtures("own_folder")


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


def logged(run: Path, name: str, folder: str = "run") -> dict[int, float]:
    lines = (run / folder / "logs/version_0/metrics.csv").read_text().splitlines()
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


def test_training_does_not_go_on_from_the_average_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of the optimizer belongs to the weights in training."""
    monkeypatch.chdir(run)
    options = ("--ckpt_path=run/checkpoints/step=3.ckpt", "--trainer.default_root_dir=plain")
    finished = lit("fit", "--config=run/config.yaml", *options, "--trainer.callbacks=null")
    assert finished.status == 1
    assert "list it under trainer.callbacks again (lit_transformer.MovingAverage), or begin anew" in finished.err
    assert finished.err.endswith("--init_from run/checkpoints/step=3.ckpt\n")
    assert not Path("plain").exists()


def assert_same_weights(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items()), part
    name = "network.encoder.layers.0.self_attention.query.weight"
    assert not torch.equal(one["state_dict"][name], one["current_model_state"][name])


@pytest.mark.parametrize("end", ["--trainer.max_epochs=1", "--trainer.max_time=00:00:00:01"])
def test_a_run_that_ends_otherwise_keeps_the_weights_in_training(
    run: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.chdir(run)
    folder = end.partition("=")[0].rpartition(".")[2]
    if "time" in end:  # a second is over in the fifth step
        step = LitTransformer.training_step

        def slow(self: LitTransformer, *batch: Any) -> Any:
            time.sleep(1.1 if self.trainer.global_step == 4 else 0)
            return step(self, *batch)

        monkeypatch.setattr(LitTransformer, "training_step", slow)
    options = ("--trainer.max_steps=-1", "--checkpoint.every_n_train_steps=1000", "--trainer.val_check_interval=1000")
    if "epochs" in end:
        options += ("--trainer.limit_train_batches=5",)
    finished = lit("fit", "--config=run/config.yaml", end, *options, f"--trainer.default_root_dir={folder}")
    assert finished.status == 0, finished.err
    (last,) = (run / folder / "checkpoints").glob("step=*.ckpt")
    step_of = int(last.stem.removeprefix("step="))
    assert_same_weights(checkpoint(run, step_of, folder), checkpoint(run, step_of))


def test_an_interruption_in_validation_exchanges_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)

    validation_step = LitTransformer.validation_step

    def interrupt(self: LitTransformer, *batch: Any) -> None:
        validation_step(self, *batch)
        if not self.trainer.sanity_checking:
            raise KeyboardInterrupt

    monkeypatch.setattr(LitTransformer, "validation_step", interrupt)
    options = ("--checkpoint.every_n_train_steps=1000", "--trainer.default_root_dir=broken")
    assert lit("fit", "--config=run/config.yaml", *options).status != 0
    (last,) = (run / "broken/checkpoints").glob("*.ckpt")
    assert_same_weights(torch.load(last, weights_only=True), checkpoint(run, 4))


def test_until_it_begins_the_weights_in_training_are_scored_and_saved(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    late = EMA.replace("{decay: 0.6}", "{decay: 0.6, update_starting_at_step: 5}")
    (run / "late.yaml").write_text(late)
    (run / "plain.yaml").write_text(EMA[: EMA.index("  callbacks:")] + "  max_steps: 8\n")
    for name in ("late", "plain"):
        finished = lit("fit", "--config", "tiny.yaml", "--config", f"{name}.yaml", f"--trainer.default_root_dir={name}")
        assert finished.status == 0, finished.err
    late_losses, plain_losses = (logged(run, "val/loss", name) for name in ("late", "plain"))
    assert late_losses[4] == plain_losses[4]
    assert late_losses[8] != plain_losses[8]
    name = "network.tgt_embedding.weight"
    for step, are_same in ((4, True), (8, False)):
        found = [checkpoint(run, step, folder)["state_dict"][name] for folder in ("late", "plain")]
        assert torch.equal(*found) == are_same


def test_callbacks_after_it_decode_with_the_average_too() -> None:
    seen = []

    class Decoder(Callback):
        """Looks as AttentionPictures does: by a translation with the prepared network."""

        def on_validation_batch_end(self, _: Any, pl_module: Any, *batch: Any) -> None:
            pl_module.generate(torch.tensor([[5, 6, 3]]))

        def on_validation_epoch_end(self, _: Any, pl_module: Any) -> None:
            src = torch.tensor([[5, 6, 7, 3]])
            fresh = LitTransformer(copy.deepcopy(pl_module.network), search=pl_module.search)
            seen.append((pl_module.generate(src)[0][0].score, fresh.generate(src)[0][0].score))

    torch.manual_seed(1)
    data = TranslationDataModule(
        train=TeachingCorpus("train", max_rows=60), val=TeachingCorpus("validation", max_rows=4), vocab_size=300,
        max_tokens=64,
    )  # fmt: skip
    module = LitTransformer(Transformer(vocab_size=300, num_layers=1, d_model=16, d_ff=32, num_heads=2))
    average = MovingAverage(decay=0.6)
    often = {"max_steps": 4, "max_epochs": -1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    fitted = trainer(average, Decoder(), logger=False, **often)
    fitted.fit(module, data)
    assert len(seen) >= 2
    for found, fresh in seen:
        assert found == fresh
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fitted.validate(module, data, verbose=False)  # after training, it is the average that is scored, and that stays
    assert all(torch.equal(tensor, kept[name]) for name, tensor in module.state_dict().items())
    assert seen[-1] == seen[-2]


@pytest.mark.parametrize("name", ["lit_transformer.MovingAverage", "lightning.pytorch.callbacks.EMAWeightAveraging"])
def test_divided_weights_are_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_project(tmp_path)
    (tmp_path / "divided.yaml").write_text(f"""
trainer:
  strategy: {{class_path: lightning.pytorch.strategies.ModelParallelStrategy}}
  callbacks: [{{class_path: {name}}}]
""")
    finished = lit("fit", "--config", config, "--config", "divided.yaml")
    assert finished.status == 1
    sentence = finished.err.splitlines()[-1]
    assert sentence.startswith(f"lit-transformer: {name.rpartition('.')[2]} cannot average weights that ModelParallel")
    assert "Traceback" not in finished.err
    with pytest.raises(InputError, match="MovingAverage cannot average weights that ModelParallelStrategy divides"):
        MovingAverage().setup(SimpleNamespace(strategy=ModelParallelStrategy(), checkpoint_callbacks=[]), None, "fit")  # type: ignore[arg-type]


def test_the_average_lies_where_the_weights_do() -> None:
    """At ``setup`` the weights are not yet on the accelerator; "meta" stands in for one."""
    module = LitTransformer(Transformer(600, num_layers=1, d_model=8, d_ff=16, num_heads=2))
    for device, expected in ((None, "meta"), ("cpu", "cpu")):
        average = MovingAverage(device=device)
        average.setup(SimpleNamespace(strategy=None, checkpoint_callbacks=[]), module.to("cpu"), "fit")
        average.on_fit_start(SimpleNamespace(), module.to("meta"))  # type: ignore[arg-type]
        assert average._average_model is not None
        assert {one.device.type for one in average._average_model.parameters()} == {expected}
        module.to_empty(device="cpu")


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_weights_of_half_precision_have_an_average_in_full(precision: str) -> None:
    average, corpus = MovingAverage(decay=DECAY), TeachingCorpus("validation", max_rows=50)
    data = TranslationDataModule(train=corpus, vocab_size=600, max_tokens=512)
    module = LitTransformer(Transformer(600, num_layers=1, d_model=8, d_ff=16, num_heads=2))
    trainer(average, max_steps=3, max_epochs=-1, precision=precision).fit(module, data)
    assert average._average_model is not None
    assert average._average_model.n_averaged == 3


def test_checkpoints_of_weights_alone_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    options = ("--checkpoint.save_weights_only", "true", "--trainer.default_root_dir", "alone")
    finished = lit("fit", "--config", "tiny.yaml", "--config", "ema.yaml", *options)
    assert finished.status == 1
    assert "with save_weights_only Lightning would save the weights in training" in finished.err
    assert "Traceback" not in finished.err
    assert not list((run / "alone").glob("checkpoints/*"))


def test_one_object_averages_several_trainings() -> None:
    average = MovingAverage(decay=DECAY)
    corpus = TeachingCorpus("validation", max_rows=50)
    for max_steps in (6, 3):
        data = TranslationDataModule(train=corpus, vocab_size=600, max_tokens=512)
        module = LitTransformer(Transformer(600, num_layers=1, d_model=8, d_ff=16, num_heads=2))
        trainer(average, max_steps=max_steps, max_epochs=-1).fit(module, data)
        assert average._average_model is not None
        assert average._average_model.n_averaged == max_steps
