"""The mean of checkpoints is their mean, of the right files, and only where it was asked for."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from standins import Data, Module, trainer
from torch import Tensor, nn

from lit_transformer.callbacks.averaging import (
    CheckpointAveraging,
    average_checkpoints,
    last_checkpoints,
    write_averaged_checkpoint,
)
from lit_transformer.interfaces import InputError


def save(path: Path, step: int, state: dict[str, Tensor] | None = None, **more: Any) -> Path:
    state = {"weight": torch.full((2,), float(step))} if state is None else state
    torch.save({"state_dict": state, "global_step": step, **more}, path)
    return path


def test_mean_of_weights(tmp_path: Path) -> None:
    states = [{"w": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "d": torch.randn(2).double()} for _ in range(4)]
    paths = [save(tmp_path / f"{i}.ckpt", i, state) for i, state in enumerate(states)]
    mean = average_checkpoints(paths)
    assert list(mean) == ["w", "b", "d"]
    for name, tensor in mean.items():
        expected = sum(state[name].double() for state in states) / 4  # type: ignore[union-attr]
        assert tensor.dtype == states[0][name].dtype
        torch.testing.assert_close(tensor, expected.to(tensor.dtype), rtol=0, atol=0)


def test_sums_are_kept_in_double_precision(tmp_path: Path) -> None:
    values = [2.0**24, 1.0, 1.0, 2.0]  # in float32, 2**24 + 1 is 2**24
    paths = [save(tmp_path / f"{i}.ckpt", i, {"w": torch.tensor([v])}) for i, v in enumerate(values)]
    assert average_checkpoints(paths)["w"].item() == (2**24 + 4) / 4


def test_what_has_no_mean_comes_from_the_newest(tmp_path: Path) -> None:
    states = [{"count": torch.tensor(step), "mask": torch.tensor([step > 5])} for step in (3, 9, 6)]
    paths = [save(tmp_path / f"{i}.ckpt", s["count"].item(), s) for i, s in enumerate(states)]  # type: ignore[arg-type]
    mean = average_checkpoints(paths)
    assert mean["count"] == 9
    assert mean["mask"].tolist() == [True]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"v": torch.ones(2)}, "hold different models: only one of them has 'v'"),
        ({"weight": torch.ones(3)}, r"'weight' is \(2,\) of torch.float32 .* and \(3,\)"),
        ({"weight": torch.ones(2).half()}, "of torch.float16 in the other"),
    ],
)
def test_different_models_are_named(tmp_path: Path, other: dict[str, Tensor], message: str) -> None:
    paths = [save(tmp_path / "a.ckpt", 1), save(tmp_path / "b.ckpt", 2, other)]
    with pytest.raises(InputError, match=message):
        average_checkpoints(paths)


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    good = save(tmp_path / "good.ckpt", 1)
    for name, content in {"text": b"hello", "empty": b"", "cut": good.read_bytes()[:300]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is not a checkpoint file, or is damaged"):
            average_checkpoints([good, tmp_path / name])
    torch.save({"state_dict": {}, "global_step": 0, "code": Module}, tmp_path / "code")
    with pytest.raises(InputError, match=r"code .* holds more than plain data"):
        average_checkpoints([tmp_path / "code"])
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights")
    with pytest.raises(InputError, match="weights is not a Lightning checkpoint: it has no state_dict"):
        average_checkpoints([tmp_path / "weights"])
    with pytest.raises(InputError, match="is not a checkpoint file"):
        average_checkpoints([tmp_path])
    with pytest.raises(InputError, match=r"gone.ckpt does not exist"):
        average_checkpoints([tmp_path / "gone.ckpt"])
    with pytest.raises(InputError, match="at least one checkpoint, got none"):
        average_checkpoints([])


def test_last_checkpoints_are_found_by_step_not_by_name(tmp_path: Path) -> None:
    for name, step in {"z": 100, "a": 900, "m": 1000, "k": 1100, "last": 1100, "b": 2000}.items():
        save(tmp_path / f"{name}.ckpt", step)
    save(tmp_path / "average.ckpt", 1000, averaged_from={"m.ckpt": 1000})
    (tmp_path / "notes.txt").write_text("not a checkpoint")

    def names(path: Path, count: int) -> list[str]:
        return [file.stem for file in last_checkpoints(path, count)]

    assert names(tmp_path / "b.ckpt", 3) == ["m", "k", "b"]
    assert names(tmp_path / "k.ckpt", 4) == ["z", "a", "m", "k"]  # b is newer
    assert names(tmp_path / "last.ckpt", 2) == ["m", "last"]  # the given one, once
    assert names(tmp_path, 2) == ["k", "b"]
    with pytest.raises(InputError, match=r"5 checkpoints .* holds 4 up to k.ckpt \(steps 100, 900, 1000, 1100\)"):
        last_checkpoints(tmp_path / "k.ckpt", 5)
    with pytest.raises(InputError, match=r"x.ckpt does not exist"):
        last_checkpoints(tmp_path / "x.ckpt", 1)


def test_the_folder_of_a_run_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    paths = [save(tmp_path / "checkpoints" / f"{step}.ckpt", step) for step in (1, 2, 3)]
    assert last_checkpoints(tmp_path, 2) == paths[1:]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"1 checkpoints .*empty holds 0 \(steps none\)"):
        last_checkpoints(tmp_path / "empty", 1)


class Tied(Module):
    """Has two names for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 40)
        self.output = nn.Linear(40, 50, bias=False)
        self.output.weight = self.embedding.weight


