"""A moving average of the weights that keeps them apart from those in training, however a run ends."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lit_transformer.errors import InputError
from lit_transformer.module import LitTransformer


def require_whole_weights(average: WeightAveraging, strategy: Strategy) -> None:
    """Refuses to average weights that a strategy divides over processes.

    Raises:
        InputError: If it does.
    """
    if isinstance(strategy, (FSDPStrategy, ModelParallelStrategy)):
        raise InputError(
            f"{type(average).__name__} cannot average weights that {type(strategy).__name__} divides over processes; "
            "leave it out of trainer.callbacks, or set trainer.strategy to ddp"
        )


class MovingAverage(EMAWeightAveraging):
    """An exponential moving average (EMA) of the weights, which is what is validated, saved and translated with.

    Checkpoints hold the average as their weights, and those in training beside it as ``current_model_state``, so that a
    run goes on exactly where it was. So does one that ended with an epoch or after a time, and one that was interrupted
    in a validation; with Lightning's ``EMAWeightAveraging`` alone these two lose or exchange them. All callbacks
    see the average from the first batch of a validation to its ``on_validation_epoch_end``. After training the module
    has the average. Before the first step of ``update_starting_at_step`` all that is said of the average is true of the
    weights in training.

    Source: Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging", with the exponential
    weights of Tarvainen and Valpola 2017, "Mean teachers are better role models", https://arxiv.org/abs/1703.01780.

    Args:
        decay: How much of the average stays at each step, from 0 to 1; 0.999 looks back about 1000 steps.
        **kwargs: Other arguments of ``EMAWeightAveraging``, such as ``update_every_n_steps`` or ``device``.

    Raises:
        MisconfigurationException: If checkpoints are to hold the weights alone, which would be those in training.
        InputError: If the strategy divides weights over processes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[MovingAverage(decay=0.99)], logger=False, accelerator="cpu")
    """

    def __init__(self, decay: float = 0.999, **kwargs: Any) -> None:
        super().__init__(decay=decay, **kwargs)
        self._decay = decay
        self._is_swapped = False  # whether the module has the average, and the average model the weights in training

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begins the average with the weights as they are."""
        if stage == "fit" and any(getattr(one, "save_weights_only", False) for one in trainer.checkpoint_callbacks):
            raise MisconfigurationException(
                f"with save_weights_only Lightning would save the weights in training, not those that "
                f"{type(self).__name__} averages and validates: leave one of the two out"
            )
        if stage == "fit":
            require_whole_weights(self, trainer.strategy)
        with warnings.catch_warnings():  # of weights that are not divided: they are not meant to be
            warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback")
            super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._is_swapped = False
            self._latest_update_step, self._latest_update_epoch = 0, -1  # perhaps those of an earlier training

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the average to the device of the module, which ``setup`` does not know yet."""
        if self._average_model is None:
            return
        average = self._average_model.module
        if self._device is None:
            average.to(pl_module.device)  # without the counter beside it, which the host asks for at each step
        pairs = zip(average.parameters(), pl_module.parameters(), strict=True)
        if all((one.device, one.dtype) == (other.device, other.dtype) for one, other in pairs):
            all_at_once = get_ema_multi_avg_fn(self._decay)  # type: ignore[no-untyped-call]
            self._average_model.multi_avg_fn = all_at_once  # else one weight after the other, as Lightning has it

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the module the average."""
        self._swap(trainer, pl_module, True)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the average where it is, for callbacks that come later and look at the weights too."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the module the weights in training again."""
        self._swap(trainer, pl_module, False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the module the average; the weights in training are kept for a checkpoint that is still to come."""
        self._swap(trainer, pl_module, True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Gives the module the weights in training again, as after an interruption outside validation."""
        self._swap(trainer, pl_module, False)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stores the average as the weights, and those in training beside it, whichever the module has now."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is not None and not self._average_model.n_averaged:
            checkpoint["state_dict"] = checkpoint["current_model_state"]
        if self._is_swapped:
            average, training = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, training

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Goes on with both to train; all else takes the average, which the module has by then."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _swap(self, trainer: L.Trainer, pl_module: L.LightningModule, to_average: bool) -> None:
        """Exchanges the two, unless the module has the right one; after training it keeps the average."""
        if self._average_model is None or trainer.state.fn != TrainerFn.FITTING or self._is_swapped == to_average:
            return
        if not self._average_model.n_averaged:  # with update_starting_at_step there is no average yet
            return
        self._swap_models(pl_module)
        self._is_swapped = to_average
        if isinstance(pl_module, LitTransformer):
            pl_module.notice_new_weights()
