"""The training text as ids in one Arrow file: written once, mapped into the memory of every process."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_transformer.data.batching import LengthLimits, Ragged, TokenBudgetBatches
from lit_transformer.data.corpus import ParallelCorpus
from lit_transformer.data.filters import OnBadRow
from lit_transformer.data.locks import locked
from lit_transformer.data.pools import SIDES, PoolStream
from lit_transformer.data.textfiles import CorpusError
from lit_transformer.data.tokenizer import SubwordTokenizer

logger = logging.getLogger(__name__)

_VERSION = 1
_PROGRESS_SECONDS = 10.0


class TokenCache:
    """Sentence pairs as ids in a memory-mapped file; what is not looked at is not read.

    Args:
        path: The file.
        fingerprint: What ``cache_fingerprint`` gave for it.

    Attributes:
        lengths: For each side the lengths of all sentences, in tokens, BOS and EOS counted.
        sizes: The number of sentence pairs of each corpus.
        ends: The same, added up to the end of each corpus.
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
        self._offsets = {side: [part.column(side).offsets.to_numpy() for part, _ in parts] for side in SIDES}
        self._ids = {side: [part.column(side).values.to_numpy() for part, _ in parts] for side in SIDES}
        self._firsts = np.cumsum([0, *(len(part) for part, _ in parts)]).tolist()
        self.lengths: dict[str, npt.NDArray[np.int32]] = {
            side: np.concatenate([np.empty(0, np.int32), *map(np.diff, self._offsets[side])]) for side in SIDES
        }
        self.dropped: Counter[str] = Counter()
        sizes: Counter[int] = Counter()
        for part, notes in parts:
            self.dropped.update(json.loads(notes[b"dropped"]))
            sizes[int(notes[b"corpus"])] += len(part)
        self.sizes = list(sizes.values())
        self.ends: list[int] = np.cumsum(self.sizes).tolist()

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
    path, fingerprint = Path(path), cache_fingerprint(corpora, tokenizer, on_bad_row)
    if _misfit(path, fingerprint) is not None:
        with ExitStack() as stack:
            with _naming(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(path))
            if (reason := _misfit(path, fingerprint)) is not None:
                logger.info("writing the token cache %s, because %s", path, reason)
                _write(path, _encoded(corpora, tokenizer, on_bad_row), corpora, tokenizer, fingerprint)
    return open_cache(str(path), fingerprint)


def cache_fingerprint(
    corpora: Sequence[ParallelCorpus], tokenizer: SubwordTokenizer, on_bad_row: OnBadRow = "skip"
) -> str:
    """Changes with the text, the way to read it, and the ids that the tokenizer gives."""
    content = [_VERSION, on_bad_row, tokenizer.fingerprint, *(corpus.fingerprint() for corpus in corpora)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


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
    return (
        None
        if notes[b"lit_transformer.cache"] == fingerprint.encode()
        else "text, tokenizer or on_bad_row are not the same"
    )


def _write(
    path: Path,
    pools: Iterator[tuple[int, Ragged, Ragged, Counter[str]]],
    corpora: Sequence[ParallelCorpus],
    tokenizer: SubwordTokenizer,
    fingerprint: str,
) -> None:
    import pyarrow

    is_small = max(tokenizer.src_vocab_size, tokenizer.vocab_size) <= 1 << 16
    sentences = pyarrow.list_(pyarrow.field("ids", pyarrow.uint16() if is_small else pyarrow.int32(), nullable=False))
    fields = [pyarrow.field(side, sentences, nullable=False) for side in SIDES]
    schema = pyarrow.schema(fields, metadata={"lit_transformer.cache": fingerprint})
    draft = path.with_name(f".{path.name}.{socket.gethostname()}.tmp")  # one that a crash left is written over
    progress = _Progress(path, [corpus.approximate_rows() for corpus in corpora])
    try:
        with ExitStack() as stack:
            with _naming(path):
                file = stack.enter_context(pyarrow.OSFile(str(draft), "wb"))
                writer = stack.enter_context(pyarrow.ipc.new_file(file, schema))
            try:
                for number, src, tgt, dropped in pools:
                    columns = [_list_array(side, sentences) for side in (src, tgt)]
                    notes = {"corpus": str(number), "dropped": json.dumps(dropped)}
                    with _naming(path):
                        writer.write_batch(pyarrow.record_batch(columns, schema=schema), custom_metadata=notes)
                    progress.count(len(src) + dropped.total(), int(src.lengths.sum() + tgt.lengths.sum()))
            except BaseException:
                with suppress(OSError):  # a full disk stops the closing too; what went wrong before must be told
                    stack.close()
                raise
            with _naming(path):
                stack.close()
                with open(draft, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    progress.close()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Says of an error of the file system which file it stopped; errors of the text do not belong in here."""
    try:
        yield
    except OSError as error:
        raise CorpusError(f"cannot write the token cache {path}: {error.strerror or error}") from error


def _encoded(
    corpora: Sequence[ParallelCorpus], tokenizer: SubwordTokenizer, on_bad_row: OnBadRow
) -> Iterator[tuple[int, Ragged, Ragged, Counter[str]]]:
    """All sentence pairs with the numbers of their corpora, of any length: limits apply when batches are made."""
    everything = TokenBudgetBatches(sys.maxsize), LengthLimits(sys.maxsize)
    for number, corpus in enumerate(corpora):
        for pool in PoolStream([corpus], tokenizer, *everything, on_bad_row=on_bad_row).encoded():
            yield number, *pool


def _list_array(side: Ragged, kind: Any) -> Any:
    import pyarrow

    ids = pyarrow.array(side.flat.astype(kind.value_type.to_pandas_dtype()))
    return pyarrow.ListArray.from_arrays(pyarrow.array(side.starts.astype(np.int32)), ids, type=kind)


class _Progress:
    """Says from time to time how far the writing has come."""

    def __init__(self, path: Path, sizes: Sequence[int | None]) -> None:
        known = [size for size in sizes if size is not None]
        self._of = f" of about {sum(known):,}" if len(known) == len(sizes) else ""
        self._path, self._rows, self._tokens = path, 0, 0
        self._start = self._spoken = time.monotonic()

    def count(self, rows: int, tokens: int) -> None:
        """Adds what has been written."""
        self._rows, self._tokens, now = self._rows + rows, self._tokens + tokens, time.monotonic()
        if now - self._spoken >= _PROGRESS_SECONDS:
            self._spoken = now
            speed = self._tokens / (now - self._start)
            message = "token cache: %s%s rows, %s tokens/s"
            logger.info(message, f"{self._rows:,}", self._of, f"{speed:,.0f}")

    def close(self) -> None:
        """Says that all is done."""
        seconds = time.monotonic() - self._start
        message = "wrote the token cache %s: %s rows, %s tokens in %.0f seconds"
        logger.info(message, self._path, f"{self._rows:,}", f"{self._tokens:,}", seconds)
