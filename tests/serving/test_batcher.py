"""Bounds of number and time, with workers that are slow, stuck or dead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

import pytest

from lit_transformer.interfaces import InputError
from lit_transformer.serving.batcher import Batcher
from lit_transformer.serving.requests import Job, Reply, RequestError


class ScriptedWorker:
    """Answers each batch with what the next function of a script does; afterwards at once."""

    def __init__(self, *script: Callable[[], Awaitable[None]]) -> None:
        self.script = list(script)
        self.batches: list[list[str]] = []
        self.starts = self.stops = 0
        self.forgotten: list[int] = []  # after how many batches it was told that nobody waits

    async def start(self) -> dict[str, Any]:
        self.starts += 1
        return {"number": self.starts}

    async def answer(self, jobs: Sequence[Job]) -> list[Reply]:
        self.batches.append([text for job in jobs for text in job.texts])
        if self.script:
            await self.script.pop(0)()
        return [Reply(200, "text/plain", " ".join(job.texts).encode()) for job in jobs]

    def forget(self) -> None:
        self.forgotten.append(len(self.batches))

    def stop(self) -> None:
        self.stops += 1


async def forever() -> None:
    await asyncio.Event().wait()


async def die() -> None:
    raise BrokenExecutor("gone")


async def fail() -> None:
    raise RuntimeError("secret detail")


def slowly(seconds: float) -> Callable[[], Awaitable[None]]:
    return lambda: asyncio.sleep(seconds)


def play(batcher: Batcher, *jobs: Job) -> list[Reply | BaseException]:
    """Submits all jobs at once, in this order; replies or refusals in the same order."""

    async def everything() -> list[Reply | BaseException]:
        await batcher.start()
        try:
            return await asyncio.gather(*(batcher.submit(job) for job in jobs), return_exceptions=True)
        finally:
            await batcher.close()

    return asyncio.run(everything())


def batcher_of(worker: ScriptedWorker, **options: float) -> Batcher:
    chosen = {"max_batch_size": 4, "batch_timeout": 0.01, "max_queue": 8, "timeout": 5.0, **options}
    return Batcher([worker], **chosen)  # type: ignore[arg-type]


def statuses(replies: Sequence[Reply | BaseException]) -> list[int]:
    return [reply.status for reply in replies if isinstance(reply, Reply | RequestError)]


def jobs(count: int, texts: int = 1) -> list[Job]:
    return [Job(tuple(f"{number}.{text}" for text in range(texts))) for number in range(count)]


def test_batches_are_full_but_not_fuller_and_in_order() -> None:
    worker = ScriptedWorker()
    replies = play(batcher_of(worker), *jobs(7))
    assert [reply.body.decode() for reply in replies if isinstance(reply, Reply)] == [
        f"{number}.0" for number in range(7)
    ]
    assert worker.batches == [["0.0", "1.0", "2.0", "3.0"], ["4.0", "5.0", "6.0"]]


def test_a_batch_wants_one_kind_of_search_and_the_oldest_comes_first() -> None:
    worker = ScriptedWorker()
    wishes: list[dict[str, Any]] = [
        {},
        {"no_repeat_ngram_size": 3},
        {"n_best": 2},  # which is searched for beside the others
        {"max_extra_length": 5},
        {"no_repeat_ngram_size": 3},
        {"no_unknown": True},
    ]
    given = [job._replace(**wish) for job, wish in zip(jobs(6), wishes, strict=True)]
    replies = play(batcher_of(worker), *given)
    assert [reply.body.decode() for reply in replies if isinstance(reply, Reply)] == [f"{n}.0" for n in range(6)]
    assert worker.batches == [["0.0", "2.0"], ["1.0", "4.0"], ["3.0"], ["5.0"]]


def test_a_job_larger_than_a_batch_goes_alone() -> None:
    worker = ScriptedWorker()
    assert statuses(play(batcher_of(worker, max_queue=100), *jobs(2, texts=6))) == [200, 200]
    assert [len(batch) for batch in worker.batches] == [6, 6]


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    worker = ScriptedWorker(slowly(0.1))
    replies = play(batcher_of(worker), *jobs(11))
    assert statuses(replies) == [200] * 8 + [429] * 3
    for reply in replies[8:]:
        assert isinstance(reply, RequestError)
        assert "busy" in reply.sentence
        assert 1 <= int(reply.headers["Retry-After"]) <= 60


def test_a_stuck_worker_is_replaced_and_its_clients_hear_in_time(caplog: pytest.LogCaptureFixture) -> None:
    worker = ScriptedWorker(forever)
    batcher = batcher_of(worker, timeout=0.2, max_batch_size=1)

    async def story() -> list[int]:
        await batcher.start()
        first = await asyncio.gather(batcher.submit(Job(("a",))), return_exceptions=True)
        await asyncio.sleep(0.05)
        second = await asyncio.gather(batcher.submit(Job(("b",))), return_exceptions=True)
        await batcher.close()
        return statuses([*first, *second])

    assert asyncio.run(story()) == [503, 200]
    assert worker.starts == 2
    assert "given up" in caplog.text


def test_a_job_that_has_waited_too_long_is_not_computed() -> None:
    worker = ScriptedWorker(slowly(0.25))
    replies = play(batcher_of(worker, timeout=0.2, max_batch_size=1, batch_timeout=0), *jobs(2))
    assert statuses(replies) == [503, 503]
    assert worker.batches == [["0.0"]]


def test_the_time_of_a_request_is_its_own_whatever_the_worker_does() -> None:
    """Two come one after the other while a batch takes long: each hears at its time, and neither is computed."""
    worker = ScriptedWorker(slowly(0.55))
    batcher = batcher_of(worker, timeout=0.4, max_batch_size=1, batch_timeout=0)
    waits: list[float] = []

    async def client(delay: float) -> int:
        await asyncio.sleep(delay)
        begin = time.monotonic()
        (found,) = await asyncio.gather(batcher.submit(Job((f"{delay}",))), return_exceptions=True)
        waits.append(time.monotonic() - begin)
        assert isinstance(found, RequestError)
        assert "within 0.4 seconds" in found.sentence
        return found.status

    async def story() -> list[int]:
        await batcher.start()
        found = await asyncio.gather(*(client(delay) for delay in (0, 0.05, 0.1)))
        await asyncio.sleep(0.2)  # the worker is free again
        await batcher.close()
        return found

    assert asyncio.run(story()) == [503, 503, 503]
    assert all(0.35 < wait < 0.5 for wait in waits), waits
    assert worker.batches == [["0"]]
    assert worker.starts == 1, "a worker that comes back a moment later is not replaced"


def test_workers_know_the_deadline_of_each_job() -> None:
    seen: list[float] = []

    class Curious(ScriptedWorker):
        async def answer(self, jobs: Sequence[Job]) -> list[Reply]:
            seen.extend(job.deadline for job in jobs)
            return await super().answer(jobs)

    begin = time.monotonic()
    play(batcher_of(Curious(), timeout=5), *jobs(3))
    assert all(begin + 5 <= deadline <= time.monotonic() + 5 for deadline in seen)
    assert len(seen) == 3


@pytest.mark.parametrize("timeout", [0.6, 0.3])
def test_overload_is_refused_and_the_worker_goes_on(timeout: float) -> None:
    """Half as many texts again as a worker can translate: it works at full speed to the end and is not replaced."""
    worker = ScriptedWorker(*[slowly(0.1)] * 1000)
    batcher = batcher_of(worker, timeout=timeout, max_queue=256, batch_timeout=0.001)
    answered: list[float] = []

    async def client() -> int:
        try:
            await batcher.submit(Job(("a",)))
        except RequestError as refusal:
            return refusal.status if "Retry-After" in refusal.headers else 500
        answered.append(time.monotonic())
        return 200

    async def story() -> list[int]:
        await batcher.start()
        clients = []
        for _ in range(25):
            clients += [asyncio.ensure_future(client()) for _ in range(6)]
            await asyncio.sleep(0.1)
        found = await asyncio.gather(*clients)
        await batcher.close()
        return found

    begin = time.monotonic()
    found = asyncio.run(story())
    assert worker.starts == 1
    assert set(found) == {200, 503}
    computed = sum(len(batch) for batch in worker.batches)
    assert found.count(200) >= 0.8 * computed, "hardly anything is computed for nobody"
    middle = (begin + time.monotonic()) / 2
    assert sum(moment > middle for moment in answered) >= 0.3 * len(answered), "it does not run dry"


def test_a_wrong_estimate_does_not_lock_the_clients_out() -> None:
    worker = ScriptedWorker(slowly(0.15))
    batcher = batcher_of(worker, timeout=0.2, max_batch_size=1, batch_timeout=0)
    batcher._seconds_per_text = 100.0
    assert statuses(play(batcher, *jobs(1))) == [200]


def test_it_serves_again_in_another_event_loop() -> None:
    batcher = batcher_of(ScriptedWorker())
    assert [statuses(play(batcher, *jobs(2))) for _ in range(2)] == [[200, 200]] * 2


def test_all_workers_are_stopped_if_one_cannot_start() -> None:
    class Broken(ScriptedWorker):
        async def start(self) -> dict[str, Any]:
            raise InputError("no such model")

    workers = [ScriptedWorker(), Broken()]
    with pytest.raises(InputError, match="no such model"):
        asyncio.run(Batcher(workers, 4, 0.01, 8, 5.0).start())
    assert [worker.stops for worker in workers] == [1, 1]


def test_a_dead_worker_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    worker = ScriptedWorker(die)
    replies = play(batcher_of(worker), *jobs(6))
    assert statuses(replies) == [503] * 4 + [200] * 2
    assert (worker.starts, worker.stops) == (2, 2)
    assert "died" in caplog.text


def test_an_error_is_kept_from_the_client(caplog: pytest.LogCaptureFixture) -> None:
    (reply,) = play(batcher_of(ScriptedWorker(fail)), *jobs(1))
    assert isinstance(reply, RequestError)
    assert reply.status == 500
    assert "secret" not in reply.sentence
    assert "secret detail" in caplog.text


def test_what_waits_when_the_server_stops_is_refused() -> None:
    worker = ScriptedWorker(slowly(5))
    batcher = batcher_of(worker, max_batch_size=1)

    async def story() -> list[Reply | BaseException]:
        await batcher.start()
        waiting = [asyncio.ensure_future(batcher.submit(job)) for job in jobs(3)]
        await asyncio.sleep(0.05)
        await batcher.close()
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert statuses(asyncio.run(story())) == [503] * 3


def test_a_client_that_goes_takes_its_job_along() -> None:
    worker = ScriptedWorker(slowly(0.1))
    batcher = batcher_of(worker, max_batch_size=1, batch_timeout=0)

    async def story() -> None:
        await batcher.start()
        first, second, third = (asyncio.ensure_future(batcher.submit(job)) for job in jobs(3))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.gather(first, third)
        await batcher.close()

    asyncio.run(story())
    assert worker.batches == [["0.0"], ["2.0"]]


class GatedWorker(ScriptedWorker):
    """Answers each batch once it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.script = [self._pass] * 9
        self.arrived, self.gate = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def _pass(self) -> None:
        self.arrived.release()
        await self.gate.acquire()


