"""Ensembles against their definition, against exhaustive search, and as a model of each command."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_transformer import BeamSearch, Ensemble, SubwordTokenizer, Transformer, Translator
from lit_transformer.checkpoints import CheckpointError
from lit_transformer.exchange import export_huggingface
from lit_transformer.interfaces import DecoderState, InputError, SentencePair, TranslationNetwork
from lit_transformer.model_files import build_network, read_model, write_model
from lit_transformer.nn import EnsembleState, PreparedTransformer
from lit_transformer.nn.preparing import PreparedEnsemble
from lit_transformer.nn.products import Precision
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID

SMALL: dict[str, Any] = {"vocab_size": 24, "num_layers": 1, "d_model": 16, "d_ff": 32, "num_heads": 2}
SRC = torch.tensor([[5, 6, 7, EOS_ID], [8, EOS_ID, PAD_ID, PAD_ID]])
TGT = torch.tensor([[BOS_ID, 9, 10], [BOS_ID, 11, 12]])


def networks(*changes: dict[str, Any]) -> list[TranslationNetwork]:
    """Networks that are as sure of themselves as trained ones."""
    torch.manual_seed(0)
    found: list[TranslationNetwork] = []
    for change in changes:
        network = Transformer(**{**SMALL, **change})
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(2)
        found.append(network.eval())
    return found


def of_three() -> Ensemble:
    return Ensemble(networks({}, {"num_layers": 2}, {"norm": "pre", "d_model": 32, "tie": "none"})).eval()


def test_scores_are_logarithms_of_the_mean_probability() -> None:
    ensemble = of_three()
    expected = sum(network(SRC, TGT).double().softmax(-1) for network in ensemble.members) / 3
    torch.testing.assert_close(ensemble(SRC, TGT).double(), expected.log(), rtol=1e-5, atol=1e-5)


def test_words_that_all_find_impossible_keep_a_finite_score() -> None:
    sure = networks({}, {})
    for network in sure:
        with torch.no_grad():
            network.projection.weight[9].mul_(1000)  # type: ignore[union-attr, index, operator]
    assert Ensemble(sure)(SRC, TGT).isfinite().all()


@torch.inference_mode()
def test_steps_give_what_all_positions_at_once_give() -> None:
    ensemble = of_three()
    expected = ensemble(SRC, TGT)
    state: DecoderState = ensemble.start(SRC)
    for position in range(TGT.size(1)):
        logits, state = ensemble.step(TGT[:, position], state)
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_each_network_follows_the_rows_that_are_selected() -> None:
    ensemble = of_three()
    state: DecoderState = ensemble.start(SRC)
    _, state = ensemble.step(TGT[:, 0], state)
    rows = torch.tensor([1, 0, 0])
    logits, _ = ensemble.step(TGT[rows, 1], state.select(rows))
    torch.testing.assert_close(logits, ensemble(SRC, TGT)[rows, 1], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_wide_beam_finds_what_trying_everything_finds() -> None:
    ensemble = Ensemble(networks({"vocab_size": 6}, {"vocab_size": 6})).eval()
    src = torch.tensor([[4, 5, EOS_ID]])
    found = BeamSearch(60, n_best=10, length_penalty=0.6, max_extra_length=0)(ensemble, src)[0]
    words = [token for token in range(6) if token not in (PAD_ID, BOS_ID, EOS_ID)]
    scored = []
    for length in range(1, 4):
        for tokens in itertools.product(words, repeat=length - 1):
            tgt = torch.tensor([[BOS_ID, *tokens]])
            both = [network(src, tgt)[0].double().softmax(-1) for network in ensemble.members]
            chosen = ((both[0] + both[1]) / 2)[range(length), [*tokens, EOS_ID]]
            scored.append((chosen.log().sum().item() / math.pow((5 + length) / 6, 0.6), list(tokens)))
    scored.sort(reverse=True)
    assert [one.tokens for one in found] == [tokens for _, tokens in scored[:10]]
    assert [one.score for one in found] == pytest.approx([score for score, _ in scored[:10]], abs=1e-4)


def test_it_reads_as_far_as_the_shortest_sighted() -> None:
    assert Ensemble(networks({}, {})).max_length is None
    bounded = [{"positions": "learned", "max_length": length} for length in (20, 10)]
    assert Ensemble(networks({}, *bounded)).max_length == 10


def test_networks_that_cannot_work_together_are_refused() -> None:
    with pytest.raises(ValueError, match="one network or more"):
        Ensemble([])
    with pytest.raises(ValueError, match="one vocab_size, got 24, 25"):
        Ensemble(networks({"vocab_size": 25}, {}))
    with pytest.raises(ValueError, match="one src_vocab_size, got 24, 30"):
        Ensemble(networks({"src_vocab_size": 30, "tie": "output"}, {}))
    network = networks({})[0]
    state = network.start(SRC)
    with pytest.raises(TypeError, match="EnsembleState"):
        Ensemble([network]).step(TGT[:, 0], state)


# As a model: translated with, saved and loaded


@pytest.fixture(scope="module")
def tokenizer() -> SubwordTokenizer:
    made = SubwordTokenizer(vocab_size=300)
    made.train([SentencePair(line, line) for line in ("one red cat sees two dogs", "a blue bird", "three fish")] * 4)
    return made


def translator(tokenizer: SubwordTokenizer, **options: Any) -> Translator:
    size = {"vocab_size": tokenizer.num_tokens}
    members = networks({**size, "d_model": 32}, {**size, "num_layers": 2})
    return Translator(Ensemble(members), tokenizer, BeamSearch(3, n_best=3, max_extra_length=6), **options)


class Unprepared(Ensemble):
    """Its steps are the plain networks', since nobody knows what a class of one's own changes."""


LINES = ["one red cat", "two blue dogs sing", "three"]


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"compile": True, "num_workers": 1}])
def test_prepared_networks_translate_like_plain_ones(tokenizer: SubwordTokenizer, options: dict[str, Any]) -> None:
    fast = translator(tokenizer, **options)
    plain = Translator(Unprepared(fast.network.members), tokenizer, fast.search)  # type: ignore[operator, arg-type]
    for found, expected in zip(fast.translate(LINES), plain.translate(LINES), strict=True):
        assert [one.text for one in found] == [one.text for one in expected]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)
    assert type(fast._fastest()) is PreparedEnsemble
    assert plain._fastest() is plain.network


@pytest.mark.parametrize("precision", ["float32", "bf16", "int8"])
@torch.inference_mode()
def test_every_precision_is_that_of_each_network(tokenizer: SubwordTokenizer, precision: Precision) -> None:
    ours = translator(tokenizer, precision=precision)
    together, members = ours._fastest(), ours.network.members  # type: ignore[operator]
    bos = torch.full((2,), BOS_ID)
    each = [PreparedTransformer(member, precision) for member in members]
    probs = [network.step(bos, network.start(SRC))[0].double().softmax(-1) for network in each]
    torch.testing.assert_close(
        together.step(bos, together.start(SRC))[0].double(), (sum(probs) / 2).log(), atol=1e-5, rtol=1e-5
    )
    assert len(ours(LINES)) == 3


def test_new_weights_of_one_network_are_noticed(tokenizer: SubwordTokenizer) -> None:
    ours = translator(tokenizer)
    before = ours._fastest()
    assert ours._fastest() is before
    with torch.no_grad():
        next(ours.network.members[1].parameters()).add_(1)  # type: ignore[operator]
    assert ours._fastest() is not before


def test_a_folder_holds_all_of_it(tokenizer: SubwordTokenizer, tmp_path: Path) -> None:
    ours = translator(tokenizer)
    loaded = Translator.from_pretrained(ours.save(tmp_path), search=ours.search)
    assert type(loaded.network) is Ensemble
    assert [type(one) for one in loaded.network.members] == [Transformer, Transformer]
    assert loaded.network.spec == ours.network.spec
    torch.testing.assert_close(loaded.network.state_dict(), ours.network.state_dict(), rtol=0, atol=0)
    assert list(loaded.translate(LINES)) == list(ours.translate(LINES))


def test_a_network_within_is_built_by_the_rules_of_any(tokenizer: SubwordTokenizer, tmp_path: Path) -> None:
    spec = of_three().spec
    assert build_network(json.loads(json.dumps(spec))).spec == spec
    for part, words in (
        ({"class_path": "os.system", "init_args": {}}, "is not a TranslationNetwork"),
        ({"class_path": "lit_transformer.Transformer", "init_args": {"layers": 2}}, "does not accept the stored"),
        (3, "described by an object, got int"),
    ):
        with pytest.raises(CheckpointError, match=words):
            build_network({**spec, "init_args": {"networks": [part]}})
    with pytest.raises(CheckpointError, match="does not accept the stored arguments: 'networks'"):
        build_network({**spec, "init_args": {}})
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    write_model(translator(tokenizer).network, tokenizer, tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    described["init_args"]["networks"][0]["class_path"] = "evil.Network"
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="evil"):
        read_model(tmp_path)


def test_what_looks_inside_says_that_there_is_nothing(tokenizer: SubwordTokenizer) -> None:
    ours = translator(tokenizer)
    for attempt in (
        lambda: ours.attention("one red cat"),
        lambda: list(ours.align([("one", "two")])),
        lambda: export_huggingface(ours, "nowhere"),
    ):
        with pytest.raises(InputError, match="Ensemble"):
            attempt()


def test_its_state_is_public() -> None:
    ensemble = of_three()
    state = ensemble.start(SRC)
    assert isinstance(state, EnsembleState)
    assert len(state.states) == 3


def test_it_can_be_asked_for_a_gradient() -> None:
    ensemble = of_three()
    loss = torch.nn.functional.cross_entropy(ensemble(SRC, TGT).flatten(0, 1), torch.full((6,), 9))
    gradients: tuple[Tensor, ...] = torch.autograd.grad(loss, list(ensemble.parameters()), allow_unused=True)
    assert all(one is not None and one.isfinite().all() for one in gradients)
