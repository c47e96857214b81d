"""The learning rate equals equation 3 of the paper at every optimizer step."""

import math
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from standins import Data, Module, trainer

from lit_transformer.adam import PAPER_RATE
from lit_transformer.callbacks.warmup import InverseSqrtWarmup


def equation_3(step: int, d_model: int, warmup_steps: int) -> float:
    return d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)


@pytest.mark.parametrize("d_model", [512, 1024])
@pytest.mark.parametrize("step", [1, 100, 3999, 4000, 4001, 8000, 100_000])
def test_rate_is_equation_3(step: int, d_model: int) -> None:
    warmup = InverseSqrtWarmup(warmup_steps=4000, d_model=d_model)
    assert warmup.peak is not None
    assert warmup.peak * warmup.scale(step) == pytest.approx(equation_3(step, d_model, 4000), rel=1e-12)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_step_of_a_training(accumulate: int) -> None:
    module = Module(num_groups=2)
    fit = trainer(InverseSqrtWarmup(4, d_model=16), max_epochs=2, accumulate_grad_batches=accumulate)
    fit.fit(module, Data())
    steps = 2 * 12 // accumulate
    assert module.rates == pytest.approx([equation_3(n, 16, 4) for n in range(1, steps + 1)])
    assert len({group["lr"] for group in fit.optimizers[0].param_groups}) == 1


def test_without_d_model_each_group_keeps_its_own_peak() -> None:
    module = Module(lr=0.5, num_groups=2)
    fit = trainer(InverseSqrtWarmup(4), max_epochs=1, limit_train_batches=9)
    fit.fit(module, Data())
    assert [g["lr"] for g in fit.optimizers[0].param_groups] == pytest.approx([0.5 * 2 / 3, 0.25 * 2 / 3])
    assert [g["initial_lr"] for g in fit.optimizers[0].param_groups] == [0.5, 0.25]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("d_model", [None, 16])
def test_resume_goes_on_with_the_same_rates(tmp_path: Path, d_model: int | None, accumulate: int) -> None:
    def run(max_epochs: int, ckpt_path: str | None = None) -> list[float]:
        module = Module(num_groups=2)
        fit = trainer(InverseSqrtWarmup(7, d_model), max_epochs=max_epochs, accumulate_grad_batches=accumulate)
        fit.fit(module, Data(), ckpt_path=ckpt_path, weights_only=True)
        fit.save_checkpoint(tmp_path / f"{max_epochs}.ckpt")
        return module.rates

    whole = run(3)
    first = run(1)
    rest = run(3, str(tmp_path / "1.ckpt"))
    assert len(first) == 12 // accumulate
    assert len(set(whole)) > 5
    assert first + rest == whole


