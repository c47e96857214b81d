"""Processes that search side by side, one core each."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lit_transformer.interfaces import Hypothesis, InputError, TranslationNetwork

_Found = list[list[Hypothesis]]
_Searches = Callable[..., _Found]  # as a Search is called
Prefixes = list[list[int]] | None  # of target tokens, one for each row of a batch
_MOST = 16  # workers that are started without being asked for
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of the container that this process runs in
_searcher: Callable[..., _Found]  # of a worker process


def possible_workers() -> int:
    """How many workers can search side by side: one for each core that this process may use, up to 16, on Linux only.

    A container with a quota may use as many cores as that pays for. One worker in a daemonic process, such as those of
    ``multiprocessing.Pool``: it may have no children.
    """
    if multiprocessing.current_process().daemon or sys.platform != "linux":
        return 1
    return min(len(os.sched_getaffinity(0)), cores_of_quota(_QUOTA) or _MOST, _MOST)


def cores_of_quota(file: Path) -> int | None:
    """How many cores a container's quota keeps busy, a started one counting as whole; None if there is none.

    Args:
        file: ``cpu.max`` of cgroup v2: microseconds in each period, or ``max``, and the period.

    Example:
        >>> cores_of_quota(Path("there/is/none"))
    """
    try:
        quota, period = file.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # "max" is no number
        return None


class SearchWorkers:
    """Several processes, forked from this one, that share the network's memory and search one batch each.

    A core that works on a batch of its own does more than two cores that share one: they need not wait for each other
    after every product. The hypotheses are those that a search in this process finds.

    Args:
        search: How to decode.
        network: On the CPU, in evaluation mode; its weights are neither copied nor changed.
        num_workers: Number of processes, each with one thread.

    Raises:
        InputError: If processes cannot be forked here, or one of them has died.

    Example:
        >>> from lit_transformer.decoding import GreedySearch
        >>> from lit_transformer.nn import Transformer
        >>> network = Transformer(vocab_size=32, num_layers=1, d_model=16, d_ff=32, num_heads=2).eval()
        >>> workers = SearchWorkers(GreedySearch(), network, num_workers=2)  # doctest: +SKIP
        >>> workers.submit(torch.tensor([[5, 6, 3]]))()  # doctest: +SKIP
    """

    def __init__(self, search: _Searches, network: TranslationNetwork, num_workers: int) -> None:
        if sys.platform != "linux":
            raise InputError(f"{num_workers} workers need Linux; leave num_workers out to search in one process")
        if multiprocessing.current_process().daemon:
            raise InputError(
                f"{num_workers} workers cannot be started from a daemonic process, such as those of "
                "multiprocessing.Pool; leave num_workers out to search in one process"
            )
        context = multiprocessing.get_context("fork")  # passes everything on as it is, without a copy
        self._pool = ProcessPoolExecutor(num_workers, context, _begin, (search, network, os.getpid()))

    def submit(self, src: Tensor, prefixes: Prefixes = None) -> Callable[[], _Found]:
        """Queues the source ids ``(B, S)``, and what their translations must begin with, if that is given.

        Returns:
            A function that waits for the hypotheses.
        """
        with warnings.catch_warnings():  # about threads: torch's are idle, and a worker uses none of them
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork.*", DeprecationWarning)
            try:
                return _waiter(self._pool.submit(_search, src.tolist(), prefixes))
            except BrokenProcessPool:
                raise InputError(_DIED) from None
            except OSError as error:
                raise InputError(f"no worker process can be started: {error.strerror}; try fewer workers") from None

    def close(self) -> None:
        """Forgets what is queued and ends the processes."""
        self._pool.shutdown(cancel_futures=True)


_DIED = "a worker process has died, perhaps for lack of memory; try fewer workers or a smaller max_tokens"


def _waiter(future: Future[_Found]) -> Callable[[], _Found]:
    def wait() -> _Found:
        try:
            return future.result()
        except BrokenProcessPool:
            raise InputError(_DIED) from None

    return wait


def _begin(search: _Searches, network: TranslationNetwork, parent: int) -> None:
    """Makes a forked process a worker: one thread, and no life of its own when the parent or the user stops."""
    global _searcher
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent speaks
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    _searcher = partial(search, network)


def _end_with(parent: int) -> None:
    """Ends this process with its parent, so that one that is killed leaves nobody behind.

    Linux would do it by itself, but with the thread that has forked, which may end long before its process.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@torch.inference_mode()
def _search(rows: list[list[int]], prefixes: Prefixes) -> _Found:
    return _searcher(torch.tensor(rows), **({} if prefixes is None else {"prefixes": prefixes}))
