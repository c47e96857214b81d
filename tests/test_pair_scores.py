"""Scores of pairs against torch's cross-entropy, one sentence at a time."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tiny_run import sentences
from tiny_run import tiny_run as tiny_run
from torch.nn import functional as F

from lit_transformer import pair_scores
from lit_transformer.decoding import BeamSearch, GreedySearch
from lit_transformer.decoding.search import output_caps
from lit_transformer.interfaces import Hypothesis, TranslationNetwork
from lit_transformer.translator import Translator

PAIRS = list(zip(sentences(12, seed=5), sentences(12, seed=6), strict=True))


@pytest.fixture
def translator(tiny_run: Path) -> Translator:
    return Translator.from_pretrained(tiny_run)


@torch.inference_mode()
def by_hand(translator: Translator, source: str, target: str) -> tuple[float, int]:
    (src,), (tgt,) = translator.tokenizer.encode_src([source]), translator.tokenizer.encode_tgt([target])
    logits = translator.network(torch.tensor([src]), torch.tensor([tgt[:-1]]))[0]
    return -F.cross_entropy(logits, torch.tensor(tgt[1:]), reduction="sum").item(), len(tgt) - 1


def test_scores_are_those_of_each_sentence_alone(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [by_hand(translator, *pair) for pair in PAIRS]
    assert len({length for _, length in expected}) > 2
    for window in (5, 2048):
        monkeypatch.setattr(pair_scores, "_WINDOW", window)
        found = list(translator.score(iter(PAIRS)))
        assert [one.length for one in found] == [length for _, length in expected]
        assert [one.log_prob for one in found] == pytest.approx([log_prob for log_prob, _ in expected], rel=1e-4)


def test_right_translations_are_likelier(translator: Translator) -> None:
    right, wrong = translator.score([("one cat", "eins Katze"), ("one cat", "zwei Katze")])
    assert right.log_prob > wrong.log_prob + 1


def test_lines_without_text(translator: Translator) -> None:
    nothing, something, ending = translator.score([("", ""), (" ", "eins"), ("one", "")])
    assert nothing == (0.0, 1)
    assert something == (-float("inf"), 1)
    assert ending == (pytest.approx(by_hand(translator, "one", "")[0], rel=1e-4), 1)


def test_what_is_too_long_is_cut_and_told(translator: Translator, caplog: pytest.LogCaptureFixture) -> None:
    translator.max_length, long = 4, "one two three one two three"
    translator.search = BeamSearch(max_extra_length=1)
    with caplog.at_level(logging.WARNING):
        (found,) = translator.score([(long, "eins zwei eins zwei eins zwei")])
    assert found.length == 5
    assert any("source line 1 has" in line and "is cut to 4" in line for line in caplog.messages)
    assert any("target line 1 has" in line and "is cut to 5" in line for line in caplog.messages)


def test_what_translate_writes_is_scored_whole(tiny_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    class AtLength(GreedySearch):
        """Writes as many tokens as it may."""

        def __call__(self, network: TranslationNetwork, src: torch.Tensor) -> list[list[Hypothesis]]:
            (cap,) = output_caps(network, src, self.max_extra_length).tolist()
            word = translator.tokenizer.encode_tgt(["eins"])[0][1:-1]
            return [[Hypothesis((word * cap)[: cap - 1], 0.0, 0.0)]]

    translator = Translator.from_pretrained(tiny_run, search=AtLength(), max_length=4)
    ((best,),) = translator.translate(["one two"])
    caplog.clear()  # it reached the longest length allowed, and said so
    (found,) = translator.score([("one two", best.text)])
    expected = by_hand(translator, "one two", best.text)
    assert (found.log_prob, found.length) == (pytest.approx(expected[0], rel=1e-4), expected[1])
    assert found.length > 50
    assert not caplog.messages


def test_targets_stay_within_the_network(translator: Translator, caplog: pytest.LogCaptureFixture) -> None:
    longest = translator.network.max_length
    assert longest == 64
    (found,) = translator.score([("one", "eins " * 99)])
    assert found.length == longest


def test_dropout_rests_and_training_goes_on(translator: Translator) -> None:
    expected = list(translator.score(PAIRS[:2]))
    translator.network.train()
    assert list(translator.score(PAIRS[:2])) == expected
    assert translator.network.training