class Saver(L.Callback):
    """Keeps every step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")


def trained(folder: Path, module: L.LightningModule) -> list[Path]:
    """The checkpoints of a short run, one for each of its steps."""
    trainer(Saver(folder), max_steps=4).fit(module, Data())
    return [folder / f"step={step}.ckpt" for step in range(1, 5)]


def test_written_average_is_for_inference(tmp_path: Path) -> None:
    paths = trained(tmp_path / "run", Tied())
    output = tmp_path / "new" / "average.ckpt"
    write_averaged_checkpoint(paths[1:], output)
    assert list(output.parent.iterdir()) == [output]

    checkpoint = torch.load(output, weights_only=True)
    newest = torch.load(paths[-1], weights_only=True)
    assert checkpoint["averaged_from"] == {"step=2.ckpt": 2, "step=3.ckpt": 3, "step=4.ckpt": 4}
    assert checkpoint["hyper_parameters"] == newest["hyper_parameters"]
    assert not {"optimizer_states", "loops", "callbacks", "lr_schedulers"} & checkpoint.keys()
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths[1:]]
    for name, tensor in checkpoint["state_dict"].items():
        torch.testing.assert_close(tensor, torch.stack([state[name] for state in states]).mean(0))
    size = 4 * 50 * 40  # bytes of the tied weight
    assert size < output.stat().st_size < 2 * size

    module = Tied()
    trainer().test(module, Data(), ckpt_path=str(output), verbose=False, weights_only=True)
    torch.testing.assert_close(module.state_dict(), dict(checkpoint["state_dict"]))
    loaded = Tied.load_from_checkpoint(output, weights_only=True)
    torch.testing.assert_close(loaded.state_dict(), dict(checkpoint["state_dict"]))


def test_failed_average_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.ckpt", 1)

    def full_disk(*args: object) -> None:
        args[1].write(b"half")  # type: ignore[attr-defined]
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_averaged_checkpoint([path], tmp_path / "new" / "out.ckpt")
    assert list((tmp_path / "new").iterdir()) == []


class Spy(L.Callback):
    """Remembers the weights that batches see."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_test_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.seen.append(next(pl_module.parameters()).detach().clone())

    on_predict_batch_start = on_validation_batch_start = on_test_batch_start


