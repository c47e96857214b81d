"""Corpus scores equal sacrebleu's, however the corpus is cut into batches and dealt over processes."""

import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentences import corpus
from torch import distributed, multiprocessing

from lit_transformer.metrics import CorpusBLEU, CorpusChrF, CorpusScore, CorpusTER


def scored(metric: CorpusScore, hypotheses: list[str], references: list[str], batch_size: int) -> float:
    for start in range(0, len(hypotheses), batch_size):
        metric.update(hypotheses[start : start + batch_size], references[start : start + batch_size])
    return metric.compute().item()


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("tokenize", ["13a", "char", "intl", "none", "zh"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_bleu_equals_sacrebleu(tokenize: str, lowercase: bool, batch_size: int) -> None:
    hypotheses, references = corpus(100)
    expected = sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokenize, lowercase=lowercase).score
    assert 5 < expected < 95
    assert scored(CorpusBLEU(tokenize, lowercase), hypotheses, references, batch_size) == pytest.approx(
        expected, abs=1e-9
    )


@given(cuts=st.sets(st.integers(1, 59)), seed=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_any_cut_gives_the_same_score(cuts: set[int], seed: int) -> None:
    hypotheses, references = corpus(60, seed)
    bleu, chrf = CorpusBLEU(), CorpusChrF()
    edges = [0, *sorted(cuts), 60]
    for start, end in pairwise(edges):
        bleu.update(hypotheses[start:end], references[start:end])
        chrf.update(hypotheses[start:end], references[start:end])
    assert bleu.compute().item() == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score, abs=1e-9)
    assert chrf.compute().item() == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [references]).score, abs=1e-9)


@pytest.mark.parametrize("smooth_method", ["exp", "floor", "add-k", "none"])
@pytest.mark.parametrize("max_ngram_order", [2, 4])
def test_smoothing_equals_sacrebleu(smooth_method: str, max_ngram_order: int) -> None:
    hypotheses = ["the cat sat on mats", "a dog"] * 3  # no 4-gram matches
    references = ["the cat sat upon a mat", "one dog"] * 3
    scorer = sacrebleu.BLEU(smooth_method=smooth_method, max_ngram_order=max_ngram_order)
    expected = scorer.corpus_score(hypotheses, [references]).score
    metric = CorpusBLEU(smooth_method=smooth_method, max_ngram_order=max_ngram_order)  # type: ignore[arg-type]
    assert scored(metric, hypotheses, references, 2) == pytest.approx(expected, abs=1e-9)
    assert metric.signature == str(scorer.get_signature())


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("options", [{}, {"word_order": 2}, {"char_order": 3, "beta": 1}, {"lowercase": True}])
def test_chrf_equals_sacrebleu(options: dict[str, int], batch_size: int) -> None:
    hypotheses, references = corpus(100)
    scorer = sacrebleu.CHRF(**options)
    expected = scorer.corpus_score(hypotheses, [references]).score
    metric = CorpusChrF(**options)  # type: ignore[arg-type]
    assert 5 < expected < 95
    assert scored(metric, hypotheses, references, batch_size) == pytest.approx(expected, abs=1e-9)
    assert metric.signature == str(scorer.get_signature())


TER_OPTIONS: list[dict[str, bool]] = [
    {},
    {"case_sensitive": True},
    {"normalized": True, "no_punct": True},
    {"normalized": True, "no_punct": True, "asian_support": True},
]


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("options", TER_OPTIONS)
def test_ter_equals_sacrebleu(options: dict[str, bool], batch_size: int) -> None:
    hypotheses, references = corpus(100)
    scorer = sacrebleu.TER(**options)  # type: ignore[arg-type]
    expected = scorer.corpus_score(hypotheses, [references]).score
    metric = CorpusTER(**options)  # type: ignore[arg-type]
    assert 5 < expected < 95
    assert scored(metric, hypotheses, references, batch_size) == pytest.approx(expected, abs=1e-9)
    assert metric.signature == str(scorer.get_signature())
    assert not metric.higher_is_better


