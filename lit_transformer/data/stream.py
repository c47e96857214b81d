"""The training stream: batches dealt from lanes to processes, each with the place that follows it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from math import gcd
from typing import Any

import torch
from torch.utils.data import DataLoader

from lit_transformer.data.batching import Rows
from lit_transformer.data.cached_pools import CachedPools
from lit_transformer.data.cursor import Cursor, Place, lane_start, start_of
from lit_transformer.data.pools import LaneEnd, Pool, PoolStream
from lit_transformer.data.textfiles import CorpusError
from lit_transformer.interfaces import TranslationBatch
from lit_transformer.vocabulary import EOS_ID, PAD_ID

Agree = Callable[[list[int]], list[int]]


class TrainingBatches:
    """What the Trainer iterates over: the batches of one process, each carrying the place that follows it.

    The order is a pure function of corpora, settings and seed: every lane gives one batch in turn, and when all lanes
    are at their ends the next epoch begins. Each ``world_size`` batches of this one sequence are a group, of which
    every process takes one. So a process needs only the lanes that have its turns: one in ``world_size`` if
    ``num_lanes`` is a multiple of that, all of them if the two numbers share no factor.

    A lane that is at its end before the others leaves its turns empty. The process whose turn it is then makes a step
    with a batch of nothing but padding, which weighs nothing; a group without any sentence is passed over.

    Args:
        pools: The stream, or what stands for it.
        get_cursor: Tells where to start, asked at each iteration.
        rank: Number of this process.
        world_size: Number of processes.
        num_workers: Processes that prepare pools in the background.
        length: Batches that an endless stream declares; None for a single pass of unknown length.
        on_pool: Told about each pool that is begun.
        pin_memory: Whether batches are put into page-locked memory.
        agree: Gives all processes the largest of the numbers that they bring, place by place. It is called at the same
            points on all of them: in each round of the lanes if they do not see the same ones, else where a pool is
            needed, which one of them may fail to read.
        on_batch: Told about each batch just before it is handed out.
    """

    def __init__(
        self,
        pools: PoolStream | CachedPools,
        get_cursor: Callable[[], Cursor],
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        length: int | None = None,
        on_pool: Callable[[Pool], None] | None = None,
        pin_memory: bool = False,
        agree: Agree | None = None,
        on_batch: Callable[[TranslationBatch], None] | None = None,
    ) -> None:
        self.pools, self.get_cursor, self.rank, self.world_size = pools, get_cursor, rank, world_size
        self.num_workers, self.length, self.on_pool, self.pin_memory = num_workers, length, on_pool, pin_memory
        self.on_batch = on_batch
        self._sees_all = gcd(pools.num_lanes, world_size) == 1
        if not self._sees_all and agree is None:
            raise ValueError("processes that see different lanes need agree, so that they stop together")
        self._agree: Agree = agree or (lambda flags: flags)

    def __len__(self) -> int:
        """Declared number of batches.

        Raises:
            TypeError: If it is not known, as Lightning expects it.
        """
        if self.length is None:
            raise TypeError("one pass over a stream has no known length")
        return self.length

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the place. Lightning takes loaders with this method for resumable."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""

    def __iter__(self) -> Iterator[TranslationBatch]:
        """The batches from the cursor on, without end or to the end of the epoch."""
        start = self.get_cursor()
        batches = self._batches(start)
        if not self.pools.repeat:
            batches = _last_points_to(batches, start_of(start["epoch"] + 1, self.pools.num_lanes))
        if self.pin_memory:
            batches = map(TranslationBatch.pin_memory, batches)
        return batches if self.on_batch is None else map(self._told, batches)

    def _told(self, batch: TranslationBatch) -> TranslationBatch:
        if self.on_batch is not None:
            self.on_batch(batch)
        return batch

    def _batches(self, start: Cursor) -> Iterator[TranslationBatch]:
        items = self._items(start)
        lanes = _Lanes(items, start, self.pools.lanes)
        mine: tuple[Pool, Rows] | None = None
        number, filled = 0, False
        for number, (is_full, taken) in enumerate(self._turns(lanes, start), 1):
            filled = filled or is_full
            if (number - 1) % self.world_size == self.rank:
                mine = taken
            if number % self.world_size == 0:
                if filled:
                    yield _batch(mine, lanes.cursor())
                filled, mine = False, None
        if filled:
            yield _batch(mine, lanes.cursor())

    def _turns(self, lanes: _Lanes, start: Cursor) -> Iterator[tuple[bool, tuple[Pool, Rows] | None]]:
        """Whether the lane whose turn it is has a batch, and that batch if the lane is one of ours."""
        first, found = start["turn"], start != start_of(start["epoch"], self.pools.num_lanes)
        while True:
            full = self._full_lanes(lanes, first)
            if not any(full) and not first:
                if not found:
                    raise CorpusError("no sentence pair is left for training: see the log for what was dropped and why")
                if not self.pools.repeat:
                    return
                lanes.begin(lanes.epoch + 1)
                first, found = 0, False
                continue
            for lane in range(first, self.pools.num_lanes):
                lanes.turn = (lane + 1) % self.pools.num_lanes
                yield bool(full[lane]), lanes.take(lane) if full[lane] and lane in self.pools.lanes else None
            first, found = 0, True

    def _full_lanes(self, lanes: _Lanes, first: int) -> list[int]:
        """For every lane from ``first`` on 1 if it has another batch in this epoch; if one process fails, all do."""
        flags, error = [0] * (self.pools.num_lanes + 1), None
        own = [lane for lane in self.pools.lanes if lane >= first]
        is_reading = any(map(lanes.needs_pool, own))
        try:
            for lane in own:
                flags[lane] = int(lanes.has_batch(lane))
        except CorpusError as broken:
            flags[-1], error = 1, broken
        if not self._sees_all or is_reading:
            flags = self._agree(flags)
        if flags[-1]:
            error = error or CorpusError("another process cannot read its part of the training text: see its message")
            error.is_everywhere = True
            raise error
        return flags[:-1]

    def _items(self, start: Cursor) -> Iterator[Pool | LaneEnd]:
        shared = gcd(self.pools.num_lanes, self.world_size)
        everyone = range(self.pools.num_lanes)
        self.pools.lanes = [lane for lane in everyone if (lane - start["turn"] - self.rank) % shared == 0]
        self.pools.start = start
        return self._received()

    def _received(self) -> Iterator[Pool | LaneEnd]:
        for item in self._loader():
            if isinstance(item, CorpusError):
                raise item
            if self.on_pool is not None and isinstance(item, Pool):
                self.on_pool(item)
            yield item

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(  # workers that outlived a pass would never learn of the next place to start at
            self.pools,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            prefetch_factor=1 if self.num_workers else None,
            generator=torch.Generator(),  # leaves the global random numbers alone
        )


class _Lanes:
    """The pools of several lanes at once, taken from one sequence, and the place in each lane."""

    def __init__(self, items: Iterator[Pool | LaneEnd], start: Cursor, own: list[int]) -> None:
        self._items, self._start, self._own = items, start, set(own)
        self.epoch, self.turn = start["epoch"], start["turn"]
        self._places: list[Place] = list(start["lanes"])
        self._waiting: dict[int, deque[Pool | LaneEnd]] = {}
        self._pools: dict[int, Pool] = {}

    def begin(self, epoch: int) -> None:
        """Goes on to the start of an epoch."""
        self.epoch, self.turn, self._pools = epoch, 0, {}
        self._places = [lane_start() for _ in self._places]

    def needs_pool(self, lane: int) -> bool:
        """Whether the lane has no batch at hand."""
        return lane not in self._pools or self._places[lane]["batch"] >= len(self._pools[lane].batches)

    def has_batch(self, lane: int) -> bool:
        """Whether the lane has another batch in this epoch; fetches pools until that is known."""
        queue = self._waiting.setdefault(lane, deque())
        while self.needs_pool(lane):
            while not queue:
                item = next(self._items, None)
                if item is None:  # a single pass is over
                    return False
                self._waiting.setdefault(item.lane, deque()).append(item)
            if isinstance(queue[0], LaneEnd):
                if queue[0].epoch < self.epoch:
                    queue.popleft()
                    continue
                return False
            self._open(lane, queue)
        return True

    def _open(self, lane: int, queue: deque[Pool | LaneEnd]) -> None:
        pool = queue.popleft()
        if isinstance(pool, Pool):
            start = self._start["lanes"][lane]
            is_first = (pool.epoch, pool.place["pool"]) == (self._start["epoch"], start["pool"])
            self._pools[lane], self._places[lane] = pool, {**pool.place, "batch": start["batch"] if is_first else 0}

    def take(self, lane: int) -> tuple[Pool, Rows]:
        """The next batch of a lane."""
        place = self._places[lane]
        self._places[lane] = {**place, "batch": place["batch"] + 1}
        return self._pools[lane], self._pools[lane].batches[place["batch"]]

    def cursor(self) -> Cursor:
        """The present place; None stands for lanes that only other processes know."""
        lanes = [place if lane in self._own else None for lane, place in enumerate(self._places)]
        return {"epoch": self.epoch, "turn": self.turn, "lanes": lanes}


def batch_seed(seed: int, step: int, rank: int) -> int:
    """The seed of everything random that the network does with one batch, such as dropout.

    Args:
        seed: Seed of the run.
        step: Batches trained on before.
        rank: Number of the process.
    """
    return random.Random(f"{seed}/{step}/{rank}").getrandbits(63)


def _batch(taken: tuple[Pool, Rows] | None, cursor: Cursor) -> TranslationBatch:
    if taken is None:  # a step without weight keeps the processes together
        batch = TranslationBatch(torch.tensor([[EOS_ID]]), torch.full((1, 2), PAD_ID))
    else:
        batch = taken[0].batch(taken[1])
    batch.cursor = cursor
    return batch


def _last_points_to(batches: Iterator[TranslationBatch], cursor: Cursor) -> Iterator[TranslationBatch]:
    held = next(batches, None)
    while held is not None:
        following = next(batches, None)
        if following is None:
            held.cursor = cursor
        yield held
        held = following


def _unchanged(item: Any) -> Any:
    return item
