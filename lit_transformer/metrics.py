"""Corpus scores of translations: sacrebleu's own counts, summed over batches and processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor
from torchmetrics import Metric


class CorpusScore(Metric, ABC):
    """A score that sacrebleu computes from counts which may be summed over sentences.

    The mean of batch scores is not the score of the corpus. So only integer counts are kept, as torchmetrics states
    that are summed over processes, and sacrebleu turns them into a score at the end. They stay 64-bit integers
    whatever precision the model has.

    Subclass it for another score of this kind: give ``count``, ``score`` and ``signature``.

    Args:
        num_counts: How many counts one corpus has.

    Raises:
        ValueError: If the score is asked for before any sentence was counted, or if the hypotheses and references of
            an update are not two lists of equal length.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    name: str
    counts: Tensor
    num_sentences: Tensor

    def __init__(self, num_counts: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(num_counts, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_sentences", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[int]:
        """The counts of some sentences, at least one."""

    @abstractmethod
    def score(self, counts: list[int]) -> float:
        """The score in percent, from 0 to 100, that the counts of a corpus amount to."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """What a reader needs to know to reproduce the score."""

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Counts sentences.

        Args:
            hypotheses: Translations as plain text, not tokenized.
            references: What people wrote, as plain text, one for each hypothesis.
        """
        if isinstance(hypotheses, str) or isinstance(references, str):
            raise ValueError("hypotheses and references must be lists of sentences, got a single string")
        if len(hypotheses) != len(references):
            raise ValueError(
                f"each hypothesis needs one reference, got {len(hypotheses)} hypotheses, {len(references)} references"
            )
        if not hypotheses:
            return
        self.counts += torch.tensor(self.count(hypotheses, references), device=self.counts.device)
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


class CorpusBLEU(CorpusScore):
    """BLEU of a whole corpus, equal to ``sacrebleu.corpus_bleu`` for every way of cutting it into batches.

    Source: Papineni et al. 2002; Post 2018, "A Call for Clarity in Reporting BLEU Scores".

    Args:
        tokenize: sacrebleu's name of the way to split text into words before counting: ``13a`` for most languages,
            ``zh`` or ``char`` for those written without spaces, ``intl``, ``none``; ``ja-mecab``, ``ko-mecab`` and
            ``flores200`` need further packages, which sacrebleu then names.
        lowercase: Whether case is ignored.
        smooth_method: What to do about n-grams that never match.
        max_ngram_order: Longest n-grams that are counted, in words.

    Raises:
        ValueError: If sacrebleu has no such tokenization, or ``max_ngram_order`` is below 1.

    Example:
        >>> bleu = CorpusBLEU()
        >>> bleu.update(["the cat sat on the mat"], ["the cat sat on a mat"])
        >>> print(f"{bleu.compute():.2f}")
        53.73
    """

    name = "bleu"

    def __init__(
        self,
        tokenize: str = "13a",
        lowercase: bool = False,
        smooth_method: Literal["exp", "floor", "add-k", "none"] = "exp",
        max_ngram_order: int = 4,
    ) -> None:
        if tokenize not in BLEU.TOKENIZERS:
            raise ValueError(f"tokenize must be one of {', '.join(BLEU.TOKENIZERS)}; got {tokenize!r}")
        if max_ngram_order < 1:
            raise ValueError(f"max_ngram_order must be at least 1 word, got {max_ngram_order}")
        super().__init__(num_counts=2 + 2 * max_ngram_order)
        self.smooth_method, self.max_ngram_order = smooth_method, max_ngram_order
        options: dict[str, Any] = {"tokenize": tokenize, "lowercase": lowercase, "max_ngram_order": max_ngram_order}
        # "add-k" would write its constants into the counts of every batch, so counting is done without smoothing.
        self._counter = BLEU(**options, smooth_method="none")
        self._signature = _signature(BLEU(**options, smooth_method=smooth_method))

    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[int]:
        """Words of the hypotheses, words of the references, matching n-grams and all n-grams of each order."""
        score = self._counter.corpus_score(hypotheses, [references])
        return [score.sys_len, score.ref_len, *score.counts, *score.totals]

    def score(self, counts: list[int]) -> float:
        """BLEU in percent."""
        sys_len, ref_len, *ngrams = counts
        return BLEU.compute_bleu(
            correct=ngrams[: self.max_ngram_order],
            total=ngrams[self.max_ngram_order :],
            sys_len=sys_len,
            ref_len=ref_len,
            smooth_method=self.smooth_method,
            max_ngram_order=self.max_ngram_order,
        ).score

    @property
    def signature(self) -> str:
        """The signature of sacrebleu: number of references, case, tokenization, smoothing and version."""
        return self._signature


class CorpusChrF(CorpusScore):
    """chrF of a whole corpus, equal to ``sacrebleu.corpus_chrf`` for every way of cutting it into batches.

    It compares character n-grams, so it needs no words and suits languages with rich endings, such as Korean.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation"; with words Popović 2017.

    Args:
        char_order: Longest n-grams of characters.
        word_order: Longest n-grams of words: 0 is chrF, 2 is chrF++.
        beta: How many times recall weighs as much as precision.
        lowercase: Whether case is ignored.

    Raises:
        ValueError: If ``char_order`` is below 1 or ``word_order`` below 0.

    Example:
        >>> chrf = CorpusChrF()
        >>> chrf.update(["the cat sat"], ["the cat sat"])
        >>> print(f"{chrf.compute():.2f}")
        100.00
    """

    name = "chrf"

    def __init__(self, char_order: int = 6, word_order: int = 0, beta: int = 2, lowercase: bool = False) -> None:
        if char_order < 1 or word_order < 0:
            raise ValueError(
                f"char_order must be at least 1 and word_order at least 0, got char_order={char_order} "
                f"and word_order={word_order}"
            )
        super().__init__(num_counts=3 * (char_order + word_order))
        self._chrf = CHRF(char_order=char_order, word_order=word_order, beta=beta, lowercase=lowercase)
        self._signature = _signature(self._chrf)

    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[int]:
        """For each order the n-grams of the hypotheses, those of the references, and those in both."""
        # sacrebleu publishes no way to get at chrF's counts; test_metrics.py pins the two private methods used here.
        sentences = self._chrf._extract_corpus_statistics(hypotheses, [references])
        return [sum(column) for column in zip(*sentences, strict=True)]

    def score(self, counts: list[int]) -> float:
        """ChrF in percent."""
        return float(self._chrf._compute_score_from_stats(counts).score)

    @property
    def signature(self) -> str:
        """The signature of sacrebleu: number of references, case, orders, white space and version."""
        return self._signature


def _signature(metric: BLEU | CHRF) -> str:
    """The signature for one reference; sacrebleu knows their number only once it has scored something."""
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())