@pytest.mark.parametrize("stage", ["test", "predict", "validate"])
def test_mean_is_used_and_then_taken_out(tmp_path: Path, stage: str, caplog: pytest.LogCaptureFixture) -> None:
    paths = trained(tmp_path, Module())
    states = [torch.load(path, weights_only=True)["state_dict"]["weights.0"] for path in paths]
    module, spy = Module(), Spy()
    evaluate = trainer(CheckpointAveraging(2), spy)
    with caplog.at_level("INFO"):
        quiet = {"return_predictions": False} if stage == "predict" else {"verbose": False}
        getattr(evaluate, stage)(module, datamodule=Data(), ckpt_path=str(paths[2]), weights_only=True, **quiet)
    torch.testing.assert_close(spy.seen[0], (states[1] + states[2]) / 2)
    assert not torch.equal(spy.seen[0], states[2])
    torch.testing.assert_close(module.weights[0].data, states[2], rtol=0, atol=0)
    assert "mean of 2 checkpoints" in caplog.text
    assert "step=2.ckpt (step 2), step=3.ckpt (step 3)" in caplog.text


def test_a_mean_is_used_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = trained(tmp_path, Module())
    average, spy = tmp_path / "average.ckpt", Spy()
    write_averaged_checkpoint(paths[:2], average)
    with caplog.at_level("INFO"):
        trainer(CheckpointAveraging(2), spy).test(Module(), Data(), ckpt_path=str(average), verbose=False)
    expected = torch.load(average, weights_only=True)["state_dict"]["weights.0"]
    torch.testing.assert_close(spy.seen[0], expected, rtol=0, atol=0)
    assert "average.ckpt as it is: it is a mean of checkpoints already" in caplog.text


def test_damaged_checkpoints_are_passed_over_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [save(tmp_path / f"{step}.ckpt", step) for step in (1, 2, 3)]
    paths[1].write_bytes(paths[0].read_bytes()[:400])
    with caplog.at_level("WARNING"):
        assert last_checkpoints(tmp_path, 2) == [paths[0], paths[2]]
    assert "passing over a checkpoint" in caplog.text
    assert "2.ckpt is not a checkpoint file, or is damaged" in caplog.text
    with pytest.raises(InputError, match=r"3 checkpoints should be averaged, .* \(steps 1, 3\)"):
        last_checkpoints(tmp_path, 3)


def test_own_weights_come_back_after_an_error(tmp_path: Path) -> None:
    class Broken(Module):
        def test_step(self, batch: object, batch_idx: int) -> None:
            raise RuntimeError("out of coffee")

    paths = trained(tmp_path, Module())
    module = Broken()
    with pytest.raises(RuntimeError, match="out of coffee"):
        trainer(CheckpointAveraging(3)).test(module, Data(), ckpt_path=str(paths[-1]), verbose=False)
    expected = torch.load(paths[-1], weights_only=True)["state_dict"]["weights.0"]
    torch.testing.assert_close(module.weights[0].data, expected, rtol=0, atol=0)


def test_training_is_left_alone(tmp_path: Path) -> None:
    plain, averaged, spy = Module(), Module(), Spy()
    trainer(max_epochs=2).fit(plain, Data())
    trainer(CheckpointAveraging(2), spy, max_epochs=2).fit(averaged, Data())
    assert spy.seen
    torch.testing.assert_close(averaged.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_one_checkpoint_is_used_as_it_is() -> None:
    trainer(CheckpointAveraging(1)).test(Module(), Data(), verbose=False)


def test_bad_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_checkpoints must be at least 1, got 0"):
        CheckpointAveraging(0)
    with pytest.raises(MisconfigurationException, match="none was given; pass ckpt_path"):
        trainer(CheckpointAveraging(2)).test(Module(), Data(), verbose=False)
    paths = trained(tmp_path, Module())
    with pytest.raises(InputError, match=r"9 checkpoints should be averaged, but .* holds 4 up to step=4.ckpt"):
        trainer(CheckpointAveraging(9)).test(Module(), Data(), ckpt_path=str(paths[-1]), verbose=False)
