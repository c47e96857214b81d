"""Pools of training sentences: corpora dealt to lanes, mixed, turned into ids and cut into batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from lit_transformer.data.batching import (
    LengthLimits,
    Ragged,
    Rows,
    Sentences,
    TokenBudgetBatches,
    collate,
    reason_to_drop,
)
from lit_transformer.data.corpus import ParallelCorpus
from lit_transformer.data.textfiles import CorpusError, Row
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import SentencePair, TranslationBatch

Cursor = dict[str, Any]
Place = dict[str, Any]
_KEPT_TOKENS = 20_000_000  # ids of finished pools kept for the next epoch, 4 bytes each
_CHUNK_ROWS = 1000  # rows read at once
_LANE_CHUNK_ROWS = 100  # rows dealt to one lane before the next one gets some: few, so that lanes come out even


def start_of(epoch: int, num_lanes: int = 1) -> Cursor:
    """The place before the first batch of an epoch.

    A cursor is plain data and means the same to every process: the epoch, the lane whose turn is next, and for each
    lane the running number of its pool, how many batches of that pool are done, and where each corpus stood when the
    pool began.
    """
    return {"epoch": epoch, "turn": 0, "lanes": [lane_start() for _ in range(num_lanes)]}


def lane_start() -> Place:
    """The place before the first batch of a lane."""
    return {"pool": 0, "batch": 0, "sources": None}


@dataclass
class Pool:
    """Some thousand sentence pairs as ids, cut into batches.

    Args:
        epoch: The epoch that the pool belongs to.
        lane: The lane that it belongs to.
        place: Where in the lane the pool begins.
        src: Source ids of each pair.
        tgt: Target ids of each pair, from BOS to EOS.
        batches: The batches in the order of training, as positions in ``src`` and ``tgt``.
        dropped: Number of rows left out, by reason.
    """

    epoch: int
    lane: int
    place: Place
    src: Sentences
    tgt: Sentences
    batches: list[Rows]
    dropped: Counter[str]

    def batch(self, rows: Rows) -> TranslationBatch:
        """The chosen pairs, padded."""
        return collate(self.src, self.tgt, rows)


@dataclass
class LaneEnd:
    """Says that a lane has no more pools in an epoch."""

    epoch: int
    lane: int


class MixedRows:
    """Rows of several corpora, mixed in proportion to their sizes, each row once, dealt to lanes.

    The next chunk of a lane comes from the corpus that has got least far, which needs no random numbers: the order
    is the same on every process and after every resume.

    Args:
        corpora: The corpora to mix.
        pool_size: Rows in a pool, rounded up to whole chunks.
        num_lanes: Lanes that the rows are dealt to.
    """

    def __init__(self, corpora: Sequence[ParallelCorpus], pool_size: int, num_lanes: int = 1) -> None:
        self.corpora, self.pool_size, self.num_lanes = list(corpora), pool_size, num_lanes
        self.chunk = min(pool_size, _CHUNK_ROWS if num_lanes == 1 else _LANE_CHUNK_ROWS)
        self._sizes: list[int] | None = None

    def pools(self, place: Place, lane: int = 0) -> Iterator[tuple[Place, list[tuple[int, list[Row]]]]]:
        """From ``place`` to the end of a lane: where a pool begins, and its rows with their corpus' number."""
        place = {**place, "batch": 0}
        parts: list[tuple[int, list[Row]]] = []
        for number, rows, sources in self._chunks(place["sources"], lane):
            parts.append((number, rows))
            if sum(len(rows) for _, rows in parts) >= self.pool_size:
                yield place, parts
                place, parts = {**place, "pool": place["pool"] + 1, "sources": sources}, []
        if parts:
            yield place, parts

    def pairs(self) -> Iterator[SentencePair]:
        """The sentence pairs of one epoch, as raw text, lane by lane."""
        for lane in range(self.num_lanes):
            for _, parts in self.pools(lane_start(), lane):
                for number, rows in parts:
                    yield from filter(None, map(self.corpora[number].read_row, rows))

    def _chunks(self, sources: list[Any] | None, lane: int) -> Iterator[tuple[int, list[Row], list[Any]]]:
        places = list(sources) if sources else [None] * len(self.corpora)  # "end" stands for a finished corpus
        streams = [corpus.rows(place, self.chunk, lane, self.num_lanes) if place != "end" else iter(())
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
    """Pools of ids from the start place on, whatever the number of workers: one of each lane in turn.

    A lane is a fixed part of the corpora. Its pools depend on nothing else, so a process makes those of its own lanes
    only. Each worker makes whole pools in turn, so the caller gets them in order. A corpus that cannot be read is
    handed on as the last item: raised in a worker, an error would arrive with the worker's traceback as its message.

    Args:
        corpora: What to read, mixed in proportion.
        tokenizer: Makes the ids.
        batches: Cuts a pool.
        limits: What to leave out.
        pool_size: Rows in a pool.
        seed: Decides every shuffle, together with epoch and pool number.
        repeat: Whether the next epoch follows by itself.
        num_lanes: Lanes that the corpora are dealt to.

    Attributes:
        start: Where to begin.
        lanes: The lanes to make pools of.
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
        num_lanes: int = 1,
    ) -> None:
        super().__init__()
        self.rows = MixedRows(corpora, pool_size, num_lanes)
        self.tokenizer, self.batches, self.limits = tokenizer, batches, limits
        self.seed, self.repeat, self.num_lanes = seed, repeat, num_lanes
        self.start = start_of(0, num_lanes)
        self.lanes = list(range(num_lanes))
        self._kept: dict[tuple[int, int], tuple[Ragged, Ragged, Counter[str]]] = {}
        self._kept_tokens = 0

    def __iter__(self) -> Iterator[Pool | LaneEnd | CorpusError]:
        """The pools of this worker."""
        try:
            yield from self._share()
        except CorpusError as error:
            yield error

    def encoded(self) -> Iterator[tuple[Ragged, Ragged, Counter[str]]]:
        """One epoch as ids without batches: the two sides of each pool, and what was left out."""
        for lane in range(self.num_lanes):
            for _, parts in self.rows.pools(lane_start(), lane):
                yield self._encode(parts)

    def _share(self) -> Iterator[Pool | LaneEnd]:
        worker = get_worker_info()
        workers, mine = (worker.num_workers, worker.id) if worker else (1, 0)
        epoch, places = self.start["epoch"], self.start["lanes"]
        turn = 0
        while True:
            open_lanes = {lane: self.rows.pools(places[lane], lane) for lane in self.lanes}
            while open_lanes:
                for lane in list(open_lanes):
                    found = next(open_lanes[lane], None)
                    if turn % workers == mine:
                        yield LaneEnd(epoch, lane) if found is None else self._pool(epoch, lane, *found)
                    if found is None:
                        del open_lanes[lane]
                    turn += 1
            if not self.repeat:
                return
            epoch, places = epoch + 1, start_of(0, self.num_lanes)["lanes"]

    def _pool(self, epoch: int, lane: int, place: Place, parts: list[tuple[int, list[Row]]]) -> Pool:
        number = lane, place["pool"]  # the same rows in every epoch: only their order changes
        if number in self._kept:
            src, tgt, dropped = self._kept[number]
        else:
            src, tgt, dropped = self._encode(parts)
            size = int(src.lengths.sum() + tgt.lengths.sum())
            if self._kept_tokens + size <= _KEPT_TOKENS:
                self._kept[number], self._kept_tokens = (src, tgt, dropped), self._kept_tokens + size
        seed = f"{self.seed}/{epoch}/{lane}/{place['pool']}"
        batches = self.batches(src.lengths.tolist(), (tgt.lengths - 1).tolist(), seed)
        return Pool(epoch, lane, place, src, tgt, batches, dropped)

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
        reason = reason_to_drop(self.limits, self.batches, src_length, tgt_length)
        if reason is not None:
            dropped[reason] += 1
        return reason is None
