"""Parallel text from anywhere as one kind of object: Hub datasets or own files, read row by row."""

from __future__ import annotations

import difflib
import glob
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, Protocol

from lit_transformer.data.filters import BadRowError, PairFilter, plain_attributes
from lit_transformer.data.network import is_address, persistent
from lit_transformer.data.tables import DatasetRows, ending_of_table
from lit_transformer.data.textfiles import (
    COMPRESSED,
    CorpusError,
    FilePair,
    Row,
    State,
    TextFiles,
    expand,
    find_aligned,
    plain_or_compressed,
)
from lit_transformer.interfaces import SentencePair
from lit_transformer.vocabulary import check_tag

__all__ = ["CorpusError", "ParallelCorpus"]

CHUNK_ROWS = 1000  # rows read at once
_HUB_NAME = re.compile(r"(?!.*(--|\.\.))\w([\w.-]*\w)?(/\w([\w.-]*\w)?)?(@[\w./-]+)?")


class Source(Protocol):
    """Where rows come from: what text files, `datasets` and lists in memory have in common."""

    def chunks(self, state: State | None, size: int) -> Iterator[tuple[list[Row], State]]:
        """Rows from the place ``state`` on, each time with the place that follows them."""

    def lane(self, lane: int, num_lanes: int) -> Source | None:
        """The part of the text that belongs to a lane, if it can be read without reading the rest."""

    def fingerprint(self) -> list[Any]:
        """Plain data that change when the text changes."""

    def approximate_rows(self) -> int | None:
        """About how many rows there are; None if that is not known without reading them all."""


