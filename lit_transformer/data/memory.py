"""Parallel text that is in memory already: pairs, rows, a loaded dataset, or the teaching sentences of this package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from lit_transformer.data.corpus import ParallelCorpus, Source, check_two_names
from lit_transformer.data.filters import PairFilter
from lit_transformer.data.textfiles import CorpusError, Row, State


class MemoryCorpus(ParallelCorpus):
    """Sentences with their translations out of a list, or out of a dataset that ``datasets`` has loaded.

    Args:
        rows: Pairs ``(source, target)``; or mappings from column names to text, as ``datasets.Dataset`` holds them,
            whose columns ``src`` and ``tgt`` name; or, with ``tgt=None``, plain sentences. They are not copied.
        src: Language or column of the source side.
        tgt: The same of the target side; None for text without translations.
        max_rows: Take only so many rows; None takes all.
        filter: Which pairs training leaves out; None leaves out none.
        src_tag: A token put before each source sentence, such as ``<2de>``.
        label: What tables of scores and messages call it, to tell several of them apart.

    Raises:
        CorpusError: If ``rows`` is no list, as a stream, a table of pandas or several splits at once.
        ValueError: As of ``ParallelCorpus``, or if ``label`` is empty.

    Example:
        >>> corpus = MemoryCorpus([("I love cats", "나는 고양이를 좋아해")], src="en", tgt="ko")
        >>> list(corpus)
        [SentencePair(src='I love cats', tgt='나는 고양이를 좋아해')]
    """

    def __init__(
        self,
        rows: Sequence[Any],
        src: str = "en",
        tgt: str | None = "de",
        max_rows: int | None = None,
        filter: PairFilter | None = None,
        src_tag: str | None = None,
        label: str = "text in memory",
    ) -> None:
        _check_kind(rows)
        check_two_names(src, tgt)
        if not label.strip():
            raise ValueError("label must name the text, got an empty one")
        super().__init__(label, src, tgt, max_rows=max_rows, filter=filter, src_tag=src_tag)
        self._rows = rows

    @property
    def label(self) -> str:
        """The name for tables, as it was given."""
        return str(self.path)

    def open(self) -> Source:
        """The rows as they are."""
        return MemoryRows(self._rows, self.src, self.tgt)


class MemoryRows:
    """Rows kept in memory, as a source of a corpus.

    Args:
        rows: Pairs, mappings or sentences, as ``MemoryCorpus`` takes them.
        src: Name of the source column.
        tgt: Name of the target column, or None.
    """

    def __init__(self, rows: Sequence[Any], src: str, tgt: str | None) -> None:
        self._all, self._columns = rows, [src] if tgt is None else [src, tgt]

    def chunks(self, state: State | None, size: int) -> Iterator[tuple[list[Row], State]]:
        """Rows by column, at most ``size`` at once, each time with the place that follows them."""
        for start in range(state["row"] if state else 0, len(self._all), size):
            chunk = [self._row(row) for row in self._slice(start, start + size)]
            yield chunk, {"row": start + len(chunk)}

    def lane(self, lane: int, num_lanes: int) -> None:
        """No lane of its own: what is in memory is soon stepped over."""
        return

    def fingerprint(self) -> list[Any]:
        """A hash of all text in the rows; of other values only their kinds count."""
        digest, separator = hashlib.sha256(b"["), b""
        for rows, _ in self.chunks(None, 1000):
            for row in rows:
                digest.update(separator + json.dumps(row, skipkeys=True, default=_kind).encode())
                separator = b", "
        digest.update(b"]")
        return [digest.hexdigest()]

    def approximate_rows(self) -> int:
        """The number of rows."""
        return len(self._all)

    def _slice(self, start: int, stop: int) -> list[Any]:
        part: Any = self._all[start:stop]
        if isinstance(part, Mapping):  # of a datasets.Dataset: a column each
            return [dict(zip(part, values, strict=True)) for values in zip(*part.values(), strict=True)]
        return list(part)

    def _row(self, row: Any) -> Row:
        """The row by columns; one of another shape as what it has, so that it counts as a bad row."""
        if isinstance(row, Mapping):
            return dict(row)
        fields = list(row) if isinstance(row, (tuple, list)) else [row]
        if len(fields) > len(self._columns):
            return {f"{len(fields)} fields": fields}
        return dict(zip(self._columns, fields, strict=False))


def _kind(value: Any) -> str:
    return type(value).__name__


def _check_kind(rows: Any) -> None:
    """Takes what gives a list, or a dataset's columns, for a slice."""
    try:
        part = rows[:1]
    except Exception:  # each kind of object that cannot do it has its own
        part = None
    if not isinstance(part, (list, tuple, Mapping)):
        hint = "list(rows) may make one"
        if isinstance(rows, Mapping):
            hint = f"choose a part of it, such as rows[{next(iter(rows), 'train')!r}]"
        elif hasattr(rows, "iloc"):
            hint = 'rows.to_dict("records") makes one'
        elif hasattr(rows, "tolist"):
            hint = "rows.tolist() makes one"
        raise CorpusError(f"rows must be a list of pairs or a loaded dataset, got {_kind(rows)}: {hint}")


class TeachingCorpus(ParallelCorpus):
    """English sentences with Korean translations that are made by a small grammar inside the package.

    It needs no files and no network. Scores on it prove that the machinery works, not that it translates well.

    Args:
        split: ``train``, ``validation`` or ``test``; test sentences are combinations that training never shows.
        style: ``plain`` (나는 고양이를 좋아해) or ``polite`` (저는 고양이를 좋아해요).
        max_rows: Read only so many pairs; None reads all.
    """

    def __init__(
        self,
        split: Literal["train", "validation", "test"] = "train",
        style: Literal["plain", "polite"] = "plain",
        max_rows: int | None = None,
    ) -> None:
        super().__init__(f"teaching text, {style}", "en", "ko", split=split, max_rows=max_rows)
        self._choice = split, style

    def open(self) -> Source:
        """Makes the sentences of this split."""
        from lit_transformer.data.teaching import teaching_pairs

        return MemoryRows(teaching_pairs(*self._choice), "en", "ko")
