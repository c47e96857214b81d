"""The training stream: corpora mixed into pools, pools cut into batches, and the place where each batch ends."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lit_transformer.data.batching import LengthLimits, Ragged, Rows, TokenBudgetBatches, collate, deal
from lit_transformer.data.corpus import CHUNK_ROWS, ParallelCorpus
from lit_transformer.data.textfiles import CorpusError, Row
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import SentencePair, TranslationBatch
from lit_transformer.vocabulary import PAD_ID

Cursor = dict[str, Any]
_KEPT_TOKENS = 20_000_000  # ids of finished pools kept for the next epoch, 4 bytes each


def start_of(epoch: int) -> Cursor:
    """The place before the first batch of an epoch.

    A cursor is plain data and the same for every process: the epoch, the running number of a pool, how many batches
    of that pool are done, and where each corpus stood when the pool began.
    """
    return {"epoch": epoch, "pool": 0, "batch": 0, "sources": None}


@dataclass
class Pool:
    """Some thousand sentence pairs as ids, cut into batches.

    Args:
        cursor: The place where the pool begins.
        src: Source ids of each pair.
        tgt: Target ids of each pair, from BOS to EOS.
        batches: The batches in the order of training, as positions in ``src`` and ``tgt``.
        dropped: Number of rows left out, by reason.
    """

    cursor: Cursor
    src: Ragged
    tgt: Ragged
    batches: list[Rows]
    dropped: Counter[str]

    def after(self, done: int) -> Cursor:
        """The place after ``done`` batches of this pool."""
        return {**self.cursor, "batch": done}

    def batch(self, rows: Rows) -> TranslationBatch:
        """The chosen pairs, padded."""
        return collate(self.src, self.tgt, rows)


class MixedRows:
    """Rows of several corpora, mixed in proportion to their sizes, each row once.

    The next chunk comes from the corpus that has got least far, which needs no random numbers: the order is
    the same on every process and after every resume.

    Args:
        corpora: The corpora to mix.
        pool_size: Rows in a pool, rounded up to whole chunks.
    """

    def __init__(self, corpora: Sequence[ParallelCorpus], pool_size: int) -> None:
        self.corpora, self.pool_size = list(corpora), pool_size
        self.chunk = min(pool_size, CHUNK_ROWS)
        self._sizes: list[int] | None = None

    def pools(self, cursor: Cursor) -> Iterator[tuple[Cursor, list[tuple[int, list[Row]]]]]:
        """From ``cursor`` to the end of its epoch: where a pool begins, and its rows with their corpus' number."""
        place = {**cursor, "batch": 0}
        parts: list[tuple[int, list[Row]]] = []
        for number, rows, sources in self._chunks(cursor["sources"]):
            parts.append((number, rows))
            if sum(len(rows) for _, rows in parts) >= self.pool_size:
                yield place, parts
                place, parts = {**place, "pool": place["pool"] + 1, "sources": sources}, []
        if parts:
            yield place, parts

    def pairs(self) -> Iterator[SentencePair]:
        """The sentence pairs of one epoch in this order, as raw text."""
        for _, parts in self.pools(start_of(0)):
            for number, rows in parts:
                yield from filter(None, map(self.corpora[number].read_row, rows))

    def _chunks(self, sources: list[Any] | None) -> Iterator[tuple[int, list[Row], list[Any]]]:
        places = list(sources) if sources else [None] * len(self.corpora)  # "end" stands for a finished corpus
        streams = [corpus.rows(place, self.chunk) if place != "end" else iter(())
                   for corpus, place in zip(self.corpora, places, strict=True)]  # fmt: skip
        while open_ones := [number for number, place in enumerate(places) if place != "end"]:
            number = min(open_ones, key=lambda number: (self._progress(number, places[number]), number))
            rows, places[number] = next(streams[number], ([], "end"))
            if rows:
                yield number, rows, list(places)

    def _progress(self, number: int, place: Any) -> float:
        if len(self.corpora) == 1:
            return 0.0
        if self._sizes is None:
            self._sizes = [corpus.approximate_rows() for corpus in self.corpora]
        return float((place["row"] if place else 0) / self._sizes[number])


