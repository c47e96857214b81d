"""A signal that asks one of several processes to end stops all of them at the same step."""

from __future__ import annotations

import signal
import threading
from functools import partial
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

_NUMBERS = (signal.SIGTERM, signal.SIGINT)  # Ctrl-C is heeded before a scheduler's, as the larger number


class StopTogether(Callback):
    """Ends a training on several processes between two batches, the same two everywhere, when SIGTERM or Ctrl-C comes.

    A scheduler sends the signal to one process or to all of them, at any moment; the keyboard's interrupt reaches those
    of one machine. Lightning's own handler then talks to the other processes at once, in the middle of whatever they
    are exchanging, so that a run hangs or some processes fail where others stop. This callback notes the signal only.
    Before each step the processes tell each other whether one of them has been asked; if so, all of them raise, and a
    ``StepCheckpoint`` with ``save_on_exception`` writes the checkpoint. Validations are finished first, and in the very
    last step the training ends as it would; a second Ctrl-C ends its process at once. With a single process it does
    nothing.

    Raises:
        SIGTERMException: Before the next batch, on all processes.
        KeyboardInterrupt: The same, after Ctrl-C.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[StopTogether()], logger=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._asked = 0  # what of _NUMBERS has come, counted from 1
        self._before: Any = None  # what Ctrl-C did

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the signals over; Lightning puts its handler of SIGTERM back at the end of the training."""
        self._asked = 0
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)
            self._before = signal.signal(signal.SIGINT, self._note)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Asks all processes, once a step: each time they wait for each other."""
        if trainer.world_size == 1 or batch_idx % trainer.accumulate_grad_batches:
            return
        anyone = partial(trainer.strategy.reduce_boolean_decision, all=False)
        if not anyone(self._asked > 0):
            return
        stop = KeyboardInterrupt() if anyone(self._asked > 1) else SIGTERMException()
        stop.is_everywhere = True  # type: ignore[union-attr]
        raise stop

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Gives Ctrl-C back."""
        if self._before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        asked = _NUMBERS.index(signal.Signals(number)) + 1
        if number == signal.SIGINT and self._asked == asked:
            raise KeyboardInterrupt
        self._asked = max(asked, self._asked)
