"""The progress bar of the command line: what counts in an endless stream, without epochs."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar


class TrainingProgress(RichProgressBar):
    """A progress bar that counts steps: an endless stream has no epochs to show.

    Shows the loss, the speed in real tokens per second and the latest validation scores.
    """

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs in (None, -1):
            return "training"
        return super()._get_train_description(current_epoch)

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics to show, without the logger's version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