class PoolStream(IterableDataset[Any]):
    """Pools of ids from the start place on; the same on every process, whatever the number of workers.

    Each worker makes whole pools in turn, so the caller gets them in order. A corpus that cannot be read is handed
    on as the last item, because an error raised in a worker would arrive with the worker's traceback as its message.

    Args:
        corpora: What to read, mixed in proportion.
        tokenizer: Makes the ids.
        batches: Cuts a pool.
        limits: What to leave out.
        pool_size: Rows in a pool.
        seed: Decides every shuffle, together with epoch and pool number.
        repeat: Whether the next epoch follows by itself.
    """

    def __init__(
        self,
        corpora: Sequence[ParallelCorpus],
        tokenizer: SubwordTokenizer,
        batches: TokenBudgetBatches,
        limits: LengthLimits,
        pool_size: int = 32_000,
        seed: int = 1,
        repeat: bool = False,
    ) -> None:
        super().__init__()
        self.rows, self.tokenizer, self.batches, self.limits = MixedRows(corpora, pool_size), tokenizer, batches, limits
        self.seed, self.repeat = seed, repeat
        self.start = start_of(0)
        self._kept: dict[int, tuple[Ragged, Ragged, Counter[str]]] = {}
        self._kept_tokens = 0

    def __iter__(self) -> Iterator[Pool | CorpusError]:
        """The pools of this worker."""
        try:
            yield from self._share()
        except CorpusError as error:
            yield error

    def _share(self) -> Iterator[Pool]:
        worker = get_worker_info()
        workers, mine = (worker.num_workers, worker.id) if worker else (1, 0)
        cursor, turn = self.start, 0
        while True:
            for place, parts in self.rows.pools(cursor):
                if turn % workers == mine:
                    yield self._pool(place, parts)
                turn += 1
            if not self.repeat:
                return
            cursor = start_of(cursor["epoch"] + 1)

    def _pool(self, place: Cursor, parts: list[tuple[int, list[Row]]]) -> Pool:
        number = place["pool"]  # the same rows in every epoch: only their order changes
        if number in self._kept:
            src, tgt, dropped = self._kept[number]
        else:
            src, tgt, dropped = self._encode(parts)
            size = int(src.lengths.sum() + tgt.lengths.sum())
            if self._kept_tokens + size <= _KEPT_TOKENS:
                self._kept[number], self._kept_tokens = (src, tgt, dropped), self._kept_tokens + size
        seed = f"{self.seed}/{place['epoch']}/{number}"
        batches = self.batches(src.lengths.tolist(), (tgt.lengths - 1).tolist(), seed)
        return Pool(place, src, tgt, batches, dropped)

    def _encode(self, parts: list[tuple[int, list[Row]]]) -> tuple[Ragged, Ragged, Counter[str]]:
        dropped: Counter[str] = Counter()
        pairs: list[SentencePair] = []
        for number, rows in parts:
            for pair in map(self.rows.corpora[number].read_row, rows):
                if pair is None:
                    dropped["rejected"] += 1
                elif not pair.src.strip() or not pair.tgt.strip():
                    dropped["empty"] += 1
                else:
                    pairs.append(pair)
        src = self.tokenizer.encode_src([pair.src for pair in pairs])
        tgt = self.tokenizer.encode_tgt([pair.tgt for pair in pairs])
        kept = [row for row in range(len(pairs)) if self._keeps(len(src[row]), len(tgt[row]) - 1, dropped)]
        return Ragged([src[row] for row in kept]), Ragged([tgt[row] for row in kept]), dropped

    def _keeps(self, src_length: int, tgt_length: int, dropped: Counter[str]) -> bool:
        reason = self.limits.verdict(src_length, tgt_length)
        if reason is None and not self.batches.fits(src_length, tgt_length):
            reason = "overlong"
        if reason is not None:
            dropped[reason] += 1
        return reason is None


