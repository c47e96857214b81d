"""Which of two systems is better, and how sure that is: sacrebleu's paired bootstrap test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sacrebleu.significance import PairedTest, Result

from lit_transformer.metrics.corpus import CorpusBLEU, CorpusChrF
from lit_transformer.metrics.score import NUM_RESAMPLES


class Compared(NamedTuple):
    """What a paired test says of one system in one score.

    Args:
        score: The score of the system, in percent.
        mean: Its mean over the resampled test sets.
        half_width: Half the width of the range that holds it in 95 % of them.
        p_value: How often chance alone would make a difference from the first system as large as the one found, if
            the two were equally good; None for the first system itself.
    """

    score: float
    mean: float
    half_width: float
    p_value: float | None


class PairedScores(NamedTuple):
    """The outcome of a paired test in one score.

    Args:
        signature: sacrebleu's, with the number of resamples and the seed.
        systems: What it says of each system, by name; the first is the one that the others are compared with.
    """

    signature: str
    systems: dict[str, Compared]


def paired_bootstrap(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    tokenize: str = "13a",
    lowercase: bool = False,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, PairedScores]:
    """Compares systems with the first of them, in BLEU and in chrF, by sacrebleu's paired bootstrap test.

    Test sets are drawn from the sentences with replacement, the same for all systems. The seed is sacrebleu's: 12345,
    or that of the environment variable ``SACREBLEU_SEED``. Two systems with the same score get the p-value 1.

    Source: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation".

    Args:
        systems: The translations of each system, by its name; at least two systems.
        references: What people wrote, one for each sentence.
        tokenize: sacrebleu's name of the way BLEU splits text into words.
        lowercase: Whether case is ignored.
        num_resamples: How many test sets are drawn.

    Raises:
        ValueError: If there are fewer than two systems, numbers of sentences differ, or sacrebleu has no such
            tokenization.

    Example:
        >>> references = ["the cat sat on the mat", "a dog barks at the moon"]
        >>> worse = ["a cat is sitting on the mat", "the dog barks at a moon"]
        >>> result = paired_bootstrap({"one": worse, "two": references}, references, num_resamples=200)
        >>> print(f"{result['BLEU'].systems['two'].score:.1f}")
        100.0
    """
    if len(systems) < 2:
        raise ValueError(f"a comparison needs at least two systems, got {len(systems)}")
    for name, lines in systems.items():
        if len(lines) != len(references):
            raise ValueError(f"{name} has {len(lines)} sentences, but there are {len(references)} references")
    scorers = {"BLEU": CorpusBLEU(tokenize, lowercase).scorer, "chrF": CorpusChrF(lowercase=lowercase).scorer}
    test = PairedTest(list(systems.items()), scorers, [references], test_type="bs", n_samples=num_resamples)
    signatures, columns = test()
    found = {}
    for name, key in zip(scorers, signatures, strict=True):  # sacrebleu names the columns anew, in the same order
        results = [one for one in columns[key] if isinstance(one, Result)]
        rows = [_compared(one, results[0].score) for one in results]
        found[name] = PairedScores(str(signatures[key]), dict(zip(systems, rows, strict=True)))
    return found


def _compared(result: Result, first: float) -> Compared:
    """What sacrebleu found of one system, beside the score of the first.

    It counts the resamples beyond the difference of the two. If there is no difference it finds none, and would call a
    system significantly different from its own copy.
    """
    p_value = 1.0 if result.p_value is not None and result.score == first else result.p_value
    return Compared(result.score, float(result.mean or 0.0), float(result.ci or 0.0), p_value)
