"""The training text as ids in one Arrow file: written once, mapped into the memory of every process."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import socket
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from lit_transformer.data.batching import LengthLimits, Ragged, TokenBudgetBatches, reason_to_drop
from lit_transformer.data.corpus import ParallelCorpus
from lit_transformer.data.filters import OnBadRow
from lit_transformer.data.pools import LaneEnd, Pool, PoolStream, lane_start, start_of
from lit_transformer.data.textfiles import CorpusError
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.vocabulary import PAD_ID

logger = logging.getLogger(__name__)

_VERSION = 1
_SIDES = ("src", "tgt")
_PROGRESS_SECONDS = 10.0
_BLOCK = 1 << 20  # pairs whose lengths are judged at once


class TokenCache:
    """Sentence pairs as ids in a memory-mapped file; what is not looked at is not read.

    Args:
        path: The file.
        fingerprint: What ``cache_fingerprint`` gave for it.

    Attributes:
        lengths: For each side the lengths of all sentences, in tokens, BOS and EOS counted.
        dropped: Number of rows without a sentence pair, by reason.

    Raises:
        CorpusError: If the file is not there, is no cache, or holds other text.
    """

    def __init__(self, path: str, fingerprint: str) -> None:
        import pyarrow  # type: ignore[import-untyped]

        self.path, self.fingerprint = path, fingerprint
        if (reason := _misfit(Path(path), fingerprint)) is not None:
            raise CorpusError(f"{reason}: was {path} replaced by another run?")
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(path))
        parts = [reader.get_batch_with_custom_metadata(number) for number in range(reader.num_record_batches)]
        self._offsets = {side: [part.column(side).offsets.to_numpy() for part, _ in parts] for side in _SIDES}
        self._ids = {side: [part.column(side).values.to_numpy() for part, _ in parts] for side in _SIDES}
        self._firsts = np.cumsum([0, *(len(part) for part, _ in parts)]).tolist()
        self.lengths: dict[str, npt.NDArray[np.int32]] = {
            side: np.concatenate([np.empty(0, np.int32), *map(np.diff, self._offsets[side])]) for side in _SIDES
        }
        self.dropped: Counter[str] = Counter()
        for _, notes in parts:
            self.dropped.update(json.loads(notes[b"dropped"]))

    def __len__(self) -> int:
        """Number of sentence pairs."""
        return len(self.lengths["src"])

    def ids(self, side: str, row: int) -> npt.NDArray[Any]:
        """One sentence, ``side`` being ``src`` or ``tgt``."""
        part = bisect_right(self._firsts, row) - 1
        start, end = self._offsets[side][part][row - self._firsts[part] :][:2]
        ids: npt.NDArray[Any] = self._ids[side][part][start:end]
        return ids

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        """Other processes map the file themselves."""
        return open_cache, (self.path, self.fingerprint)


@lru_cache(maxsize=2)
def open_cache(path: str, fingerprint: str) -> TokenCache:
    """The cache in a file, mapped once for each process."""
    return TokenCache(path, fingerprint)


def write_or_open_cache(
    path: str | Path,
    corpora: Sequence[ParallelCorpus],
    tokenizer: SubwordTokenizer,
    on_bad_row: OnBadRow = "skip",
) -> TokenCache:
    """Opens the cache of a text, after writing it if it is not there or holds other text.

    Of several processes that call this at once one writes, under a lock on ``<path>.lock``, while the others wait.
    The file appears when it is complete; a crash leaves the old one as it was.

    Args:
        path: The file.
        corpora: The text.
        tokenizer: Makes the ids.
        on_bad_row: Whether rows that are no sentence pair are left out or stop the writing.

    Raises:
        CorpusError: If the text cannot be read, the file cannot be written, or a file of another kind stands there.
    """
    path, fingerprint = Path(path), cache_fingerprint(corpora, tokenizer)
    if _misfit(path, fingerprint) is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if (reason := _misfit(path, fingerprint)) is not None:
                    logger.info("writing the token cache %s, because %s", path, reason)
                    _write(path, _encoded(corpora, tokenizer, on_bad_row), corpora, tokenizer, fingerprint)
        except OSError as error:
            raise CorpusError(f"cannot write the token cache {path}: {error.strerror or error}") from error
    return open_cache(str(path), fingerprint)


def cache_fingerprint(corpora: Sequence[ParallelCorpus], tokenizer: SubwordTokenizer) -> str:
    """Changes with the text, the way to read it, and the ids that the tokenizer gives."""
    content = [_VERSION, tokenizer.fingerprint, *(corpus.fingerprint() for corpus in corpora)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


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

    Attributes:
        start: Where to begin.
        dropped: Number of rows left out of each epoch, by reason.
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
    ) -> None:
        super().__init__()
        self.cache, self.batches, self.pool_size, self.seed, self.repeat = cache, batches, pool_size, seed, repeat
        self.start, self.lanes = start_of(0), [0]
        self.dropped = Counter(cache.dropped)
        self._kept = np.concatenate([np.empty(0, np.int64), *self._judged(limits)])

    def __iter__(self) -> Iterator[Pool | LaneEnd]:
        """The pools of this worker."""
        worker = get_worker_info()
        workers, mine = (worker.num_workers, worker.id) if worker else (1, 0)
        epoch, first = self.start["epoch"], self.start["lanes"][0]["pool"]
        turn = 0
        while True:
            order = self._order(epoch)
            last = -(-len(order) // self.pool_size)
            for number in range(first, last + 1):
                if turn % workers == mine:
                    yield self._pool(epoch, number, order) if number < last else LaneEnd(epoch, 0)
                turn += 1
            if not self.repeat:
                return
            epoch, first = epoch + 1, 0

    def _pool(self, epoch: int, number: int, order: npt.NDArray[Any]) -> Pool:
        rows = order[number * self.pool_size :][: self.pool_size]
        src, tgt = (self.cache.lengths[side][rows] for side in _SIDES)
        batches = self.batches(src.tolist(), (tgt - 1).tolist(), f"{self.seed}/{epoch}/0/{number}")
        sides = [CachedSentences(self.cache, side, rows) for side in _SIDES]
        return Pool(epoch, 0, {**lane_start(), "pool": number}, sides[0], sides[1], batches, Counter())

    def _order(self, epoch: int) -> npt.NDArray[Any]:
        if not self.batches.shuffle:
            return self._kept
        seed = random.Random(f"{self.seed}/{epoch}").getrandbits(32)
        return np.random.RandomState(seed).permutation(self._kept)  # unlike default_rng the same in all versions

    def _judged(self, limits: LengthLimits) -> Iterator[npt.NDArray[np.int64]]:
        """The rows within the limits, a block at a time; counts the others."""
        for start in range(0, len(self.cache), _BLOCK):
            src, tgt = (self.cache.lengths[side][start : start + _BLOCK].astype(np.int64) for side in _SIDES)
            shapes, which, counts = np.unique((src << 32) | (tgt - 1), return_inverse=True, return_counts=True)
            reasons = [
                reason_to_drop(limits, self.batches, shape >> 32, shape & 0xFFFFFFFF) for shape in shapes.tolist()
            ]
            for reason, count in zip(reasons, counts.tolist(), strict=True):
                if reason is not None:
                    self.dropped[reason] += count
            yield start + np.flatnonzero(np.array([reason is None for reason in reasons])[which])


def _misfit(path: Path, fingerprint: str) -> str | None:
    """Why a file cannot serve as the cache of a text; None if it can."""
    import pyarrow

    if not path.exists():
        return "it is not there yet"
    try:
        with pyarrow.memory_map(str(path)) as file:
            notes = pyarrow.ipc.open_file(file).schema.metadata or {}
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise CorpusError(f"{path} is no token cache: delete it, or set cache_path to another file") from error
    if b"lit_transformer.cache" not in notes:
        raise CorpusError(f"{path} is another Arrow file, no token cache: set cache_path to another file")
    return None if notes[b"lit_transformer.cache"] == fingerprint.encode() else "text or tokenizer are not the same"


def _write(
    path: Path,
    pools: Iterator[tuple[Ragged, Ragged, Counter[str]]],
    corpora: Sequence[ParallelCorpus],
    tokenizer: SubwordTokenizer,
    fingerprint: str,
) -> None:
    import pyarrow

    is_small = max(tokenizer.src_vocab_size, tokenizer.vocab_size) <= 1 << 16
    sentences = pyarrow.list_(pyarrow.field("ids", pyarrow.uint16() if is_small else pyarrow.int32(), nullable=False))
    fields = [pyarrow.field(side, sentences, nullable=False) for side in _SIDES]
    schema = pyarrow.schema(fields, metadata={"lit_transformer.cache": fingerprint})
    draft = path.with_name(f".{path.name}.{socket.gethostname()}.tmp")  # one that a crash left is written over
    progress = _Progress(path, sum(corpus.approximate_rows() for corpus in corpora))
    try:
        with pyarrow.OSFile(str(draft), "wb") as file, pyarrow.ipc.new_file(file, schema) as writer:
            for src, tgt, dropped in pools:
                columns = [_list_array(side, sentences) for side in (src, tgt)]
                notes = {"dropped": json.dumps(dropped)}
                writer.write_batch(pyarrow.record_batch(columns, schema=schema), custom_metadata=notes)
                progress.count(len(src) + dropped.total(), int(src.lengths.sum() + tgt.lengths.sum()))
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    progress.close()


def _encoded(
    corpora: Sequence[ParallelCorpus], tokenizer: SubwordTokenizer, on_bad_row: OnBadRow
) -> Iterator[tuple[Ragged, Ragged, Counter[str]]]:
    """All sentence pairs, corpus after corpus, whatever their lengths: limits apply when batches are made."""
    everything = TokenBudgetBatches(sys.maxsize), LengthLimits(sys.maxsize)
    for corpus in corpora:
        yield from PoolStream([corpus], tokenizer, *everything, on_bad_row=on_bad_row).encoded()


def _list_array(side: Ragged, kind: Any) -> Any:
    import pyarrow

    ids = pyarrow.array(side.flat.astype(kind.value_type.to_pandas_dtype()))
    return pyarrow.ListArray.from_arrays(pyarrow.array(side.starts.astype(np.int32)), ids, type=kind)


class _Progress:
    """Says from time to time how far the writing has come."""

    def __init__(self, path: Path, total: int) -> None:
        self._path, self._total, self._rows, self._tokens = path, total, 0, 0
        self._start = self._spoken = time.monotonic()

    def count(self, rows: int, tokens: int) -> None:
        """Adds what has been written."""
        self._rows, self._tokens, now = self._rows + rows, self._tokens + tokens, time.monotonic()
        if now - self._spoken >= _PROGRESS_SECONDS:
            self._spoken = now
            speed = self._tokens / (now - self._start)
            message = "token cache: %s of about %s rows, %s tokens/s"
            logger.info(message, f"{self._rows:,}", f"{self._total:,}", f"{speed:,.0f}")

    def close(self) -> None:
        """Says that all is done."""
        seconds = time.monotonic() - self._start
        message = "wrote the token cache %s: %s rows, %s tokens in %.0f seconds"
        logger.info(message, self._path, f"{self._rows:,}", f"{self._tokens:,}", seconds)
