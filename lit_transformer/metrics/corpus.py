"""BLEU, chrF and TER of a whole corpus, equal to sacrebleu's for every way of cutting it into batches."""

from __future__ import annotations

from typing import Literal

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from lit_transformer.interfaces import InputError
from lit_transformer.metrics.score import SacrebleuScore


class CorpusBLEU(SacrebleuScore):
    """BLEU of a whole corpus, equal to ``sacrebleu.corpus_bleu`` for every way of cutting it into batches.

    For text that is in tokens already, as the ``lc.norm.tok`` files of Multi30k, ``tokenize="none"`` and
    ``lowercase=True`` give the lower-cased tokenised BLEU of the papers; ``MosesBLEU`` gives it for plain text.

    Source: Papineni et al. 2002; Post 2018, "A Call for Clarity in Reporting BLEU Scores".

    Args:
        tokenize: sacrebleu's name of the way to split text into words before counting: ``13a`` for most languages,
            ``zh`` or ``char`` for those written without spaces, ``intl``, ``none``; ``ja-mecab``, ``ko-mecab`` and
            ``flores200`` need further packages, which sacrebleu then names.
        lowercase: Whether case is ignored.
        smooth_method: What to do about n-grams that never match.
        max_ngram_order: Longest n-grams that are counted, in words.
        name: What the score is logged as; two scores of one evaluation need two names.

    Raises:
        ValueError: If sacrebleu has no such tokenization, or ``max_ngram_order`` is below 1.
        InputError: If the tokenization needs a package that is not installed.

    Example:
        >>> bleu = CorpusBLEU()
        >>> bleu.update(["the cat sat on the mat"], ["the cat sat on a mat"])
        >>> print(f"{bleu.compute():.2f}")
        53.73
    """

    def __init__(
        self,
        tokenize: str = "13a",
        lowercase: bool = False,
        smooth_method: Literal["exp", "floor", "add-k", "none"] = "exp",
        max_ngram_order: int = 4,
        name: str = "bleu",
    ) -> None:
        if tokenize not in BLEU.TOKENIZERS:
            raise ValueError(f"tokenize must be one of {', '.join(BLEU.TOKENIZERS)}; got {tokenize!r}")
        if max_ngram_order < 1:
            raise ValueError(f"max_ngram_order must be at least 1 word, got {max_ngram_order}")
        try:
            scorer = BLEU(
                tokenize=tokenize,
                lowercase=lowercase,
                smooth_method=smooth_method,
                max_ngram_order=max_ngram_order,
                force=tokenize == "none",  # else sacrebleu warns of text in tokens, which is what was asked for
            )
        except RuntimeError as error:
            raise InputError(f"tokenize={tokenize}: {' '.join(str(error).split())}") from error
        super().__init__(scorer, 2 + 2 * max_ngram_order, name)


class CorpusChrF(SacrebleuScore):
    """chrF of a whole corpus, equal to ``sacrebleu.corpus_chrf`` for every way of cutting it into batches.

    It compares character n-grams, so it needs no words and suits languages with rich endings, such as Korean.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation"; with words Popović 2017.

    Args:
        char_order: Longest n-grams of characters.
        word_order: Longest n-grams of words: 0 is chrF, 2 is chrF++.
        beta: How many times recall weighs as much as precision.
        lowercase: Whether case is ignored.
        name: What the score is logged as; two scores of one evaluation need two names.

    Raises:
        ValueError: If ``char_order`` is below 1 or ``word_order`` below 0.

    Example:
        >>> chrf = CorpusChrF()
        >>> chrf.update(["the cat sat"], ["the cat sat"])
        >>> print(f"{chrf.compute():.2f}")
        100.00
    """

    def __init__(
        self, char_order: int = 6, word_order: int = 0, beta: int = 2, lowercase: bool = False, name: str = "chrf"
    ) -> None:
        if char_order < 1 or word_order < 0:
            raise ValueError(
                f"char_order must be at least 1 and word_order at least 0, got char_order={char_order} "
                f"and word_order={word_order}"
            )
        scorer = CHRF(char_order=char_order, word_order=word_order, beta=beta, lowercase=lowercase)
        super().__init__(scorer, 3 * (char_order + word_order), name)


class CorpusTER(SacrebleuScore):
    """TER of a whole corpus, equal to ``sacrebleu.corpus_ter`` for every way of cutting it into batches.

    How many words would have to be inserted, deleted, replaced or moved in blocks to turn the translations into the
    references, for each 100 words of these: the lower the better, and above 100 for text that has nothing in common.
    The search for the best moves takes several times as long as BLEU, and far more in long sentences that repeat words.

    Source: Snover et al. 2006, "A Study of Translation Edit Rate with Targeted Human Annotation".

    Args:
        case_sensitive: Whether a word in another case is another word.
        normalized: Whether punctuation is split off before counting, as the program of the paper can do.
        no_punct: Whether punctuation is left out.
        asian_support: Whether ``normalized`` and ``no_punct`` know the characters of Chinese, Japanese and Korean.
        name: What the score is logged as; two scores of one evaluation need two names.

    Example:
        >>> ter = CorpusTER()
        >>> ter.update(["on the mat sat the old cat"], ["the cat sat on the mat"])
        >>> print(f"{ter.compute():.2f}")
        50.00
    """

    higher_is_better = False

    def __init__(
        self,
        case_sensitive: bool = False,
        normalized: bool = False,
        no_punct: bool = False,
        asian_support: bool = False,
        name: str = "ter",
    ) -> None:
        scorer = TER(
            case_sensitive=case_sensitive, normalized=normalized, no_punct=no_punct, asian_support=asian_support
        )
        super().__init__(scorer, 2, name)