class ParallelCorpus:
    """Sentences with their translations, streamed from the Hub or from own files.

    What ``path`` names decides how it is read:

    - ``data/train`` with the files ``data/train.en`` and ``data/train.de`` beside it: line-aligned text, where
      ``src`` and ``tgt`` are the endings; each file plain or compressed (``.gz``, ``.xz``, ``.bz2``, ``.zst``).
    - a parquet, JSON lines, CSV or TSV file, or a pattern such as ``data/*.parquet``: ``src`` and ``tgt`` are column
      names, or languages inside a ``translation`` column.
    - a folder: text files ``<split>.<src>`` in it, else whatever ``datasets`` finds there.
    - anything else without the ending of a table: a dataset of the Hugging Face Hub, ``owner/name`` or
      ``owner/name@revision``.

    ``~`` and ``$VARIABLES`` in paths are replaced. Iterating gives every pair as raw text, in order.

    Args:
        path: Prefix, file, pattern, folder or Hub name, as above.
        src: Language, column or file ending of the source side.
        tgt: The same of the target side; None for text without translations.
        name: Configuration of a Hub dataset, such as ``de-en``.
        split: Part of the dataset, such as ``train`` or ``validation``; of folders and Hub datasets only.
        src_path: A text file with one source sentence in each line, instead of ``path``; plain or compressed, whose
            ending may be left out.
        tgt_path: The text file with their translations, line by line.
        max_rows: Read only so many rows; None reads all.
        filter: Which pairs training leaves out of this corpus, such as ``{max_words: 100}``; None leaves out none.
        src_tag: A token put before each source sentence, such as ``<2de>``, to tell a multilingual model the language
            that it should write. The vocabulary keeps it in one piece.

    Raises:
        ValueError: If both or neither of ``path`` and ``src_path`` are given, ``max_rows`` is below 1, or ``src_tag``
            is not a word in angle brackets, or two files are to have one name.
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
        filter: PairFilter | None = None,
        src_tag: str | None = None,
    ) -> None:
        if (path is None) == (src_path is None):
            raise ValueError("give either path or src_path, so that the corpus knows where its text is")
        if tgt_path is not None and src_path is None:
            raise ValueError(f"tgt_path={tgt_path!r} needs src_path beside it")
        if src_path is not None and tgt is not None and tgt_path is None:
            raise ValueError("src_path needs tgt_path beside it; for text without translations set tgt: null")
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        if src_path != tgt_path:
            check_two_names(src, tgt)
        self.path, self.src, self.tgt, self.name, self.split = path, src, tgt, name, split
        self.src_path, self.tgt_path, self.max_rows = src_path, tgt_path, max_rows
        self.filter, self.src_tag = filter, None if src_tag is None else check_tag(src_tag)
        self._source: Source | None = None
        self._fingerprint: str | None = None
        self._was_read = False

    def read_row(self, row: Row) -> SentencePair | None:
        """Turns one row into a sentence pair; None drops the row. Override this to read other layouts.

        Args:
            row: Column names and values; of text files the two lines, named by ``src`` and ``tgt``.

        Raises:
            BadRowError: If a column is not there or does not hold text.
        """
        if self.src not in row and isinstance(row.get("translation"), dict):
            row = row["translation"]
        return SentencePair(self._text(row, self.src), "" if self.tgt is None else self._text(row, self.tgt))

    def examine(self, row: Row) -> SentencePair | str:
        """A row as training takes it: the sentence pair with its tag, or in a word why it is left out.

        Args:
            row: Column names and values.

        Raises:
            BadRowError: If the row is no sentence pair: a column is missing, does not hold text, or is empty.
        """
        pair = self.read_row(row)
        if pair is None:
            return "rejected"
        for text in pair:
            if not (text.isascii() or _is_unicode(text)):
                raise BadRowError(f"{self} has half a surrogate pair, which is no text: {text!r:.60}", "not text")
        if not pair.src.strip() or not pair.tgt.strip():
            side = self.tgt if pair.src.strip() else self.src
            message = f"{self} has nothing in {side!r}: source {pair.src!r:.60}, target {pair.tgt!r:.60}"
            raise BadRowError(message, "empty")
        reason = None if self.filter is None else self.filter.verdict(pair)
        return reason or self._tagged(pair)

    def rows(
        self, state: State | None = None, size: int = CHUNK_ROWS, lane: int = 0, num_lanes: int = 1
    ) -> Iterator[tuple[list[Row], State]]:
        """Streams the rows, ``size`` at once, each time with the place that follows them.

        Several lanes share the rows: each row belongs to one of them, always the same one. If the text has many more
        shards (files, parquet row groups) than there are lanes, a lane consists of whole shards and reads nothing
        else; otherwise it consists of every ``num_lanes``-th chunk of ``size`` rows and steps over the others.

        Args:
            state: A place that this method gave earlier for the same lane, to go on from there; plain data.
            size: Rows at once; the last time there may be fewer.
            lane: Number of the lane to read.
            num_lanes: Lanes that share the rows.

        Raises:
            CorpusError: If the text cannot be read, or there is none.
        """
        part = self._lane(lane, num_lanes, state is not None) if num_lanes > 1 and self.max_rows is None else None
        if part is None:
            yield from self._strided(state, size, lane, num_lanes)
            return
        count = state["row"] if state else 0
        for rows, inner in self._persistent(part, state["inner"] if state else None, size):
            count += len(rows)
            yield rows, {"row": count, "inner": inner}

    def _lane(self, lane: int, num_lanes: int, is_known: bool) -> Source | None:
        """The lane's own part of the text; finding it may take a look at files beyond a network."""
        source, is_known = self._opened(), is_known or self._was_read
        found = persistent(lambda _: iter([(source.lane(lane, num_lanes), None)]), None, is_known)
        return next(found)[0]

    def _persistent(self, source: Source, state: State | None, size: int) -> Iterator[tuple[list[Row], State]]:
        known = self._was_read or state is not None
        for found in persistent(lambda place: source.chunks(place, size), state, known):
            self._was_read = True
            yield found

    def _strided(self, state: State | None, size: int, lane: int, num_lanes: int) -> Iterator[tuple[list[Row], State]]:
        """Every ``num_lanes``-th chunk; ``seen`` and ``chunk`` count over all lanes, ``row`` over this one."""
        at = state or {"row": 0, "chunk": 0, "seen": 0, "inner": None}
        count, number, seen = at["row"], at["chunk"], at["seen"]
        limit = self.max_rows or sys.maxsize
        if seen >= limit:
            return
        for rows, inner in self._persistent(self._opened(), at["inner"], size):
            kept = rows[: limit - seen]
            number, seen = number + 1, seen + len(kept)
            if (number - 1) % num_lanes == lane:
                count += len(kept)
                yield kept, {"row": count, "chunk": number, "seen": seen, "inner": inner}
            if seen >= limit:
                return
        if seen == 0:
            raise CorpusError(f"{self} is empty: expected at least one row")

    def __iter__(self) -> Iterator[SentencePair]:
        """Every sentence pair, in order, from the start; nothing is filtered."""
        for rows, _ in self.rows():
            yield from map(self._tagged, filter(None, map(self.read_row, rows)))

    def fingerprint(self) -> str:
        """A hash that changes when the text or the way to read it changes, and not when files are copied.

        Of a subclass its name counts, and its own public attributes with plain values, such as numbers and text. What
        else its ``read_row`` depends on does not, its code least of all: then override this too.
        """
        if self._fingerprint is None:
            content: list[Any] = [
                type(self).__qualname__,
                self.src,
                self.tgt,
                self.max_rows,
                self._opened().fingerprint(),
            ]
            if self.filter is not None or self.src_tag is not None:
                content.append([self.src_tag, *(self.filter.fingerprint() if self.filter else ["NoneType", None])])
            if own := plain_attributes(self, without=_KNOWN):
                content.append(own)
            self._fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        return self._fingerprint

    def approximate_rows(self) -> int | None:
        """About how many rows there are; several corpora are mixed in this proportion. None if it is not known."""
        rows = self._opened().approximate_rows()
        return None if rows is None else max(1, min(rows, self.max_rows or sys.maxsize))

    def open(self) -> Source:
        """Finds out what the arguments name. Override this to add a source of another kind.

        Raises:
            CorpusError: If there is no such file.
        """
        if self.src_path is not None:
            src, tgt = plain_or_compressed(expand(self.src_path)), None
            if self.tgt is not None and self.tgt_path is not None:
                tgt = self.tgt, plain_or_compressed(expand(self.tgt_path))
            return TextFiles((self.src, src), tgt)
        path = expand(str(self.path))
        aligned = find_aligned(path, self.src, self.tgt)
        is_file = aligned is not None or is_address(path) or os.path.isfile(path) or glob.has_magic(path)
        if is_file and (self.split != "train" or self.name is not None):
            given = f"split: {self.split}" if self.split != "train" else f"name: {self.name}"
            raise CorpusError(
                f"{given} chooses a part of a folder or of a Hub dataset, but {path} is read whole: leave it out, and "
                "give each part a file of its own"
            )
        if aligned is None and os.path.isdir(path):
            aligned = find_aligned(os.path.join(path, self.split), self.src, self.tgt)
        return self._table(path) if aligned is None else self._text_files(aligned)

    @property
    def label(self) -> str:
        """A short name for tables: the last part of the path, with configuration and split where they matter.

        Example:
            >>> ParallelCorpus("wmt/wmt14", name="de-en", split="validation").label
            'wmt14 de-en validation'
        """
        place = (self.path or str(self.src_path)).rstrip("/").rpartition("/")[2]
        return " ".join([place, *self._details()])

    def _details(self) -> list[str]:
        return [part for part in (self.name, self.split if self.split != "train" else None) if part]

    def __repr__(self) -> str:
        """The corpus as messages name it."""
        place = self.path or f"{self.src_path}, {self.tgt_path}"
        languages = self.src if self.tgt is None else f"{self.src}-{self.tgt}"
        return f"{type(self).__name__}({', '.join([place, languages, *self._details()])})"

    def _opened(self) -> Source:
        if self._source is None:
            self._source = self.open()
        return self._source

    def _text_files(self, files: FilePair) -> TextFiles:
        return TextFiles((self.src, files.src), None if self.tgt is None else (self.tgt, str(files.tgt)))

    def _table(self, path: str) -> DatasetRows:
        columns = [self.src] if self.tgt is None else [self.src, self.tgt]
        if is_address(path) or os.path.isfile(path) or glob.has_magic(path):
            self._check_prefix(path)
            return DatasetRows.from_files(path, self.split, columns)
        if os.path.isdir(path):
            return DatasetRows.from_folder(path, self.name, self.split, columns)
        if ending_of_table(path) is not None:
            raise CorpusError(f"there is no file {path}" + ("" if os.path.isabs(path) else f" in {os.getcwd()}"))
        endings = " and ".join(f"{path}.{lang}" for lang in (self.src, self.tgt) if lang is not None)
        not_found = f"no {endings} (plain or compressed), no file or folder {path}"
        if _HUB_NAME.fullmatch(path):
            return DatasetRows(path, self.name, self.split, not_found=not_found)
        raise CorpusError(f"there is {not_found}, and this cannot be the name of a Hub dataset")

    def _check_prefix(self, path: str) -> None:
        """Refuses one of two aligned files, whose common beginning is the path."""
        stem, ending = os.path.splitext(next((path.removesuffix(e) for e in COMPRESSED if path.endswith(e)), path))
        if ending_of_table(path) is None and ending[1:] in (self.src, self.tgt) and os.path.isfile(path):
            find_aligned(stem, self.src, self.tgt)
            raise CorpusError(f"{path} is text of aligned lines, whose path is given without its ending: {stem}")

    def _tagged(self, pair: SentencePair) -> SentencePair:
        is_bare = self.src_tag is None or not pair.src.strip()  # a tag would make a sentence of nothing
        return pair if is_bare else SentencePair(f"{self.src_tag} {pair.src}", pair.tgt)

    def _text(self, row: Row, column: str) -> str:
        if column not in row:
            near = difflib.get_close_matches(column, map(str, row), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            message = f"{self} has no column {column!r}, there are {', '.join(map(str, row))}{hint}"
            if (self.path or "").endswith((".csv", ".tsv")):
                message += " (the first line of the file names the columns)"
            raise BadRowError(message, "missing column")
        value = row[column]
        if value is not None and not isinstance(value, str):
            message = f"column {column!r} of {self} holds {type(value).__name__}, expected text: {value!r:.60}"
            raise BadRowError(message, "not text")
        return value or ""


_KNOWN = frozenset(vars(ParallelCorpus("")))  # what the fingerprint holds in any case


def check_two_names(src: str, tgt: str | None) -> None:
    """Refuses one name for two texts, of which rows could hold but one."""
    if src == tgt:
        raise ValueError(
            f"src and tgt are both {src!r}, and so would both sides be the same text: give two names, as in "
            "src: informal, tgt: formal"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
