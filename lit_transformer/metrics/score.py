"""What all corpus scores share: integer counts that are summed, and an interval from resampled sentences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sacrebleu.metrics.base import Metric as Scorer
from torch import Tensor
from torchmetrics import Metric

NUM_RESAMPLES, SEED = 1000, 12345  # what sacrebleu takes where nothing else is asked for


class Interval(NamedTuple):
    """Where a score lies in 95 % of the resampled test sets.

    Args:
        low: The score that 2.5 % of them stay below.
        high: The score that 2.5 % of them exceed.
        mean: The mean over all of them.
    """

    low: float
    high: float
    mean: float

    @property
    def half_width(self) -> float:
        """Half the distance from low to high: what sacrebleu prints behind ±."""
        return (self.high - self.low) / 2


class CorpusScore(Metric, ABC):
    """A score that is computed from counts which may be summed over sentences.

    The mean of batch scores is not the score of the corpus. So only integer counts are kept, as torchmetrics states
    that are summed over processes, and the score is made of their sums at the end. They stay 64-bit integers whatever
    precision the model has.

    Subclass it for another score of this kind: give ``count``, ``score`` and ``signature``.

    Args:
        num_counts: How many counts one sentence has.
        name: What the score is logged as.

    Raises:
        ValueError: If the score is asked for before any sentence was counted, or if the hypotheses and references of
            an update are not two lists of equal length.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    counts: Tensor
    num_sentences: Tensor

    def __init__(self, num_counts: int, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_state("counts", torch.zeros(num_counts, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_sentences", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[list[int]]:
        """The counts of each sentence."""

    @abstractmethod
    def score(self, counts: list[int]) -> float:
        """The score in percent that the summed counts of a corpus amount to."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """What a reader needs to know to reproduce the score."""

    def update(
        self, hypotheses: Sequence[str], references: Sequence[str], counts: list[list[int]] | None = None
    ) -> None:
        """Counts sentences.

        Args:
            hypotheses: Translations as plain text, not tokenized.
            references: What people wrote, as plain text, one for each hypothesis.
            counts: What ``count`` said of them, if it has been asked already.
        """
        if isinstance(hypotheses, str) or isinstance(references, str):
            raise ValueError("hypotheses and references must be lists of sentences, got a single string")
        if len(hypotheses) != len(references):
            raise ValueError(
                f"each hypothesis needs one reference, got {len(hypotheses)} hypotheses, {len(references)} references"
            )
        if not hypotheses:
            return
        rows = self.count(hypotheses, references) if counts is None else counts
        self.counts += torch.tensor(rows, dtype=torch.int64).sum(0).to(self.counts.device)
        self.num_sentences += len(hypotheses)

    def compute(self) -> Tensor:
        """The score of everything counted so far in percent, a float64 scalar (float32 on devices without float64)."""
        if not self.num_sentences:
            raise ValueError(f"{type(self).__name__} has counted no sentences, so there is no score; update it first")
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.tensor(self.score(self.counts.tolist()), dtype=dtype, device=self.device)

    def set_dtype(self, dst_type: str | torch.dtype) -> CorpusScore:
        """Changes nothing: counts are integers and stay so."""
        return self

    def interval(
        self,
        counts: Sequence[Sequence[int]] | np.ndarray[Any, Any],
        num_resamples: int = NUM_RESAMPLES,
        seed: int = SEED,
    ) -> Interval:
        """The 95 % interval of the score by bootstrap resampling: how far it hangs on the choice of the sentences.

        Test sets of the same size are drawn from the sentences with replacement, and each is scored. With the same
        seed the draws are those of sacrebleu. They depend on the order of the sentences, so put the counts of several
        processes into the order of the corpus.

        Source: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation".

        Args:
            counts: What ``count`` said of each sentence, in the order of the corpus.
            num_resamples: How many test sets are drawn.
            seed: Of the draws.

        Raises:
            ValueError: If there are no sentences.

        Example:
            >>> from lit_transformer.metrics import CorpusChrF
            >>> chrf = CorpusChrF()
            >>> counts = chrf.count(["the cat sat", "a dog"], ["the cat sat", "one dog"])
            >>> print(chrf.interval(counts).high)
            100.0
        """
        rows = np.asarray(counts, dtype=np.float64)  # float64 multiplies fast, and whole numbers stay exact to 2**53
        if not len(rows):
            raise ValueError("an interval needs at least one sentence, got none")
        draws, scores = np.random.default_rng(seed), []
        for _ in range(num_resamples):
            times = np.bincount(draws.choice(len(rows), len(rows)), minlength=len(rows))
            scores.append(self.score([int(total) for total in times @ rows]))
        scores.sort()
        cut = num_resamples // 40
        return Interval(scores[cut], scores[num_resamples - cut - 1], float(np.mean(scores)))

    def interval_signature(self, num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> str:
        """The signature of a score that is given with its interval: also how often and from which seed it was drawn."""
        first, bar, rest = self.signature.partition("|")
        return f"{first}|bs:{num_resamples}|seed:{seed}{bar}{rest}"


class SacrebleuScore(CorpusScore):
    """A corpus score by one of sacrebleu's scorers.

    sacrebleu publishes no way to the counts of single sentences; the tests pin the two methods that are used here, by
    which sacrebleu itself draws its intervals.

    Args:
        scorer: Counts and scores; only for one reference.
        num_counts: How many counts it makes of a sentence.
        name: What the score is logged as.
    """

    def __init__(self, scorer: Scorer, num_counts: int, name: str) -> None:
        super().__init__(num_counts, name)
        self.scorer = scorer
        scorer.corpus_score(["a"], [["a"]])  # the signature tells the number of references once one was seen
        self._signature = str(scorer.get_signature())

    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[list[int]]:
        """The counts of each sentence."""
        rows = self.scorer._extract_corpus_statistics(hypotheses, [references])
        return [[int(number) for number in row] for row in rows]

    def score(self, counts: list[int]) -> float:
        """The score in percent."""
        return float(self.scorer._compute_score_from_stats(counts).score)

    @property
    def signature(self) -> str:
        """The signature of sacrebleu."""
        return self._signature
