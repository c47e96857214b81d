"""How fast training goes, in tokens per second."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Speed:
    """Counts the tokens of batches, and tells how many went by in a second since it last told.

    The clock starts behind the first batch, which waits for data and compilers, and after ``stop`` behind the next one.
    """

    def __init__(self) -> None:
        self._tokens: list[Tensor] = []  # of the batches since the clock was started
        self._start: float | None = None
        self._step = 0

    def stop(self) -> None:
        """Leaves out the time from now to the end of the next batch."""
        self._tokens, self._start = [], None

    def count(self, tokens: Tensor, step: int, every: int) -> float | None:
        """Adds a batch; tells the tokens per second if it completes one of each ``every`` steps, else None.

        Args:
            tokens: Number of tokens in the batch; looked at only when the speed is told, which waits for the device.
            step: Optimizer steps that are done.
            every: How often to tell, in steps.
        """
        self._tokens.append(tokens)
        is_due = step % every == 0 and step > self._step
        if self._start is not None and not is_due:
            return None
        total, now = int(torch.stack(self._tokens).sum()), time.perf_counter()
        speed = None if self._start is None else total / (now - self._start)
        self._tokens, self._start, self._step = [], now, step
        return speed
