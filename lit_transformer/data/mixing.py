"""Corpora mixed in proportions and dealt to lanes; one that is over may begin again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lit_transformer.data.corpus import CHUNK_ROWS, ParallelCorpus
from lit_transformer.data.cursor import Place, lane_start
from lit_transformer.data.filters import BadRowError, OnBadRow, in_words
from lit_transformer.data.textfiles import CorpusError, Row
from lit_transformer.interfaces import SentencePair

_GUESSED_ROWS = 1_000_000  # of a corpus that does not know its size
_LANE_CHUNK_ROWS = 100  # rows dealt to one lane before the next one gets some: few, so that lanes come out even


class Mixing:
    r"""The proportions in which rows are drawn from several corpora.

    With neither argument set they are the sizes, so that all corpora end together and each sentence comes once in an
    epoch. Otherwise a corpus that is over begins again, and the epoch ends once every corpus has been read to its end:
    each sentence comes at least once, those of corpora with a large share more often.

    Source: for the temperature, Arivazhagan et al. 2019, "Massively Multilingual Neural Machine Translation in the
    Wild", section 4.2: corpora are drawn in proportion to :math:`size^{1/T}`.

    Args:
        weights: Share of each corpus, relative to the others.
        temperature: Makes shares more alike: 1 keeps them in proportion to the sizes, and the larger it is, the more
            rows come from small corpora, up to the same number from each.

    Raises:
        ValueError: If a weight is not above 0, ``temperature`` is below 1, or both are given.
    """

    def __init__(self, weights: Sequence[float] | None = None, temperature: float = 1.0) -> None:
        if weights is not None and not (weights and all(0 < weight < math.inf for weight in weights)):
            raise ValueError(
                f"weights must be numbers above 0, one for each corpus, got {list(weights)}; leave out what gets none"
            )
        if not temperature >= 1:
            raise ValueError(f"temperature must be at least 1, got {temperature}")
        if weights is not None and temperature != 1:
            raise ValueError(f"give either weights or temperature={temperature}: each of them decides the proportions")
        self.weights, self.temperature = None if weights is None else list(weights), temperature

    @property
    def repeats(self) -> bool:
        """Whether corpora begin again within an epoch."""
        return self.weights is not None or self.temperature != 1

    def shares(self, corpora: Sequence[ParallelCorpus], sizes: Sequence[int] | None = None) -> list[float]:
        """The share of each corpus, relative to the others.

        Args:
            corpora: The corpora.
            sizes: Their sizes, where they have been counted. None asks the corpora. One that does not know may be
                guessed as long as each row comes once, since the guess only decides which rows come early.

        Raises:
            CorpusError: If ``temperature`` is set and the size of a corpus is not known.
        """
        if self.weights is not None:
            return self.weights
        if sizes is None:
            sizes = [self._size(corpus) for corpus in corpora]
        return [max(1, size) ** (1 / self.temperature) for size in sizes]

    def _size(self, corpus: ParallelCorpus) -> int:
        size = corpus.approximate_rows()
        if size is None and self.temperature != 1:
            raise CorpusError(f"the size of {corpus} is not known: give weights instead of temperature")
        return min(_GUESSED_ROWS, corpus.max_rows or _GUESSED_ROWS) if size is None else size


def endless_rows(
    corpus: ParallelCorpus, place: dict[str, Any] | None, size: int, lane: int, num_lanes: int
) -> Iterator[tuple[list[Row], dict[str, Any]]]:
    """What ``corpus.rows`` gives, again and again; each pass ends in a chunk without rows.

    The first pass of a lane is its own part of the corpus, the next ones are those of the lanes after it. So lanes
    that keep step read the corpus evenly, and a lane without a part of its own, in a corpus of few rows, has rows too.

    Args:
        corpus: What to read.
        place: A place that was given earlier for the same lane.
        size: Rows at once.
        lane: Number of the lane.
        num_lanes: Lanes that share the rows.

    Raises:
        CorpusError: If the corpus cannot be read, or has no rows.
    """
    at = place or {"row": 0, "pass": 0, "at": None}
    count, number, inner = at["row"], at["pass"], at["at"]
    num_empty = 0
    while num_empty < num_lanes:
        num_empty += inner is None
        start = inner
        for rows, inner in corpus.rows(start, size, (lane + number) % num_lanes, num_lanes):
            count, num_empty = count + len(rows), 0
            yield rows, {"row": count, "pass": number, "at": inner}
        number, inner = number + 1, None
        yield [], {"row": count, "pass": number, "at": None}
    raise CorpusError(f"{corpus} is empty: expected at least one row")


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