def test_without_d_model_a_resumed_run_takes_the_rate_of_its_optimizer(tmp_path: Path) -> None:
    fit = trainer(InverseSqrtWarmup(4, d_model=16), max_epochs=1)
    fit.fit(Module(lr=0.5), Data())
    assert fit.optimizers[0].param_groups[0]["initial_lr"] == 0.125
    fit.save_checkpoint(tmp_path / "first.ckpt")
    module = Module(lr=0.5)
    fit = trainer(InverseSqrtWarmup(4), max_epochs=2)
    fit.fit(module, Data(), ckpt_path=str(tmp_path / "first.ckpt"), weights_only=True)
    assert fit.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(0.5)
    assert module.rates[0] == pytest.approx(0.5 * math.sqrt(4 / 13))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_last_steps_cool_down(accumulate: int) -> None:
    module = Module(num_groups=2)
    fit = trainer(InverseSqrtWarmup(4, 16, cooldown_steps=4), max_steps=10, accumulate_grad_batches=accumulate)
    fit.fit(module, Data())
    factors = [1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert module.rates == pytest.approx([equation_3(n, 16, 4) * factor for n, factor in enumerate(factors, 1)])


def test_a_run_is_cooled_down_from_its_checkpoint(tmp_path: Path) -> None:
    def rates(max_steps: int, cooldown_steps: int, ckpt_path: Path | None = None) -> list[float]:
        module = Module()
        fit = trainer(InverseSqrtWarmup(4, 16, cooldown_steps), max_steps=max_steps)
        fit.fit(module, Data(), ckpt_path=ckpt_path, weights_only=True)
        fit.save_checkpoint(tmp_path / f"{max_steps}.ckpt")
        return module.rates

    first = rates(12, cooldown_steps=0)
    assert first + rates(16, 4, tmp_path / "12.ckpt") == rates(16, 4)


def test_one_object_serves_several_trainings() -> None:
    warmup = InverseSqrtWarmup(4, cooldown_steps=6)
    for lr in (0.001, 0.01):
        module = Module(lr=lr)
        trainer(warmup, max_steps=12, max_epochs=-1).fit(module, Data())
        assert module.rates[3] == pytest.approx(lr)


def test_a_cooldown_needs_to_know_the_last_step() -> None:
    with pytest.raises(MisconfigurationException, match=r"cooldown_steps=3 .* set the trainer's max_steps"):
        trainer(InverseSqrtWarmup(cooldown_steps=3), max_epochs=1).fit(Module(), Data())


@pytest.mark.parametrize(("width", "is_told"), [(16, False), (32, True), (None, False)])
def test_a_width_that_is_not_the_networks_is_told(
    width: int | None, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    module = Module()
    module.network = torch.nn.Linear(1, 1)  # type: ignore[assignment]
    module.network.d_model = 16  # type: ignore[assignment]
    with caplog.at_level("INFO"):
        InverseSqrtWarmup(4, d_model=width).on_fit_start(trainer(), module)
    assert ("follows d_model=32, but the network has d_model=16" in caplog.text) == is_told


def test_a_tensor_rate_is_changed_in_place() -> None:
    class Capturable(Module):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=torch.tensor(0.5), foreach=False, capturable=False)

    module = Capturable()
    fit = trainer(InverseSqrtWarmup(4), max_steps=2)
    fit.fit(module, Data())
    assert module.rates == pytest.approx([0.125, 0.25])
    assert isinstance(fit.optimizers[0].param_groups[0]["lr"], torch.Tensor)


def test_the_monitor_sees_the_rate_of_the_step(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callbacks = [InverseSqrtWarmup(4, d_model=16), LearningRateMonitor()]
    trainer(*callbacks, logger=logger, max_steps=6, log_every_n_steps=1).fit(Module(), Data())
    rows = Path(logger.log_dir, "metrics.csv").read_text().split()[1:]
    steps = [1, *range(1, 7)]  # the monitor also looks at the beginning of the epoch
    assert [float(row.split(",")[0]) for row in rows] == pytest.approx([equation_3(n, 16, 4) for n in steps])


def test_another_shape_by_subclass() -> None:
    class Cosine(InverseSqrtWarmup):
        def scale(self, step: int) -> float:
            return math.cos(step)

    module = Module(lr=2.0)
    trainer(Cosine(), max_steps=3).fit(module, Data())
    assert module.rates == pytest.approx([2 * math.cos(n) for n in (1, 2, 3)])


def test_refuses_a_second_scheduler() -> None:
    class Scheduled(Module):
        def configure_optimizers(self) -> object:  # type: ignore[override]
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer)]

    with pytest.raises(MisconfigurationException, match=r"InverseSqrtWarmup .* cannot run beside ConstantLR"):
        trainer(InverseSqrtWarmup(), max_steps=1).fit(Scheduled(), Data())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "warmup_steps .* got 0"), ((9, 0), "d_model .* got 0"), ((9, 9, -1), "cooldown_steps .* got -1")],
)
def test_refuses_bad_arguments(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InverseSqrtWarmup(*arguments)


def test_another_rate_in_the_configuration_of_a_resumed_run_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def rates(lr: float, max_steps: int, ckpt_path: Path | None = None) -> list[float]:
        module = Module(lr=lr, num_groups=2)
        fit = trainer(InverseSqrtWarmup(4), max_steps=max_steps)
        with caplog.at_level("INFO"):
            fit.fit(module, Data(), ckpt_path=ckpt_path, weights_only=True)
        fit.save_checkpoint(tmp_path / f"{max_steps}.ckpt")
        assert [group["initial_lr"] for group in fit.optimizers[0].param_groups] == pytest.approx([lr, lr / 2])
        return module.rates

    rates(0.5, 12)
    rest = rates(0.5, 16, tmp_path / "12.ckpt")
    assert "the peak" not in caplog.text
    assert rates(0.1, 16, tmp_path / "12.ckpt") == pytest.approx([rate / 5 for rate in rest])
    assert "the peak of the learning rate is 0.1 from here on, and was 0.5" in caplog.text


@pytest.mark.parametrize(("max_epochs", "told"), [(1, True), (-1, False)])
def test_a_cooldown_that_does_not_come_is_told(max_epochs: int, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trainer(InverseSqrtWarmup(4, 16, 4), max_steps=20, max_epochs=max_epochs).fit(Module(), Data())
    message = (
        "the training ended at step 12, and was to cool down from step 16 to 20: set max_steps to where it shall end"
    )
    assert (message in caplog.text) == told


@pytest.mark.parametrize(("lr", "is_told"), [(0.001, True), ((16 * 4) ** -0.5, False), (PAPER_RATE, False)])
def test_a_rate_that_d_model_overrides_is_told(lr: float, is_told: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trainer(InverseSqrtWarmup(4, d_model=16), max_epochs=1).fit(Module(lr=lr), Data())
    assert ("the peak of the learning rate is 0.125, by d_model=16" in caplog.text) == is_told
