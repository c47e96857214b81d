"""Parallel text from anywhere as one kind of object: Hub datasets, own files, or text inside the package."""

from __future__ import annotations

import copy
import difflib
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any, Literal, Protocol

from lit_transformer.data.textfiles import (
    CorpusError,
    FilePair,
    Row,
    State,
    TextFiles,
    approximate_lines,
    expand,
    file_identity,
    find_aligned,
    is_address,
)
from lit_transformer.interfaces import SentencePair

__all__ = ["CorpusError", "ParallelCorpus", "TeachingCorpus"]

CHUNK_ROWS = 1000  # rows read at once
_UNKNOWN_ROWS = 1_000_000  # stands for the size of a stream that does not tell; only proportions depend on it
_BUILDERS = {
    ".parquet": ("parquet", {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t", "quoting": 3}),  # 3: quotation marks are ordinary characters
}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


class Source(Protocol):
    """Where rows come from: what text files, `datasets` and lists in memory have in common."""

    def chunks(self, state: State | None, size: int) -> Iterator[tuple[list[Row], State]]:
        """Rows from the place ``state`` on, each time with the place that follows them."""

    def fingerprint(self) -> list[Any]:
        """Plain data that change when the text changes."""

    def approximate_rows(self) -> int:
        """About how many rows there are."""


class ParallelCorpus:
    """Sentences with their translations, streamed from the Hub or from own files.

    What ``path`` names decides how it is read:

    - ``data/train`` with the files ``data/train.en`` and ``data/train.de`` beside it: line-aligned text, where
      ``src`` and ``tgt`` are the endings; each file plain or compressed (``.gz``, ``.xz``, ``.bz2``, ``.zst``).
    - a parquet, JSON lines, CSV or TSV file, or a pattern such as ``data/*.parquet``: ``src`` and ``tgt`` are column
      names, or languages inside a ``translation`` column.
    - a folder: text files ``<split>.<src>`` in it, else whatever ``datasets`` finds there.
    - anything else: a dataset of the Hugging Face Hub, ``owner/name`` or ``owner/name@revision``.

    ``~`` and ``$VARIABLES`` in paths are replaced. Iterating gives every pair as raw text, in order.

    Args:
        path: Prefix, file, pattern, folder or Hub name, as above.
        src: Language, column or file ending of the source side.
        tgt: The same of the target side; None for text without translations.
        name: Configuration of a Hub dataset, such as ``de-en``.
        split: Part of the dataset, such as ``train`` or ``validation``.
        src_path: A text file with one source sentence in each line, instead of ``path``.
        tgt_path: The text file with their translations, line by line.
        max_rows: Read only so many rows; None reads all.

    Raises:
        ValueError: If both or neither of ``path`` and ``src_path`` are given, or ``max_rows`` is below 1.
        CorpusError: When reading, if the text cannot be read.

    Example:
        >>> corpus = ParallelCorpus("data/train", src="en", tgt="ko")
        >>> corpus.read_row({"en": "I love cats", "ko": "나는 고양이를 좋아해"})
        SentencePair(src='I love cats', tgt='나는 고양이를 좋아해')
    """

    def __init__(
        self,
        path: str | None = None,
        src: str = "en",
        tgt: str | None = "de",
        name: str | None = None,
        split: str = "train",
        src_path: str | None = None,
        tgt_path: str | None = None,
        max_rows: int | None = None,
    ) -> None:
        if (path is None) == (src_path is None):
            raise ValueError("give either path or src_path, so that the corpus knows where its text is")
        if tgt_path is not None and src_path is None:
            raise ValueError(f"tgt_path={tgt_path!r} needs src_path beside it")
        if src_path is not None and tgt is not None and tgt_path is None:
            raise ValueError("src_path needs tgt_path beside it; for text without translations set tgt: null")
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self.path, self.src, self.tgt, self.name, self.split = path, src, tgt, name, split
        self.src_path, self.tgt_path, self.max_rows = src_path, tgt_path, max_rows
        self._source: Source | None = None
        self._fingerprint: str | None = None

    def read_row(self, row: Row) -> SentencePair | None:
        """Turns one row into a sentence pair; None drops the row. Override this to read other layouts.

        Args:
            row: Column names and values; of text files the two lines, named by ``src`` and ``tgt``.

        Raises:
            CorpusError: If a column is not there or does not hold text.
        """
        if self.src not in row and isinstance(row.get("translation"), dict):
            row = row["translation"]
        return SentencePair(self._text(row, self.src), "" if self.tgt is None else self._text(row, self.tgt))

    def rows(self, state: State | None = None, size: int = CHUNK_ROWS) -> Iterator[tuple[list[Row], State]]:
        """Streams the rows, ``size`` at once, each time with the place that follows them.

        Args:
            state: A place that this method gave earlier, to go on from there; plain data.
            size: Rows at once; the last time there may be fewer.

        Raises:
            CorpusError: If the text cannot be read, or there is none.
        """
        count = state["row"] if state else 0
        room = (self.max_rows or float("inf")) - count
        if room <= 0:
            return
        for rows, inner in self._opened().chunks(state["inner"] if state else None, size):
            kept = rows if len(rows) <= room else rows[: int(room)]
            count, room = count + len(kept), room - len(kept)
            yield kept, {"row": count, "inner": inner}
            if room <= 0:
                return
        if count == 0:
            raise CorpusError(f"{self} is empty: expected at least one row")

    def __iter__(self) -> Iterator[SentencePair]:
        """Every sentence pair, in order, from the start."""
        for rows, _ in self.rows():
            yield from filter(None, map(self.read_row, rows))

    def fingerprint(self) -> str:
        """A hash that changes when the text or the way to read it changes, and not when files are copied."""
        if self._fingerprint is None:
            content = [type(self).__qualname__, self.src, self.tgt, self.max_rows, self._opened().fingerprint()]
            self._fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        return self._fingerprint

    def approximate_rows(self) -> int:
        """About how many rows there are; several corpora are mixed in this proportion."""
        return max(1, min(self._opened().approximate_rows(), self.max_rows or _UNKNOWN_ROWS**2))

    def open(self) -> Source:
        """Finds out what the arguments name. Override this to add a source of another kind.

        Raises:
            CorpusError: If there is no such file.
        """
        if self.src_path is not None:
            tgt = None if self.tgt is None or self.tgt_path is None else (self.tgt, expand(self.tgt_path))
            return TextFiles((self.src, expand(self.src_path)), tgt)
        path = expand(str(self.path))
        aligned = find_aligned(path, self.src, self.tgt)
        if aligned is None and os.path.isdir(path):
            aligned = find_aligned(os.path.join(path, self.split), self.src, self.tgt)
        return self._table(path) if aligned is None else self._text_files(aligned)

    def __repr__(self) -> str:
        """The corpus as messages name it."""
        place = self.path or f"{self.src_path}, {self.tgt_path}"
        languages = self.src if self.tgt is None else f"{self.src}-{self.tgt}"
        details = [part for part in (self.name, self.split if self.split != "train" else None) if part]
        return f"{type(self).__name__}({', '.join([place, languages, *details])})"

    def _opened(self) -> Source:
        if self._source is None:
            self._source = self.open()
        return self._source

    def _text_files(self, files: FilePair) -> TextFiles:
        return TextFiles((self.src, files.src), None if self.tgt is None else (self.tgt, str(files.tgt)))

    def _table(self, path: str) -> DatasetRows:
        if is_address(path) or os.path.isfile(path) or glob.has_magic(path):
            return DatasetRows.from_files(path, self.split)
        if os.path.isdir(path) or _HUB_NAME.fullmatch(path):
            return DatasetRows(path, self.name, self.split)
        raise CorpusError(f"{path} is no file, folder or Hub dataset, nor are there {path}.{self.src} and .{self.tgt}")

    def _text(self, row: Row, column: str) -> str:
        if column not in row:
            near = difflib.get_close_matches(column, map(str, row), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise CorpusError(f"{self} has no column {column!r}, there are {', '.join(map(str, row))}{hint}")
        value = row[column]
        if value is not None and not isinstance(value, str):
            raise CorpusError(f"column {column!r} of {self} holds {type(value).__name__}, expected text: {value!r:.60}")
        return value or ""


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
        self.style = style

    def open(self) -> Source:
        """Makes the sentences of this split."""
        from lit_transformer.data.teaching import teaching_pairs

        pairs = teaching_pairs(self.split, self.style)
        return _Rows([{"en": pair.src, "ko": pair.tgt} for pair in pairs])


class DatasetRows:
    """Rows of anything that `datasets` can stream: Hub datasets, folders and tables in files.

    Args:
        path: A Hub name, optionally with ``@revision``, a folder, or the name of a builder such as ``parquet``.
        name: Configuration of the dataset.
        split: Part of the dataset.
        files: The data files, if ``path`` is a builder.
        options: Further options of the builder.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        files: list[str] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.path, self.name, self.split, self.files, self.options = path, name, split, files, options or {}

    @classmethod
    def from_files(cls, pattern: str, split: str) -> DatasetRows:
        """The table files that a path or pattern names.

        Raises:
            CorpusError: If there are none, or their ending is not known.
        """
        local = not is_address(pattern) and glob.has_magic(pattern) and not os.path.exists(pattern)
        files = sorted(glob.glob(pattern, recursive=True)) if local else [pattern]
        if not files:
            raise CorpusError(f"no file matches {pattern}")
        ending = next((part for part in reversed(re.findall(r"\.\w+", os.path.basename(files[0])))
                       if part in _BUILDERS), None)  # fmt: skip
        if ending is None:
            raise CorpusError(
                f"cannot tell what {files[0]} is: expected an ending among {', '.join(_BUILDERS)}, or for "
                "line-aligned text src_path and tgt_path"
            )
        builder, options = _BUILDERS[ending]
        return cls(builder, None, split, files, options)

    def chunks(self, state: State | None, size: int) -> Iterator[tuple[list[Row], State]]:
        """Rows from the place ``state`` on; ``iter(batch_size)`` keeps all rows in every worker process."""
        dataset = self._load()
        if state is not None:
            dataset.load_state_dict(copy.deepcopy(state))
        batches = iter(dataset.iter(batch_size=size))
        while True:
            try:
                columns = next(batches, None)
            except Exception as error:  # readers below `datasets` raise whatever they like
                raise CorpusError(f"cannot read {self._label()}: {_first_line(error)}") from error
            if columns is None:
                return
            names = list(columns)
            rows = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            yield rows, copy.deepcopy(dataset.state_dict())

    def fingerprint(self) -> list[Any]:
        """Names, sizes and ends of the files; of a Hub dataset its name and revision."""
        files = self.files or []
        if os.path.isdir(self.path):
            found = sorted(glob.glob(os.path.join(self.path, "**", "*"), recursive=True))
            files = [path for path in found if os.path.isfile(path)]
        place = "folder" if os.path.isdir(self.path) else self.path
        return [place, self.name, self.split, *map(file_identity, files)]

    def approximate_rows(self) -> int:
        """From parquet's own count, the lines of a file, or what the Hub says."""
        if self.path == "parquet" and not any(map(is_address, self.files or [])):
            return sum(map(_parquet_rows, self.files or []))
        if self.files:
            return sum(map(approximate_lines, self.files))
        splits = self._load().info.splits or {}
        known = splits[self.split].num_examples if self.split in splits else 0
        return known or _UNKNOWN_ROWS

    def _load(self) -> Any:
        import datasets  # type: ignore[import-untyped]

        path, _, revision = self.path.partition("@") if not os.path.exists(self.path) else (self.path, "", "")
        files = {"data_files": {self.split: self.files}} if self.files else {}
        missing = [file for file in self.files or [] if not is_address(file) and not os.path.isfile(file)]
        if missing:
            raise CorpusError(f"cannot open {missing[0]}: No such file or directory")
        try:
            return datasets.load_dataset(
                path, self.name, split=self.split, revision=revision or None, streaming=True, **files, **self.options
            )
        except Exception as error:  # the Hub client raises errors of several network libraries
            raise CorpusError(f"cannot open {self._label()}: {_first_line(error)}{self._hint(error)}") from error

    def _label(self) -> str:
        if self.files:
            return self.files[0] + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")
        kind = "folder" if os.path.isdir(self.path) else "Hub dataset"
        return f"the {kind} {self.path}" + (f" ({self.name})" if self.name else "") + f", split {self.split!r}"

    def _hint(self, error: Exception) -> str:
        if self.files or os.path.isdir(self.path):
            return ""
        if isinstance(error, OSError) or "connect" in str(error).lower():
            return " (there is no local file of this name either, and no network or no such dataset)"
        return ""


class _Rows:
    """Rows kept in memory."""

    def __init__(self, rows: list[Row]) -> None:
        self._all = rows

    def chunks(self, state: State | None, size: int) -> Iterator[tuple[list[Row], State]]:
        for start in range(state["row"] if state else 0, len(self._all), size):
            chunk = self._all[start : start + size]
            yield chunk, {"row": start + len(chunk)}

    def fingerprint(self) -> list[Any]:
        return [hashlib.sha256(json.dumps(self._all).encode()).hexdigest()]

    def approximate_rows(self) -> int:
        return len(self._all)


def _parquet_rows(path: str) -> int:
    from pyarrow import ArrowException  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    try:
        with ParquetFile(path) as file:
            return int(file.metadata.num_rows)
    except (OSError, ArrowException) as error:
        raise CorpusError(f"cannot read {path}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error  # "An error occurred while generating the dataset" hides the reason
    return (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
