"""Intervals are sacrebleu's own, and those of every number of processes."""

import numpy as np
import pytest
import sacrebleu
from sentences import corpus

from lit_transformer.metrics import CorpusBLEU, CorpusChrF, CorpusScore, CorpusTER, MosesBLEU

SCORERS = [
    (CorpusBLEU(), sacrebleu.BLEU()),
    (CorpusBLEU("char", lowercase=True), sacrebleu.BLEU(tokenize="char", lowercase=True)),
    (CorpusBLEU(smooth_method="add-k"), sacrebleu.BLEU(smooth_method="add-k")),
    (CorpusChrF(), sacrebleu.CHRF()),
    (CorpusTER(), sacrebleu.TER()),
]


@pytest.mark.parametrize("seed", [12345, 7])
@pytest.mark.parametrize(("metric", "scorer"), SCORERS)
def test_the_interval_equals_sacrebleu(
    metric: CorpusScore, scorer: sacrebleu.BLEU, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", str(seed))
    hypotheses, references = corpus(83)
    expected = scorer.corpus_score(hypotheses, [references], n_bootstrap=1000)
    interval = metric.interval(metric.count(hypotheses, references), seed=seed)
    assert interval.mean == pytest.approx(expected._mean, abs=1e-4)  # sacrebleu adds up chrF and TER in float32
    assert interval.half_width == pytest.approx(expected._ci, abs=1e-4)
    assert interval.low < scorer.corpus_score(hypotheses, [references]).score < interval.high
    assert metric.interval_signature(seed=seed) == str(scorer.get_signature())


def test_sacrebleu_takes_the_same_seed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    hypotheses, references = corpus(40)
    expected = sacrebleu.BLEU().corpus_score(hypotheses, [references], n_bootstrap=200)
    metric = CorpusBLEU()
    interval = metric.interval(metric.count(hypotheses, references), num_resamples=200)
    assert (interval.mean, interval.half_width) == pytest.approx((expected._mean, expected._ci), abs=1e-6)


def test_nothing_is_uncertain_about_equal_sentences() -> None:
    metric = CorpusBLEU()
    rows = metric.count(["the cat sat on a mat"] * 5, ["the cat sat on the mat"] * 5)
    interval = metric.interval(rows)
    assert interval.low == interval.high == pytest.approx(interval.mean)


def test_the_signature_of_other_scores_tells_the_draws_too() -> None:
    signature = MosesBLEU("de").interval_signature(num_resamples=10, seed=3)
    assert signature.startswith("nrefs:1|bs:10|seed:3|case:mixed|")


def test_no_sentences_have_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one sentence"):
        CorpusBLEU().interval(np.zeros((0, 10), dtype=np.int64))