def test_signature_says_how_it_was_scored() -> None:
    scorer = sacrebleu.BLEU(tokenize="char", lowercase=True)
    scorer.corpus_score(["a"], [["a"]])
    assert CorpusBLEU(tokenize="char", lowercase=True).signature == str(scorer.get_signature())
    assert CorpusBLEU().signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


@pytest.mark.parametrize(
    ("metric", "scorer"),
    [
        (CorpusBLEU(), sacrebleu.corpus_bleu),
        (CorpusChrF(), sacrebleu.corpus_chrf),
        (CorpusTER(), sacrebleu.corpus_ter),
    ],
)
def test_empty_and_hopeless_sentences_count(metric: CorpusScore, scorer: Callable[..., Any]) -> None:
    hypotheses, references = ["", "the cat sat on the mat", "???"], ["gone", "the cat sat on the mat", ""]
    assert scored(metric, hypotheses, references, 1) == pytest.approx(scorer(hypotheses, [references]).score, abs=1e-9)
    metric.reset()
    assert scored(metric, [""], [""], 1) == 0.0


@pytest.mark.parametrize("metric_class", [CorpusBLEU, CorpusChrF, CorpusTER])
def test_counts_stay_whole_numbers(metric_class: type[CorpusScore]) -> None:
    hypotheses, references = corpus(40)
    plain, converted = metric_class(), metric_class()
    converted.half().bfloat16().set_dtype(torch.float16).type(torch.float16).to(torch.bfloat16)
    many = 2**25 + 1  # not a float32
    converted.counts += many
    assert converted.counts.tolist() == [many] * len(converted.counts)
    converted.reset()
    assert scored(converted, hypotheses, references, 3) == scored(plain, hypotheses, references, 40)
    assert plain.compute().dtype == torch.float64
    assert pickle.loads(pickle.dumps(plain)).compute() == plain.compute()


def test_reset_forgets() -> None:
    metric = CorpusBLEU()
    metric.update(["a b c d"], ["x y z w"])
    metric.reset()
    metric.update(["a b c d"], ["a b c d"])
    assert metric.compute().item() == pytest.approx(100.0)


@pytest.mark.usefixtures("without_mecab")
def test_bad_use_is_named() -> None:
    with pytest.raises(ValueError, match=r"tokenize must be one of .*13a.*; got 'words'"):
        CorpusBLEU(tokenize="words")
    with pytest.raises(ValueError, match="max_ngram_order must be at least 1 word, got 0"):
        CorpusBLEU(max_ngram_order=0)
    with pytest.raises(ValueError, match="got char_order=0 and word_order=0"):
        CorpusChrF(char_order=0)
    with pytest.raises(ValueError, match=r"tokenize=ko-mecab: .* pip install sacrebleu\[ko\]"):
        CorpusBLEU(tokenize="ko-mecab")
    metric = CorpusBLEU()
    with pytest.raises(ValueError, match="got 2 hypotheses, 1 references"):
        metric.update(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="got a single string"):
        metric.update("a", "b")
    metric.update([], [])
    with pytest.raises(ValueError, match="CorpusBLEU has counted no sentences"):
        metric.compute()


def _score_in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    hypotheses, references = corpus(31)
    metrics = [CorpusBLEU(), CorpusChrF(), CorpusTER()]
    for metric in metrics:
        metric.update([], [])
        for start in range(0, 31, 4):
            if start < 8 or rank == 0:  # two batches are shared, the rest is the first process's
                own = slice(start + 2 * rank, start + 2 * rank + 2) if start < 8 else slice(start, start + 4)
                metric.update(hypotheses[own], references[own])
    torch.save([metric.compute().item() for metric in metrics], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_the_whole_corpus(tmp_path: Path) -> None:
    multiprocessing.spawn(_score_in_process, args=(str(tmp_path),), nprocs=2)
    hypotheses, references = corpus(31)
    expected = [
        sacrebleu.corpus_bleu(hypotheses, [references]).score,
        sacrebleu.corpus_chrf(hypotheses, [references]).score,
        sacrebleu.corpus_ter(hypotheses, [references]).score,
    ]
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, abs=1e-9)
