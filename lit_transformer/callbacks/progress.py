"""The progress bar of the command line: what counts in an endless stream, without epochs."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from lit_transformer.data.filters import in_words


class TrainingProgress(RichProgressBar):
    """A progress bar that counts steps: an endless stream has no epochs to show.

    Shows the loss, the speed in real tokens per second, the latest validation scores, and how many rows of the text
    the data module has left out, for which reasons.
    """

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