def test_a_worker_hears_when_all_clients_of_its_batch_have_gone() -> None:
    """Not before the last has gone, nor of the next batch; what was given up is no answer and makes nothing faster."""
    worker = GatedWorker()
    batcher = batcher_of(worker, max_batch_size=2, batch_timeout=0.02)

    async def story() -> None:
        await batcher.start()
        first, second, third, fourth = (asyncio.ensure_future(batcher.submit(job)) for job in jobs(4))
        await worker.arrived.acquire()
        for client, expected in ((first, []), (second, [1])):
            client.cancel()
            await asyncio.wait([client])
            await asyncio.sleep(0)
            assert worker.forgotten == expected
        batcher._seconds_per_text = 1000.0
        worker.gate.release()
        await worker.arrived.acquire()
        assert batcher._seconds_per_text == 1000.0
        batcher._seconds_per_text = 0.0
        for client in (third, fourth):
            client.cancel()
        await asyncio.wait([third, fourth])
        fifth = asyncio.ensure_future(batcher.submit(jobs(1)[0]))
        worker.gate.release()
        await worker.arrived.acquire()
        assert batcher._seconds_per_text > 0, "it took that long at least"
        worker.gate.release()
        assert (await fifth).status == 200
        await batcher.close()

    asyncio.run(story())
    assert worker.batches == [["0.0", "1.0"], ["2.0", "3.0"], ["0.0"]]
    assert worker.forgotten == [1, 2, 2], "each of two that go at once finds nobody left"
    assert batcher.counts["answered"] == 1


def test_a_client_that_goes_while_its_job_is_taken_costs_nothing() -> None:
    worker = GatedWorker()
    batcher = batcher_of(worker, max_batch_size=1, batch_timeout=0)

    async def story() -> None:
        await batcher.start()
        first, second = (asyncio.ensure_future(batcher.submit(job)) for job in jobs(2))
        await worker.arrived.acquire()
        (waiting,) = batcher._queue
        waiting.reply.cancel()  # before the task that waits for it has heard
        worker.gate.release()
        assert (await first).status == 200
        await asyncio.wait([second])
        await batcher.close()

    asyncio.run(story())
    assert worker.batches == [["0.0"]]


def test_a_batch_that_is_answered_is_not_forgotten() -> None:
    worker = ScriptedWorker()
    assert statuses(play(batcher_of(worker), *jobs(6))) == [200] * 6
    assert worker.forgotten == []
