"""The learning rate of the paper: a linear rise, then a fall with the inverse square root of the step."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_transformer.adam import PAPER_RATE


class InverseSqrtWarmup(Callback):
    r"""Warms the learning rate up, then lets it fall with the inverse square root of the step.

    At optimizer step ``n`` (the first is 1) every parameter group has the rate
    ``peak * min(n / warmup_steps, sqrt(warmup_steps / n))``. With the peak ``(d_model * warmup_steps) ** -0.5`` that
    is equation 3 of the paper, ``d_model ** -0.5 * min(n ** -0.5, n * warmup_steps ** -1.5)``.

    The rate follows from the number of optimizer steps alone, so it is exact under gradient accumulation and after a
    resume. Each group's peak is kept in the optimizer's own state, as ``initial_lr``. The callback must stand before
    ``LearningRateMonitor`` in the list of callbacks, and no other scheduler may run. If a module steps several
    optimizers itself, each of their steps counts, as it does in ``trainer.global_step``.

    Steps at a high rate leave the weights restless: their loss is higher than that of the place they move around.
    With ``cooldown_steps`` the last steps before the trainer's ``max_steps`` let them settle: to the rate comes a
    factor that falls in a straight line, down to ``1 / (cooldown_steps + 1)`` in the very last step. What stands before
    them does not depend on ``max_steps``, so a run can be cooled down from any of its checkpoints: resume it with a
    ``max_steps`` that lies ``cooldown_steps`` ahead, in a folder of its own. A run that is stopped early is not
    cooled down.

    Override ``scale`` for a schedule of another shape.

    Source: Vaswani et al. 2017, section 5.3; for the cooldown Zhai et al. 2022, "Scaling Vision Transformers".

    Args:
        warmup_steps: Optimizer steps until the peak.
        d_model: Width of the model in features: sets the peak to the paper's ``(d_model * warmup_steps) ** -0.5``.
            If left out, the peak is the optimizer's own learning rate.
        cooldown_steps: Optimizer steps before the trainer's ``max_steps`` in which the rate falls towards zero; the
            paper has none.

    Raises:
        ValueError: If ``warmup_steps`` or ``d_model`` is below 1, or ``cooldown_steps`` below 0.
        MisconfigurationException: If the module brings a learning rate scheduler of its own, or there is a cooldown and
            the trainer has no ``max_steps``.

    Example:
        >>> warmup = InverseSqrtWarmup(warmup_steps=4000, d_model=512)
        >>> print(f"{warmup.peak:.6f}", warmup.scale(1000), warmup.scale(4000), warmup.scale(16000))
        0.000699 0.25 1.0 0.5
    """

    def __init__(self, warmup_steps: int = 4000, d_model: int | None = None, cooldown_steps: int = 0) -> None:
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps must be at least 1 optimizer step, got {warmup_steps}")
        if d_model is not None and d_model < 1:
            raise ValueError(f"d_model must be at least 1 feature, got {d_model}")
        if cooldown_steps < 0:
            raise ValueError(f"cooldown_steps must be 0 or more optimizer steps, got {cooldown_steps}")
        self.warmup_steps = warmup_steps
        self.d_model = d_model
        self.cooldown_steps = cooldown_steps
        self._configured: list[float] = []  # the rate that each optimizer was made with
        self._peak_before: float | None = None  # that d_model gave to the run that is resumed
        self._share = 1.0  # what the cooldown has left of the rate

    @property
    def peak(self) -> float | None:
        """The highest rate that this schedule reaches, or None if each parameter group has its own."""
        return None if self.d_model is None else (self.d_model * self.warmup_steps) ** -0.5

    def scale(self, step: int) -> float:
        """The share of the peak that the rate has at an optimizer step, counted from 1."""
        return min(step / self.warmup_steps, math.sqrt(self.warmup_steps / step))

    def cooldown(self, step: int, max_steps: int) -> float:
        """The share of the rate that a cooldown leaves at an optimizer step, counted from 1, of ``max_steps``.

        Example:
            >>> warmup = InverseSqrtWarmup(cooldown_steps=3)
            >>> [warmup.cooldown(step, max_steps=10) for step in (7, 8, 9, 10)]
            [1.0, 0.75, 0.5, 0.25]
        """
        return min(1.0, max(0, max_steps - step + 1) / (self.cooldown_steps + 1)) if self.cooldown_steps else 1.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forgets an earlier training with this same object; what a checkpoint knows comes after."""
        if stage == "fit":
            self._configured, self._share, self._peak_before = [], 1.0, None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses to run beside another scheduler, which would overwrite the rates, or to cool down to no step.

        Tells of a ``d_model`` that is not the network's.
        """
        if trainer.lr_scheduler_configs:
            other = type(trainer.lr_scheduler_configs[0].scheduler).__name__
            raise MisconfigurationException(
                f"{type(self).__name__} sets the learning rate itself and cannot run beside {other}; remove one of "
                "the two: this callback, or the scheduler that configure_optimizers returns"
            )
        if self.cooldown_steps and trainer.max_steps < 1:
            raise MisconfigurationException(
                f"cooldown_steps={self.cooldown_steps} counts back from the last step: set the trainer's max_steps"
            )

        width = getattr(getattr(pl_module, "network", None), "d_model", None)
        if None not in (width, self.d_model) and width != self.d_model:
            rank_zero_info(
                f"the peak of the learning rate follows d_model={self.d_model}, but the network has d_model={width}: "
                "for the rate of the paper give the warm-up the same"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes each group's peak, unless a resumed optimizer brings it along.

        If the optimizer was made with another rate than the one of the checkpoint, the peaks change in proportion.
        """
        configured = [float(optimizer.defaults.get("lr", 0.0)) for optimizer in trainer.optimizers]
        chosen = [rate for rate in configured if rate != PAPER_RATE]  # which nobody has to have chosen
        if self.peak is not None and (other := [rate for rate in chosen if abs(rate / self.peak - 1) > 1e-3]):
            rank_zero_info(
                f"the peak of the learning rate is {self.peak:.3g}, by d_model={self.d_model} of the warm-up; the "
                f"optimizer's {other[0]:.3g} has no effect: without d_model it would be the peak"
            )
        for group in _param_groups(trainer):
            if self.peak is not None:
                group["initial_lr"] = self.peak
            group.setdefault("initial_lr", float(group["lr"]))
        if self.peak is None:
            for optimizer, made_with, now in zip(trainer.optimizers, self._configured, configured, strict=False):
                before = self._peak_before or made_with
                if before and now != before:
                    rank_zero_info(f"the peak of the learning rate is {now:g} from here on, and was {before:g}")
                    for group in optimizer.param_groups:
                        group["initial_lr"] *= now / before
        self._configured, self._peak_before = configured, self.peak
        self._tell_of_cooldown(trainer)
        self._set_rates(trainer)  # for whoever looks before the first batch

    def _tell_of_cooldown(self, trainer: L.Trainer) -> None:
        """Tells of one that begins with the run, and of one that a resumed run has gone through already."""
        if self.cooldown_steps >= trainer.max_steps > 0:
            rank_zero_info(
                f"the learning rate cools down from the first step on and stays low: cooldown_steps="
                f"{self.cooldown_steps} is not below max_steps={trainer.max_steps}; a short run needs a short cooldown"
            )
        share = self.cooldown(trainer.global_step + 1, trainer.max_steps)
        if self._share < 0.9 and share > 2 * self._share:
            rank_zero_info(
                f"the learning rate rises again, from {self._share:.2g} to {share:.2g} of its course without a "
                "cooldown, and what the cooldown was worth is lost until the next one; to train longer without that, "
                "go on from a checkpoint of before it"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tells of a cooldown that never came, or not all of it."""
        if self.cooldown_steps and trainer.global_step < trainer.max_steps:
            begin = max(0, trainer.max_steps - self.cooldown_steps)
            rank_zero_info(
                f"the training ended at step {trainer.global_step}, and was to cool down from step {begin} to "
                f"{trainer.max_steps}: set max_steps to where it shall end"
            )

    def state_dict(self) -> dict[str, Any]:
        """The learning rates that the optimizers were made with, the peak, and how far they have been cooled down."""
        return {"configured": self._configured, "share": self._share, "peak": self.peak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remembers all three, to notice that they are others now."""
        self._configured = list(state_dict["configured"])
        self._share = float(state_dict.get("share", 1.0))
        self._peak_before = state_dict.get("peak")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets the rate of the optimizer step that this batch belongs to."""
        self._set_rates(trainer)

    def _set_rates(self, trainer: L.Trainer) -> None:
        step = trainer.global_step + 1
        self._share = self.cooldown(step, trainer.max_steps)
        share = self.scale(step) * self._share
        for group in _param_groups(trainer):
            if isinstance(group["lr"], Tensor):  # compiled optimizers keep the rate on the device
                group["lr"].fill_(group["initial_lr"] * share)
            else:
                group["lr"] = group["initial_lr"] * share


def _param_groups(trainer: L.Trainer) -> list[dict[str, Any]]:
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
