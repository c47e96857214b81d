"""A signal that asks one of several processes to end stops all of them at the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException


class StopTogether(Callback):
    """Ends a training on several processes between two batches, the same two everywhere, when SIGTERM comes.

    A scheduler sends the signal to one process or to all of them, at any moment. Lightning's own handler then talks to
    the other processes at once, in the middle of whatever they are exchanging, so that a run hangs or some processes
    fail where others stop. This callback notes the signal only. Before each batch the processes tell each other
    whether one of them has been asked; if so, all of them raise, and a ``ModelCheckpoint`` with ``save_on_exception``
    writes the checkpoint. Validations are finished first. With a single process it does nothing.

    Raises:
        SIGTERMException: Before the next batch, on all processes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[StopTogether()], logger=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._is_asked = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the signal over; Lightning puts the handler of before the training back at its end."""
        self._is_asked = False
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Asks all processes."""
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self._is_asked, all=False):
            raise SIGTERMException

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_asked = True
