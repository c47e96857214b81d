"""Checkpoints in a rhythm of steps, and one of the very last step."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class StepCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint`` that also writes one at the end of the training, whatever its rhythm.

    With ``every_n_train_steps=1500`` and ``max_steps=100000`` Lightning's own would end with step 99,000.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes a checkpoint if it is time for one, or if this was the last step."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == trainer.max_steps:  # here rather than at the end: it is like all others, resumable
            self._write_last_step(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes a checkpoint if the training ended otherwise: with an epoch, after a time, or early."""
        self._write_last_step(trainer)
        super().on_train_end(trainer, pl_module)

    def _write_last_step(self, trainer: L.Trainer) -> None:
        if self._should_skip_saving_checkpoint(trainer):  # such as one that is written already
            return
        metrics = self._monitor_candidates(trainer)
        if self.monitor in (None, *metrics):
            self._save_topk_checkpoint(trainer, metrics)
        if self._last_global_step_saved != trainer.global_step:  # not among the best, but the last
            self._save_checkpoint(trainer, self.format_checkpoint_name(metrics))
        self._save_last_checkpoint(trainer, metrics)