class TrainingBatches:
    """What the Trainer iterates over: the batches of one process, each carrying the place that follows it.

    All processes see the same list of batches; of each group of ``world_size`` they take one each. An endless stream
    simply goes on into the next epoch. A single pass deals the last incomplete group out, so that every process
    makes the same number of steps; a process that gets no sentence then trains on a batch of nothing but padding.

    Args:
        pools: The stream.
        get_cursor: Tells where to start, asked at each iteration.
        rank: Number of this process.
        world_size: Number of processes.
        num_workers: Processes that prepare pools in the background.
        length: Batches that an endless stream declares; None for a single pass of unknown length.
        on_pool: Told about each pool that is begun.
        pin_memory: Whether batches are put into page-locked memory.
    """

    def __init__(
        self,
        pools: PoolStream,
        get_cursor: Callable[[], Cursor],
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        length: int | None = None,
        on_pool: Callable[[Pool], None] | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.pools, self.get_cursor, self.rank, self.world_size = pools, get_cursor, rank, world_size
        self.num_workers, self.length, self.on_pool, self.pin_memory = num_workers, length, on_pool, pin_memory

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
            batches = _last_points_to(batches, start_of(start["epoch"] + 1))
        return map(TranslationBatch.pin_memory, batches) if self.pin_memory else batches

    def _batches(self, start: Cursor) -> Iterator[TranslationBatch]:
        group: list[tuple[Pool, Rows]] = []
        for pool in self._pools(start):
            done = start["batch"] if _same_pool(pool.cursor, start) else 0
            for number, rows in enumerate(pool.batches[done:], done + 1):
                group.append((pool, rows))
                if len(group) == self.world_size:
                    mine, rows = group[self.rank]
                    batch, group = mine.batch(rows), []
                    batch.cursor = pool.after(number)
                    yield batch
        if group:
            yield self._tail(group)

    def _tail(self, group: list[tuple[Pool, Rows]]) -> TranslationBatch:
        # positions are numbered through all pools of the group, so that one function can deal them out
        places = [(pool, row) for pool, rows in group for row in rows]
        numbers = iter(range(len(places)))
        mine = deal([[next(numbers) for _ in rows] for _, rows in group], self.world_size)[self.rank]
        pool = places[mine[0] if mine else 0][0]
        batch = pool.batch([places[number][1] for number in mine] or [places[0][1]])
        if not mine:
            batch.tgt.fill_(PAD_ID)  # a step without weight keeps the processes together
        return batch

    def _pools(self, start: Cursor) -> Iterator[Pool]:
        self.pools.start = start
        found = False
        epoch = start["epoch"]
        for item in self._loader():
            if isinstance(item, CorpusError):
                raise item
            if item.cursor["epoch"] != epoch:
                self._check(found, epoch, start)
                epoch, found = item.cursor["epoch"], False
            if self.on_pool is not None:
                self.on_pool(item)
            found = found or bool(item.batches)
            yield item
        self._check(found, epoch, start)

    def _check(self, found: bool, epoch: int, start: Cursor) -> None:
        whole = epoch != start["epoch"] or (start["pool"] == 0 and start["batch"] == 0)
        if whole and not found:
            raise CorpusError("no sentence pair is left for training: see the log for what was dropped and why")

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(
            self.pools,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            prefetch_factor=1 if self.num_workers else None,
            generator=torch.Generator(),  # leaves the global random numbers alone
        )


def batch_seed(seed: int, step: int, rank: int) -> int:
    """The seed of everything random that the network does with one batch, such as dropout.

    Args:
        seed: Seed of the run.
        step: Batches trained on before.
        rank: Number of the process.
    """
    return random.Random(f"{seed}/{step}/{rank}").getrandbits(63)


def _last_points_to(batches: Iterator[TranslationBatch], cursor: Cursor) -> Iterator[TranslationBatch]:
    held = next(batches, None)
    while held is not None:
        following = next(batches, None)
        if following is None:
            held.cursor = cursor
        yield held
        held = following


def _same_pool(one: Cursor, other: Cursor) -> bool:
    return bool(one["epoch"] == other["epoch"] and one["pool"] == other["pool"])


def _unchanged(item: Any) -> Any:
    return item
