"""The callback that knows which batches have been trained on, and keeps checkpoints on whole optimizer steps."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lit_transformer.data.cursor import Cursor
from lit_transformer.data.stream import batch_seed
from lit_transformer.interfaces import TranslationBatch


class _Streaming(Protocol):
    seed: int
    cursor: Cursor

    @property
    def dropped(self) -> Counter[str]: ...


class _Done(NamedTuple):
    """What a run has done at the end of an optimizer step, or at the beginning of an epoch.

    ``batches`` counts those of all epochs, ``in_epoch`` those of the epoch that the next batch belongs to.
    """

    steps: int
    batches: int
    in_epoch: int
    ends_epoch: bool


class StreamPosition(Callback):
    """Notes where the stream stands after each optimizer step, and seeds dropout by the number of the batch.

    A data module cannot do that itself: what a loader has handed out is not yet trained on, and checkpoints are
    written before the hooks of the module. The data module puts this callback in front of all others.

    A checkpoint that is written between the micro-batches of a step, because the run is interrupted, has to stop or
    validates just there, lacks their gradients. It is therefore put back to the last whole step, and a run that goes
    on from it trains on the micro-batches again. An epoch that a run has stopped in is not over for the next one.

    Args:
        data: The data module to tell.
    """

    def __init__(self, data: _Streaming) -> None:
        self._data = data
        self._done: _Done | None = None  # until the training begins: a resumed run may fail before
        self._is_interrupted = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes where the run begins."""
        self._is_interrupted, self._done = False, self._now(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes that the count of batches in the epoch begins anew, and that a checkpoint belongs to this epoch."""
        self._done = self._now(trainer)._replace(ends_epoch=False)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Makes dropout a function of seed, batch number and process, so that a resumed run repeats it."""
        torch.manual_seed(batch_seed(self._data.seed, trainer.fit_loop.total_batch_idx, trainer.global_rank))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: TranslationBatch, batch_idx: int
    ) -> None:
        """Takes over the place that the batch carries, if it completes an optimizer step; logs the rows left out."""
        cursor = getattr(batch, "cursor", None)
        if cursor is None:  # other data in the same trainer, whose checkpoints are Lightning's business
            self._done = None
        elif self._done is not None and trainer.global_step != self._done.steps:
            self._data.cursor = cursor
            self._done = self._now(trainer)
        dropped = self._data.dropped.total()
        if dropped:
            pl_module.log("train/dropped_rows", torch.tensor(float(dropped)), batch_size=1)  # read each time

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remembers that checkpoints written from now on may hold half a step."""
        self._is_interrupted = True

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the counters back to the last whole step, unless that is where they stand."""
        if self._done is None:  # nothing was trained: the counters are those that the run would go on from
            return
        loop = checkpoint["loops"]["fit_loop"]
        progress, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
        is_cut_short = not progress["is_last_batch"] and epochs["current"]["processed"] == epochs["current"]["ready"]
        is_between_steps = progress["total"]["ready"] != self._done.batches
        if self._is_interrupted or is_cut_short or is_between_steps:
            for counts in (epochs["total"], epochs["current"]) if is_cut_short else ():
                counts["processed"] = counts["completed"] = counts["ready"] - 1
            _set(progress, self._done.batches, self._done.in_epoch)
            progress["is_last_batch"] = self._done.ends_epoch
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] = max(0, self._done.steps - 1)
        elif progress["is_last_batch"] and progress["total"]["completed"] < progress["total"]["ready"]:
            _set(progress, self._done.batches, 0)  # the next batch is the first of its epoch: Lightning overlooks that

    def _now(self, trainer: L.Trainer) -> _Done:
        loop = trainer.fit_loop.epoch_loop
        progress, ends_epoch = loop.batch_progress, loop._num_ready_batches_reached()
        in_epoch = 0 if ends_epoch else progress.current.ready
        return _Done(trainer.global_step, progress.total.ready, in_epoch, ends_epoch)


def _set(progress: dict[str, Any], batches: int, in_epoch: int) -> None:
    """Sets the counts as in all checkpoints of a step, which are written before its batch counts as completed."""
    for name, done in (("total", batches), ("current", in_epoch)):
        counts = progress[name]
        counts.update(dict.fromkeys(counts, done))
        counts["completed"] = done - 1 if batches else 0
