"""Scores of each corpus of an evaluation, beside those of all its sentences together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lit_transformer.callbacks.score_files import describe_score
from lit_transformer.metrics import CorpusScore, Interval


class CorpusScores(NamedTuple):
    """What the sentences of one corpus score.

    Args:
        name: The corpus.
        num_sentences: How many of its sentences were translated.
        values: Each score by name, in percent.
        intervals: Where each of them lies in 95 % of the resampled test sets.
    """

    name: str
    num_sentences: int
    values: dict[str, float]
    intervals: dict[str, Interval]

    def described(self, metrics: Mapping[str, object]) -> dict[str, Any]:
        """The scores as the file of scores has them.

        Args:
            metrics: What the scores were made with, by name.
        """
        scores = {
            name: describe_score(value, metrics[name], self.intervals[name]) for name, value in self.values.items()
        }
        return {"name": self.name, "num_sentences": self.num_sentences, "scores": scores}


def score_corpora(
    sections: Sequence[tuple[str, int]],
    numbers: np.ndarray[Any, Any],
    counts: Mapping[str, np.ndarray[Any, Any]],
    scores: Mapping[str, CorpusScore],
) -> list[CorpusScores]:
    """Scores each corpus on its own; those of which no sentence was translated are left out.

    Args:
        sections: Name of each corpus and number of its first sentence, rising.
        numbers: Numbers of the translated sentences, rising.
        counts: What each score counted of them, one row a sentence.
        scores: What makes scores of counts, by the same names.
    """
    bounds = np.searchsorted(numbers, [first for _, first in sections]).tolist()
    found = []
    ends = [*bounds, len(numbers)][1:]
    for (name, _), begin, end in zip(sections, bounds, ends, strict=True):
        if begin < end:
            parts = {kind: rows[begin:end] for kind, rows in counts.items()}
            values = {kind: scores[kind].score(rows.sum(0).tolist()) for kind, rows in parts.items()}
            intervals = {kind: scores[kind].interval(rows) for kind, rows in parts.items()}
            found.append(CorpusScores(name, end - begin, values, intervals))
    return found


def table_of(corpora: Sequence[CorpusScores]) -> str:
    """The scores as a table to print, one line a corpus; behind ± half of the 95 % interval, as sacrebleu has it.

    Example:
        >>> print(table_of([CorpusScores("talks.dev", 1200, {"bleu": 31.25}, {"bleu": Interval(30.4, 32.1, 31.3)})]))
        corpus     sentences          bleu
        talks.dev      1,200  31.25 ± 0.85
    """
    kinds = list(corpora[0].values) if corpora else []
    rows = [["corpus", "sentences", *kinds]]
    for one in corpora:
        cells = [f"{one.values[kind]:.2f} ± {one.intervals[kind].half_width:.2f}" for kind in kinds]
        rows.append([one.name, f"{one.num_sentences:,}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(rows, aligned, strict=True))
