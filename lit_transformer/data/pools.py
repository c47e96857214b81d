"""Pools of training sentences: corpora dealt to lanes, mixed, turned into ids and cut into batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

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
from lit_transformer.data.bpe_dropout import BPEDropout, Units
from lit_transformer.data.corpus import CHUNK_ROWS, ParallelCorpus
from lit_transformer.data.filters import BadRowError, OnBadRow, in_words
from lit_transformer.data.mixing import Mixing, endless_rows
from lit_transformer.data.textfiles import CorpusError, Row
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import SentencePair, TranslationBatch

Cursor = dict[str, Any]
Place = dict[str, Any]
_Made = TypeVar("_Made")
_KEPT_TOKENS = 20_000_000  # ids of finished pools kept for the next epoch, 4 bytes each
SIDES = ("src", "tgt")
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


def made_by_this_worker(makers: Iterator[Callable[[], _Made]]) -> Iterator[_Made]:
    """What the workers make in turn, as far as it falls to this one; without workers, everything."""
    worker = get_worker_info()
    num_workers, mine = (worker.num_workers, worker.id) if worker else (1, 0)
    return (make() for make in islice(makers, mine, None, num_workers))


class Part(NamedTuple):
    """Some rows of one corpus.

    Args:
        corpus: Number of the corpus.
        rows: The rows.
        first: Number of the first of them, from 1.
        lane: The lane in which that number counts; None if it counts in the whole corpus.
    """

    corpus: int
    rows: list[Row]
    first: int
    lane: int | None


class MixedRows:
    """Rows of several corpora, mixed, dealt to lanes.

    The next chunk of a lane comes from the corpus that has got least far, compared to its share, which needs no random
    numbers: the order is the same on every process and after every resume. No corpus is ever ahead of its share by
    more than one chunk.

    Args:
        corpora: The corpora to mix.
        pool_size: Rows in a pool, rounded up to whole chunks.
        num_lanes: Lanes that the rows are dealt to.
        mixing: The proportions. By default those of the sizes, and each row once.
        on_bad_row: Whether rows that are no sentence pair are left out or stop the run.
    """

    def __init__(
        self,
        corpora: Sequence[ParallelCorpus],
        pool_size: int,
        num_lanes: int = 1,
        mixing: Mixing | None = None,
        on_bad_row: OnBadRow = "skip",
    ) -> None:
        self.corpora, self.pool_size, self.num_lanes = list(corpora), pool_size, num_lanes
        self.mixing, self.on_bad_row = mixing or Mixing(), on_bad_row
        self.chunk = min(pool_size, CHUNK_ROWS if num_lanes == 1 else _LANE_CHUNK_ROWS)
        self._shares: list[float] | None = None

    def pools(self, place: Place, lane: int = 0) -> Iterator[tuple[Place, list[Part]]]:
        """From ``place`` to the end of a lane: where a pool begins, and its rows."""
        place = {**place, "batch": 0}
        parts: list[Part] = []
        for part, sources in self._chunks(place["sources"], lane):
            parts.append(part)
            if sum(len(part.rows) for part in parts) >= self.pool_size:
                yield place, parts
                place, parts = {**place, "pool": place["pool"] + 1, "sources": sources}, []
        if parts:
            yield place, parts

    def pairs(self) -> Iterator[SentencePair]:
        """The sentence pairs of one epoch that training can use, as raw text, lane by lane.

        Raises:
            CorpusError: If there are none, or a row is no sentence pair and ``on_bad_row`` is ``"error"``.
        """
        dropped: Counter[str] = Counter()
        found = False
        for lane in range(self.num_lanes):
            for part in (part for _, parts in self.pools(lane_start(), lane) for part in parts):
                for pair in self.read(part, dropped):
                    found = True
                    yield pair
        if not found:
            raise CorpusError(f"no sentence pair is left for training, rows were left out: {in_words(dropped)}")

    def read(self, part: Part, dropped: Counter[str]) -> Iterator[SentencePair]:
        """The sentence pairs of some rows that training can use; the others are counted by reason.

        Raises:
            CorpusError: If a row is no sentence pair and ``on_bad_row`` is ``"error"``.
        """
        corpus = self.corpora[part.corpus]
        for number, row in enumerate(part.rows, part.first):
            try:
                found = corpus.examine(row)
            except BadRowError as error:
                if self.on_bad_row == "error":
                    place = f"row {number}" if part.lane is None else f"row {number} of lane {part.lane}"
                    raise CorpusError(f"{place} cannot be used: {error}; on_bad_row: skip leaves it out") from error
                found = error.reason
            if isinstance(found, str):
                dropped[found] += 1
            else:
                yield found

    def _chunks(self, sources: list[Any] | None, lane: int) -> Iterator[tuple[Part, list[Any]]]:
        places = list(sources) if sources else [None] * len(self.corpora)  # "end" stands for a finished corpus
        streams = [self._rows(corpus, place, lane) for corpus, place in zip(self.corpora, places, strict=True)]
        while open_ones := self._open(places):
            number = min(open_ones, key=lambda number: (self._progress(number, places[number]), number))
            is_first = lane == 0 and places[number] is None
            rows, places[number] = next(streams[number], ([], "end"))
            if rows and is_first:
                self.corpora[number].read_row(rows[0])  # if even the first row is bad, the setting is, not the row
            if rows:
                yield self._part(number, rows, places[number], lane), list(places)

    def _rows(self, corpus: ParallelCorpus, place: Any, lane: int) -> Iterator[tuple[list[Row], Any]]:
        if place == "end":
            return iter(())
        settings = (place, self.chunk, lane, self.num_lanes)
        return endless_rows(corpus, *settings) if self.mixing.repeats else corpus.rows(*settings)

    def _open(self, places: list[Any]) -> list[int]:
        """The corpora that the next chunk may come from; none at the end of an epoch."""
        if not self.mixing.repeats:
            return [number for number, place in enumerate(places) if place != "end"]
        is_over = all(place is not None and place["pass"] > 0 for place in places)
        return [] if is_over else list(range(len(places)))

    def _part(self, number: int, rows: list[Row], place: Any, lane: int) -> Part:
        at = place["at"] if self.mixing.repeats else place
        last = at.get("seen") or (at.get("inner") or {}).get("line")  # what a lane of whole shards cannot know
        return Part(number, rows, (last or at["row"]) - len(rows) + 1, None if last else lane)

    def _progress(self, number: int, place: Any) -> float:
        if len(self.corpora) == 1:
            return 0.0
        if self._shares is None:
            self._shares = self.mixing.shares(self.corpora)
        return float((place["row"] if place else 0) / self._shares[number])


class _Encoded(NamedTuple):
    """A pool before it is cut into batches; the units of both sides where they are cut anew in each epoch."""

    src: Ragged
    tgt: Ragged
    dropped: Counter[str]
    units: list[Units]


class PoolStream(IterableDataset[Any]):
    """Pools of ids from the start place on, whatever the number of workers: one of each lane in turn.

    A lane is a fixed part of the corpora. Its pools depend on nothing else, so a process makes those of its own lanes
    only. Each worker makes whole pools in turn, so the caller gets them in order. A corpus that cannot be read is
    handed on as the last item: raised in a worker, an error would arrive with the worker's traceback as its message.

    Args:
        corpora: What to read.
        tokenizer: Makes the ids.
        batches: Cuts a pool.
        limits: What to leave out.
        pool_size: Rows in a pool.
        seed: Decides every shuffle, together with epoch and pool number.
        repeat: Whether the next epoch follows by itself.
        num_lanes: Lanes that the corpora are dealt to.
        mixing: The proportions of the corpora.
        on_bad_row: Whether rows that are no sentence pair are left out or stop the run.
        dropout: Cuts the words anew in each epoch; None for the best cut always.

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
        mixing: Mixing | None = None,
        on_bad_row: OnBadRow = "skip",
        dropout: BPEDropout | None = None,
    ) -> None:
        super().__init__()
        self.rows = MixedRows(corpora, pool_size, num_lanes, mixing, on_bad_row)
        self.tokenizer, self.batches, self.limits = tokenizer, batches, limits
        self.seed, self.repeat, self.num_lanes, self.dropout = seed, repeat, num_lanes, dropout
        self.start = start_of(0, num_lanes)
        self.lanes = list(range(num_lanes))
        self._kept: dict[tuple[int, int], _Encoded] = {}
        self._kept_tokens = 0

    def __iter__(self) -> Iterator[Pool | LaneEnd | CorpusError]:
        """The pools of this worker."""
        try:
            yield from made_by_this_worker(self._makers())
        except CorpusError as error:
            yield error

    def encoded(self) -> Iterator[tuple[Ragged, Ragged, Counter[str]]]:
        """One epoch as ids without batches: the two sides of each pool, and what was left out."""
        for lane in range(self.num_lanes):
            for _, parts in self.rows.pools(lane_start(), lane):
                src, tgt, dropped, _ = self._encode(parts)
                yield src, tgt, dropped

    def _makers(self) -> Iterator[Callable[[], Pool | LaneEnd]]:
        epoch, places = self.start["epoch"], self.start["lanes"]
        while True:
            open_lanes = {lane: self.rows.pools(places[lane], lane) for lane in self.lanes}
            while open_lanes:
                for lane in list(open_lanes):
                    found = next(open_lanes[lane], None)
                    if found is None:
                        del open_lanes[lane]
                        yield partial(LaneEnd, epoch, lane)
                    else:
                        yield partial(self._pool, epoch, lane, *found)
            if not self.repeat:
                return
            epoch, places = epoch + 1, start_of(0, self.num_lanes)["lanes"]

    def _pool(self, epoch: int, lane: int, place: Place, parts: list[Part]) -> Pool:
        number = lane, place["pool"]  # the same rows in every epoch: only their order changes
        if number in self._kept:
            encoded = self._kept[number]
        else:
            encoded = self._encode(parts)
            size = int(encoded.src.lengths.sum() + encoded.tgt.lengths.sum())
            if self._kept_tokens + size <= _KEPT_TOKENS:
                self._kept[number], self._kept_tokens = encoded, self._kept_tokens + size
        seed = f"{self.seed}/{epoch}/{lane}/{place['pool']}"
        src, tgt = self._cut_anew(encoded, seed)
        batches = self.batches(src.lengths.tolist(), (tgt.lengths - 1).tolist(), seed)
        return Pool(epoch, lane, place, src, tgt, batches, encoded.dropped)

    def _cut_anew(self, encoded: _Encoded, seed: str) -> tuple[Ragged, Ragged]:
        """The ids of a pool with other subwords; a pair that would get too long for training keeps its own."""
        if self.dropout is None:
            return encoded.src, encoded.tgt
        src, tgt = (self.dropout(units, side, seed) for units, side in zip(encoded.units, SIDES, strict=True))
        for row in range(len(src)):
            if reason_to_drop(self.limits, self.batches, len(src[row]), len(tgt[row]) - 1) is not None:
                src[row], tgt[row] = encoded.src[row], encoded.tgt[row]
        return Ragged(src), Ragged(tgt)

    def _encode(self, parts: list[Part]) -> _Encoded:
        dropped: Counter[str] = Counter()
        pairs = [pair for part in parts for pair in self.rows.read(part, dropped)]
        src = self.tokenizer.encode_src([pair.src for pair in pairs])
        tgt = self.tokenizer.encode_tgt([pair.tgt for pair in pairs])
        kept = [row for row in range(len(pairs)) if self._keeps(len(src[row]), len(tgt[row]) - 1, dropped)]
        units = []
        for side in SIDES if self.dropout is not None else ():
            units.append(Units(self.tokenizer.units([getattr(pairs[row], side) for row in kept], side)))
        return _Encoded(Ragged([src[row] for row in kept]), Ragged([tgt[row] for row in kept]), dropped, units)

    def _keeps(self, src_length: int, tgt_length: int, dropped: Counter[str]) -> bool:
        reason = reason_to_drop(self.limits, self.batches, src_length, tgt_length)
        if reason is not None:
            dropped[reason] += 1
        return reason is None
