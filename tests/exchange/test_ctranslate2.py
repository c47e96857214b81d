"""Export for CTranslate2, judged by CTranslate2: equal log probabilities and translations."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import lit
from tiny_run import sentences
from tiny_run import tiny_run as tiny_run
from transformers import AutoTokenizer

from lit_transformer import SubwordTokenizer, TeachingCorpus, Transformer, Translator
from lit_transformer.decoding import GreedySearch
from lit_transformer.exchange import export_ctranslate2
from lit_transformer.interfaces import InputError

SIZES: dict[str, Any] = {"vocab_size": 610, "num_layers": 2, "d_model": 16, "d_ff": 32, "num_heads": 4}
PAIRS = list(TeachingCorpus("train", max_rows=300))


@pytest.fixture
def engine() -> Callable[[Path], Any]:
    ctranslate2 = pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")
    return lambda folder: ctranslate2.Translator(
        str(folder), device="cpu", compute_type="float32", inter_threads=1, intra_threads=1
    )


def trained_tokenizer(**recipe: Any) -> SubwordTokenizer:
    tokenizer = SubwordTokenizer(**{"vocab_size": 600, "tags": ["<2ko>"], **recipe})
    tokenizer.train(PAIRS)
    return tokenizer


def random_network(**changes: Any) -> Transformer:
    """A network in which every weight matters."""
    network = Transformer(**{**SIZES, **changes})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return network.eval()


def tokens_of(tokenizer: Any, text: str) -> list[str]:
    tokens: list[str] = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    return tokens


@torch.no_grad()
def log_probs(ours: Translator, src: str, tgt: str) -> torch.Tensor:
    """Of each token of the target, EOS too."""
    src_ids, tgt_ids = (
        torch.tensor(ids) for ids in (ours.tokenizer.encode_src([src]), ours.tokenizer.encode_tgt([tgt]))
    )
    scores = ours.network(src_ids, tgt_ids[:, :-1]).log_softmax(dim=-1)
    return scores.gather(2, tgt_ids[:, 1:, None])[0, :, 0]


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({}, {}),
        ({"norm": "pre", "num_decoder_layers": 1}, {"model": "unigram", "byte_fallback": False}),
        ({"positions": "learned", "max_length": 64, "tie": "none", "activation": "silu"}, {"model": "word"}),
        ({"tie": "output", "activation": "gelu", "bias": False, "scale_embedding": False}, {"lowercase": True}),
    ],
    ids=["paper", "pre", "learned", "gelu"],
)
def test_log_probabilities_are_equal(
    engine: Callable[[Path], Any], tmp_path: Path, changes: dict[str, Any], recipe: dict[str, Any]
) -> None:
    ours = Translator(random_network(**changes), trained_tokenizer(**recipe))
    assert export_ctranslate2(ours, tmp_path) == sorted(tmp_path.iterdir())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = [("<2ko> I love cats", "나는 e\u0301 </s>"), *((pair.src, pair.tgt) for pair in PAIRS[:15])]
    src, tgt = ([tokens_of(tokenizer, text) for text in side] for side in zip(*rows, strict=True))
    found = engine(tmp_path).score_batch(src, [tokens[:-1] for tokens in tgt])
    for (source, target), scored in zip(rows, found, strict=True):
        expected = log_probs(ours, source, target)
        torch.testing.assert_close(torch.tensor(scored.log_probs), expected, atol=1e-4, rtol=0)


def test_a_trained_model_translates_the_same(engine: Callable[[Path], Any], tiny_run: Path, tmp_path: Path) -> None:
    finished = lit("export", tiny_run, tmp_path / "fast", "--format", "ctranslate2")
    assert finished.status == 0, finished.err
    tokenizer, lines = AutoTokenizer.from_pretrained(tmp_path / "fast"), sentences(200, seed=9)
    src = [tokens_of(tokenizer, line) for line in lines]
    found = engine(tmp_path / "fast").translate_batch(src, beam_size=1, max_decoding_length=60)
    theirs = [tokenizer.decode(tokenizer.convert_tokens_to_ids(result.hypotheses[0])) for result in found]
    ours = Translator.from_pretrained(tiny_run, search=GreedySearch())(lines)
    ended = [pair for pair in zip(theirs, ours, strict=True) if len(pair[1].split()) < 20]
    assert len(ended) > 150
    assert all(one == other for one, other in ended)


@pytest.mark.parametrize(
    ("changes", "recipe", "words"),
    [
        ({"d_k": 8}, {}, "d_k=8"),
        ({"src_vocab_size": 620, "tie": "none"}, {}, "src_vocab_size=620"),
        ({}, {"joint": False}, "joint=False"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, changes: dict[str, Any], recipe: dict[str, Any], words: str
) -> None:
    ours = Translator(random_network(**changes), trained_tokenizer(**recipe))
    with pytest.raises(InputError, match=words):
        export_ctranslate2(ours, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    monkeypatch.delitem(sys.modules, "ctranslate2.specs", raising=False)
    finished = lit("export", tiny_run, tmp_path / "fast", "--format", "ctranslate2")
    assert finished.status == 1
    assert 'pip install "lit-transformer[ctranslate2]"' in finished.err
    assert finished.err.count("\n") == 1
