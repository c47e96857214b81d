"""Pools of training sentences out of a token cache: planned from lengths, looked at when a batch is made."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from lit_transformer.data.batching import LengthLimits, TokenBudgetBatches, reason_to_drop
from lit_transformer.data.cache import TokenCache
from lit_transformer.data.cursor import lane_start, start_of
from lit_transformer.data.pools import SIDES, LaneEnd, Pool, made_by_this_worker
from lit_transformer.vocabulary import PAD_ID

_BLOCK = 1 << 20  # pairs whose lengths are judged at once


class CachedSentences:
    """One side of some sentence pairs of a cache, padded when asked for.

    Args:
        cache: Where they are kept.
        side: ``src`` or ``tgt``.
        rows: Their numbers in the cache.
    """

    def __init__(self, cache: TokenCache, side: str, rows: npt.NDArray[Any]) -> None:
        self.cache, self.side, self.rows = cache, side, rows

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self.rows)

    def pad(self, rows: Sequence[int]) -> Tensor:
        """The chosen sentences, padded on the right to the longest of them, ``(rows, longest)``."""
        chosen = self.rows[np.asarray(rows, dtype=np.int64)]
        lengths = self.cache.lengths[self.side][chosen].tolist()
        padded = np.full((len(chosen), max(lengths, default=0)), PAD_ID, dtype=np.int64)
        for line, row, length in zip(padded, chosen.tolist(), lengths, strict=True):
            line[:length] = self.cache.ids(self.side, row)
        return torch.from_numpy(padded)


class CachedPools(IterableDataset[Any]):
    """Pools of ids like those of ``PoolStream``, out of a cache, from the start place on.

    Every epoch puts all sentence pairs into a new order; ``pool_size`` of them in turn are a pool. Each process plans
    all pools, from lengths alone, and looks at the sentences of its own batches only. So any number of processes needs
    a single lane, and coming back to a place costs the same everywhere.

    Args:
        cache: The sentence pairs.
        batches: Cuts a pool.
        limits: What to leave out.
        pool_size: Sentence pairs in a pool.
        seed: Decides every shuffle, together with epoch and pool number.
        repeat: Whether the next epoch follows by itself.
        shares: How many pairs of each corpus come in an epoch, relative to the others; a corpus that is over begins
            again, and each pair comes at least once. None takes each pair once.

    Attributes:
        start: Where to begin.
        dropped: Number of rows left out of each epoch, by reason; the first pool of the epoch tells them.
    """

    num_lanes = 1

    def __init__(
        self,
        cache: TokenCache,
        batches: TokenBudgetBatches,
        limits: LengthLimits,
        pool_size: int = 32_000,
        seed: int = 1,
        repeat: bool = False,
        shares: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.cache, self.batches, self.pool_size, self.shares = cache, batches, pool_size, shares
        self.seed, self.repeat = seed, repeat
        self.start, self.lanes = start_of(0), [0]
        self.dropped = Counter(cache.dropped)
        self._kept = np.concatenate([np.empty(0, np.int64), *self._judged(limits)])

    def __iter__(self) -> Iterator[Pool | LaneEnd]:
        """The pools of this worker."""
        return made_by_this_worker(self._makers())

    def _makers(self) -> Iterator[Callable[[], Pool | LaneEnd]]:
        epoch, first = self.start["epoch"], self.start["lanes"][0]["pool"]
        while True:
            order = self._order(epoch)
            last = max(1, -(-len(order) // self.pool_size))
            for number in range(first, last):
                yield partial(self._pool, epoch, number, order)
            yield partial(LaneEnd, epoch, 0)
            if not self.repeat:
                return
            epoch, first = epoch + 1, 0

    def _pool(self, epoch: int, number: int, order: npt.NDArray[Any]) -> Pool:
        rows = order[number * self.pool_size :][: self.pool_size]
        src, tgt = (self.cache.lengths[side][rows] for side in SIDES)
        batches = self.batches(src.tolist(), (tgt - 1).tolist(), f"{self.seed}/{epoch}/0/{number}")
        src_side, tgt_side = (CachedSentences(self.cache, side, rows) for side in SIDES)
        place, dropped = {**lane_start(), "pool": number}, Counter() if number else self.dropped
        return Pool(epoch, 0, place, src_side, tgt_side, batches, dropped)

    def _order(self, epoch: int) -> npt.NDArray[Any]:
        """The rows of an epoch, in the order in which they are cut into pools."""
        seed = random.Random(f"{self.seed}/{epoch}").getrandbits(32)
        generator = np.random.RandomState(seed)  # unlike default_rng the same in all versions of NumPy
        shuffle = generator.permutation if self.batches.shuffle else np.asarray
        if self.shares is None:
            return shuffle(self._kept)
        parts = np.split(self._kept, np.searchsorted(self._kept, self.cache.ends[:-1]))
        largest = max(len(part) / share for part, share in zip(parts, self.shares, strict=True))
        drawn = []
        for part, share in zip(parts, self.shares, strict=True):
            rest = max(len(part), round(share * largest)) if len(part) else 0
            while rest > 0:
                drawn.append(shuffle(part)[:rest])
                rest -= len(part)
        return shuffle(np.concatenate([self._kept[:0], *drawn]))

    def _judged(self, limits: LengthLimits) -> Iterator[npt.NDArray[np.int64]]:
        """The rows within the limits, a block at a time; counts the others."""
        for start in range(0, len(self.cache), _BLOCK):
            src, tgt = (self.cache.lengths[side][start : start + _BLOCK].astype(np.int64) for side in SIDES)
            shapes, which, counts = np.unique((src << 32) | (tgt - 1), return_inverse=True, return_counts=True)
            reasons = [
                reason_to_drop(limits, self.batches, shape >> 32, shape & 0xFFFFFFFF) for shape in shapes.tolist()
            ]
            for reason, count in zip(reasons, counts.tolist(), strict=True):
                if reason is not None:
                    self.dropped[reason] += count
            yield start + np.flatnonzero(np.array([reason is None for reason in reasons])[which])
