"""Dynamic batching: requests that wait together are translated together, within bounds of number and time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from lit_transformer.serving.requests import Job, Reply, RequestError
from lit_transformer.serving.workers import Worker

logger = logging.getLogger(__name__)
_STOPPED = "the server is being stopped"
_MARGIN = 1.5  # some batches take longer than the mean
_GRACE = 1.0  # seconds in which a worker notices that nobody waits for its batch any more
_LONGEST_RETRY = 60  # seconds that a client is told to wait at most


@dataclass(eq=False)
class _Waiting:
    job: Job
    reply: asyncio.Future[Reply]
    places: int = field(init=False)

    def __post_init__(self) -> None:
        self.places = len(self.job.texts)

    def refuse(self, refusal: RequestError) -> None:
        if not self.reply.done():
            self.reply.set_exception(refusal)


class Batcher:
    """Queues jobs, hands them to workers in batches, and refuses what it cannot do in time.

    While all workers are busy, jobs gather; the next worker that is free takes as many as fit into a batch. A free
    worker waits ``batch_timeout`` for company. No client waits longer than ``timeout``: then it is told to come again,
    whatever the workers are doing, and its job leaves the queue. Jobs that would come too late, as far as one can tell,
    are refused before they cost anything. Workers know the ``deadline`` of each job and do not begin what is past it.
    One that is busy with a batch for ``timeout`` and a moment longer is taken to be stuck and replaced.

    Args:
        workers: What translates, side by side.
        max_batch_size: Texts that are translated together; a single job may have more.
        batch_timeout: Seconds that a free worker waits for a batch to fill.
        max_queue: Texts that may wait; further ones are refused.
        timeout: Seconds from the arrival of a job to its answer, and for a worker from a batch to its answers.
    """

    def __init__(
        self, workers: Sequence[Worker], max_batch_size: int, batch_timeout: float, max_queue: int, timeout: float
    ) -> None:
        self.workers = list(workers)
        self.max_batch_size = max_batch_size
        self.batch_timeout = batch_timeout
        self.max_queue = max_queue
        self.timeout = timeout
        self.num_ready = 0
        self.counts = {"answered": 0, "refused": 0, "timed_out": 0, "batches": 0}
        self._queue: deque[_Waiting] = deque()
        self._under_way: dict[Worker, list[_Waiting]] = {}
        self._places = 0  # texts in the queue
        self._seconds_per_text = 0.05  # a moving mean
        self._arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closing = False

    async def start(self) -> list[dict[str, Any]]:
        """Starts the workers; comes back when all can translate, and stops all if one cannot.

        Returns:
            What each worker tells about its model.
        """
        self._arrived = asyncio.Event()  # belongs to the event loop of now
        self._is_closing = False
        try:
            about = await asyncio.gather(*(worker.start() for worker in self.workers))
        except BaseException:
            for worker in self.workers:
                worker.stop()
            raise
        self.num_ready = len(self.workers)
        self._tasks = [asyncio.create_task(self._serve(worker)) for worker in self.workers]
        return about

    async def close(self) -> None:
        """Ends the workers; jobs that still wait are refused."""
        self._is_closing = True  # an answer that comes at this moment takes the place of the cancellation
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiting in self._queue:
            waiting.refuse(self._later(_STOPPED))
        self._queue.clear()
        for worker in self.workers:
            worker.stop()
        self.num_ready = 0

    async def submit(self, job: Job) -> Reply:
        """The reply to a job.

        Raises:
            RequestError: If the queue is full (429), or there is no answer in time, or none to be expected, or the
                worker died (503).
        """
        job = job._replace(deadline=time.monotonic() + self.timeout)
        waiting = _Waiting(job, asyncio.get_running_loop().create_future())
        if self._places + waiting.places > self.max_queue and self._places:
            self.counts["refused"] += 1
            sentence = f"the server is busy: {self._places} texts are waiting already; try again later"
            raise RequestError(HTTPStatus.TOO_MANY_REQUESTS, sentence, self._retry())
        if self._places and self._wait() + self._expected(self._places + waiting.places) > self.timeout:
            self.counts["refused"] += 1
            raise self._too_late()
        self._queue.append(waiting)
        self._places += waiting.places
        self._arrived.set()
        try:
            return await asyncio.wait_for(waiting.reply, self.timeout)
        except TimeoutError:
            self.counts["timed_out"] += 1
            raise self._later(f"there was no answer within {self.timeout:g} seconds; try again later") from None
        finally:
            if waiting in self._queue:  # nobody waits for it any more
                self._queue.remove(waiting)
                self._places -= waiting.places

    def _later(self, sentence: str) -> RequestError:
        return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, sentence, self._retry())

    def _too_late(self) -> RequestError:
        return self._later(f"the server is busy and would not answer within {self.timeout:g} seconds; try again later")

    def _wait(self) -> float:
        """Seconds that the queue of now will probably take."""
        return self._places * self._seconds_per_text / max(1, self.num_ready)

    def _expected(self, places: int) -> float:
        """Seconds to set aside for the next batch, if so many texts wait.

        More than half of the timeout it never is: who comes to a free worker is served, whatever was measured before.
        """
        return min(_MARGIN * self._seconds_per_text * min(places, self.max_batch_size), self.timeout / 2)

    def _retry(self) -> dict[str, str]:
        """When it is worth to come again: once the queue of now is done."""
        seconds = math.ceil(self._wait())
        return {"Retry-After": str(min(max(seconds, 1), _LONGEST_RETRY))}

    async def _serve(self, worker: Worker) -> None:
        """The life of a worker: wait for jobs, answer them, come back."""
        while not self._is_closing:
            await self._company()
            batch = self._take()
            if batch:
                await self._answer(worker, batch)

    async def _company(self) -> None:
        """Waits for the first job, and then a moment for others."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        end = time.monotonic() + self.batch_timeout
        while self._places < self.max_batch_size and (left := end - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        """The jobs that have waited longest, as many as fit into a batch; those that would be late are refused.

        All want a search like that of the first: with searches of many kinds in one batch, each would wait for all.
        """
        batch: list[_Waiting] = []
        size = 0
        latest = time.monotonic() + self._expected(self._places)
        for waiting in list(self._queue):
            if batch and size + waiting.places > self.max_batch_size:
                break
            if batch and waiting.job.wishes != batch[0].job.wishes:
                continue
            self._queue.remove(waiting)
            self._places -= waiting.places
            if waiting.reply.done():  # its client has gone a moment ago
                continue
            if waiting.job.deadline < latest:
                self.counts["timed_out"] += 1
                waiting.refuse(self._too_late())
                continue
            size += waiting.places
            batch.append(waiting)
        return batch

    async def _answer(self, worker: Worker, batch: list[_Waiting]) -> None:
        begin = time.monotonic()
        self._under_way[worker] = batch
        for waiting in batch:
            waiting.reply.add_done_callback(lambda _: self._look_around(worker, batch))
        try:  # a batch of jobs that have waited long gets as much time as any: its worker is not to blame
            patience = self.timeout + min(_GRACE, self.timeout / 2)
            replies = await asyncio.wait_for(worker.answer([waiting.job for waiting in batch]), patience)
        except TimeoutError:  # all clients of the batch have been told so by now
            logger.warning("a batch of %d requests took longer than %g s and was given up", len(batch), self.timeout)
            await self._replace(worker, batch)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.refuse(self._later(_STOPPED))
            raise
        except BrokenExecutor:
            logger.warning("a worker process died over a batch of %d requests; a new one is started", len(batch))
            await self._replace(worker, batch)
        except Exception:
            logger.exception("a batch failed")
            for waiting in batch:
                waiting.refuse(RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log says why"))
        else:
            self._hand_over(batch, replies, time.monotonic() - begin)
        finally:
            del self._under_way[worker]

    def _look_around(self, worker: Worker, batch: list[_Waiting]) -> None:
        """Lets the worker forget its batch once all clients have gone or been refused; it may have another by now."""
        if self._under_way.get(worker) is batch and all(waiting.reply.done() for waiting in batch):
            worker.forget()

    def _hand_over(self, batch: list[_Waiting], replies: list[Reply], seconds: float) -> None:
        """Gives each client that is still there its reply; without any, a batch may have been cut short."""
        waited_for = [waiting for waiting in batch if not waiting.reply.done()]
        for waiting, reply in zip(batch, replies, strict=True):
            if not waiting.reply.done():
                waiting.reply.set_result(reply)
        self.counts["batches"] += 1
        self.counts["answered"] += len(waited_for)
        pace = seconds / sum(waiting.places for waiting in batch)
        if not waited_for and pace < self._seconds_per_text:
            return  # as slow as that it was at least
        self._seconds_per_text += 0.2 * (pace - self._seconds_per_text)

    async def _replace(self, worker: Worker, batch: list[_Waiting]) -> None:
        """A new process for one that died or does not come back."""
        self.num_ready -= 1
        for waiting in batch:
            waiting.refuse(self._later("the worker process died over this request; try again later"))
        worker.stop()
        pause = 1.0
        while True:
            try:
                await worker.start()
                break
            except Exception:
                logger.exception("a worker process could not be started; it is tried again in %g s", pause)
                worker.stop()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_RETRY)
        self.num_ready += 1
