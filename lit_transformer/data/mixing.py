"""In which proportions corpora are mixed, and a corpus that begins again whenever it is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lit_transformer.data.corpus import ParallelCorpus
from lit_transformer.data.textfiles import CorpusError, Row

_GUESSED_ROWS = 1_000_000  # of a corpus that does not know its size


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
        if weights is not None and not all(weight > 0 for weight in weights):
            raise ValueError(
                f"weights must all be above 0, got {list(weights)}; leave a corpus out to give it no share"
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
