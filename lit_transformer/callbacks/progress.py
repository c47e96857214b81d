"""The progress bar of the command line: what counts in an endless stream, without epochs."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from lit_transformer.data.filters import in_words

_PERIOD = 300.0  # seconds whose steps tell the rate; in rich's 30 there may be no two, where a step is of many batches


class TrainingProgress(RichProgressBar):
    """A progress bar that counts optimizer steps: an endless stream has no epochs to show.

    Where ``max_epochs`` ends the training, it shows the batches of each epoch, as Lightning's own bars do. Shows the
    loss, the speed in real tokens per second, the latest validation scores, and how many rows of the text the data
    module has left out, for which reasons.
    """

    @property
    def counts_steps(self) -> bool:
        """Whether the training ends after so many optimizer steps, and not after epochs."""
        return self.trainer.max_epochs in (None, -1) and self.trainer.max_steps > 0

    @property
    def total_train_batches(self) -> int | float:
        """What the bar counts up to: optimizer steps, those before a resumed run began included, or batches."""
        return self.trainer.max_steps if self.counts_steps else super().total_train_batches

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins the bar."""
        super().on_train_start(trainer, pl_module)
        if self.progress is not None:
            self.progress.speed_estimate_period = _PERIOD

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Goes on with the bar if it counts steps, else begins another."""
        if self.counts_steps and self.train_progress_bar_id is not None:
            return
        super().on_train_epoch_start(trainer, pl_module)
        if self.counts_steps:
            self._update(self.train_progress_bar_id, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows how many steps there have been: several batches may make one."""
        last = trainer.global_step - 1 if self.counts_steps else batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, last)

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs in (None, -1):
            return "training"
        return super()._get_train_description(current_epoch)

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics to show, without the logger's version number, and the rows left out if there are any."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        dropped = getattr(getattr(trainer, "datamodule", None), "dropped", None)
        if dropped:
            metrics["left out"] = in_words(dropped)
        return metrics
