"""Processes that translate: one model each, replaced when they die or take too long."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from lit_transformer.cli import speak
from lit_transformer.serving.model import ModelSettings, ServedModel
from lit_transformer.serving.requests import Job, Limits, Reply

_served: ServedModel  # of a worker process
_forgotten: ctypes.c_int64  # of a worker process, shared with the server: number of the last batch nobody waits for


class Worker(Protocol):
    """What the batcher hands batches to, one at a time."""

    async def start(self) -> dict[str, Any]:
        """Comes back when the worker can answer, with what clients may know about the model."""

    async def answer(self, jobs: Sequence[Job]) -> list[Reply]:
        """A reply for each job; raises ``BrokenExecutor`` if the worker died over them."""

    def forget(self) -> None:
        """Tells the worker that nobody waits for the batch under way, which it may give up."""

    def stop(self) -> None:
        """Ends the worker, whatever it is doing; it may be started again."""


class ProcessWorker:
    """A process of its own that has loaded the model: what happens to it does not happen to the server.

    Args:
        settings: The model to load.
        limits: What a job may ask for.
    """

    def __init__(self, settings: ModelSettings, limits: Limits) -> None:
        self._settings, self._limits = settings, limits
        self._pool: ProcessPoolExecutor | None = None
        self._number = 0  # of the batch under way, from 1
        self._context = multiprocessing.get_context("spawn")  # a fork would inherit threads, sockets and CUDA
        self._forgotten: ctypes.c_int64 = self._context.RawValue(ctypes.c_int64, 0)

    async def start(self) -> dict[str, Any]:
        """Starts the process and waits until it has loaded the model and translated with it.

        Raises:
            InputError: If the model cannot be loaded, or cannot translate as it was asked to.
        """
        self._pool = ProcessPoolExecutor(1, self._context, _begin, (os.getpid(), self._forgotten))
        with _deaf_children():
            ready = self._pool.submit(_load, self._settings, self._limits)
        return await asyncio.wrap_future(ready)

    async def answer(self, jobs: Sequence[Job]) -> list[Reply]:
        """The replies of the process."""
        assert self._pool is not None, "answer() comes after start()"
        self._number += 1
        return await asyncio.get_running_loop().run_in_executor(self._pool, _answer, list(jobs), self._number)

    def forget(self) -> None:
        """Ends the search under way before its next step."""
        self._forgotten.value = self._number

    def stop(self) -> None:
        """Ends the process, also in the middle of a batch."""
        pool, self._pool = self._pool, None
        if pool is not None:
            processes = list((getattr(pool, "_processes", None) or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes begun here ignore Ctrl-C from their first moment on: it is the server that ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin(parent: int, forgotten: ctypes.c_int64) -> None:
    """Makes a new process a worker, which ends with the server, however that ends."""
    global _forgotten
    _forgotten = forgotten
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
    speak()


def _load(settings: ModelSettings, limits: Limits) -> dict[str, Any]:
    """Loads and describes the model of this process; what it raises reaches the server, unlike that of ``_begin``."""
    global _served
    torch.set_num_threads(settings.num_threads)
    _served = ServedModel.load(settings, limits)
    _served.try_out()
    return _served.describe()


def _answer(jobs: list[Job], number: int) -> list[Reply]:
    return _served.answer(jobs, lambda: _forgotten.value >= number)
