"""Pools of training sentences: mixed rows turned into ids and cut into batches."""

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
from lit_transformer.data.corpus import ParallelCorpus
from lit_transformer.data.cursor import Place, lane_start, start_of
from lit_transformer.data.filters import OnBadRow
from lit_transformer.data.mixing import MixedRows, Mixing, Part
from lit_transformer.data.textfiles import CorpusError
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import TranslationBatch

_Made = TypeVar("_Made")
_KEPT_TOKENS = 20_000_000  # ids of finished pools kept for the next epoch of the same process, 4 bytes each
SIDES = ("src", "tgt")


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
