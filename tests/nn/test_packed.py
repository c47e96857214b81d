"""Training on real tokens only, against the plain network, its reference; nothing somebody wrote is left out."""

import gc

import pytest
import torch
from torch import nn

from lit_transformer.interfaces import TranslationBatch
from lit_transformer.kernels import has_fast_bfloat16, product
from lit_transformer.module import LitTransformer
from lit_transformer.nn import (
    DecoderLayer,
    Dropout,
    EncoderLayer,
    MultiHeadAttention,
    PositionwiseFeedForward,
    ResidualNorm,
    Transformer,
)
from lit_transformer.nn.packed import can_pack, packed_features
from lit_transformer.vocabulary import PAD_ID

SIZES = {"vocab_size": 40, "num_layers": 2, "d_model": 16, "d_ff": 48, "num_heads": 2, "dropout": 0.0}
VARIANTS = [
    {},
    {"norm": "pre", "bias": False, "tie": "none", "positions": "learned", "max_length": 50},
    {"d_k": 5, "d_v": 3, "num_heads": 3, "activation": "gelu", "num_decoder_layers": 1, "scale_embedding": False},
    {"norm": "pre", "activation": "silu", "num_layers": 1},
]


def make(variant=None, network_class=Transformer, **options):
    network = network_class(**{**SIZES, **(variant or {}), **options})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return network


def sentences(with_padding=True):
    src, tgt = torch.randint(4, 40, (5, 9)), torch.randint(4, 40, (5, 8))
    if with_padding:
        src[1, 4:], src[3, 1:], tgt[0, 3:], tgt[4, 2:] = PAD_ID, PAD_ID, PAD_ID, PAD_ID
    return src, tgt


def plain(network, src, tgt):
    return network.features(src, tgt)[tgt != PAD_ID]


def packed(network, src, tgt):
    return packed_features(network, src, tgt, tgt != PAD_ID)


def with_gradients(how, network, src, tgt):
    """The features, and the gradient of some function of them by all weights."""
    network.zero_grad()
    features = how(network, src, tgt)
    (features * torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view_as(features)).sum().backward()
    gradients = [weight.grad.flatten() for weight in network.parameters() if weight.grad is not None]
    return features.detach(), torch.cat(gradients)


def error(found, reference):
    return ((found.double() - reference.double()).norm() / reference.double().norm()).item()


@pytest.mark.parametrize("with_padding", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_features_and_gradients_equal_the_plain_networks(variant, with_padding):
    network, (src, tgt) = make(variant).double(), sentences(with_padding)
    assert can_pack(network)
    references = with_gradients(plain, network, src, tgt)
    for found, reference in zip(with_gradients(packed, network, src, tgt), references, strict=True):
        assert error(found, reference) < 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
def test_single_precision_is_as_exact_as_the_plain_networks(variant):
    network, (src, tgt) = make(variant), sentences()
    references = with_gradients(plain, network.double(), src, tgt)
    network.float()
    for found, other, reference in zip(
        with_gradients(packed, network, src, tgt), with_gradients(plain, network, src, tgt), references, strict=True
    ):
        assert error(found, reference) < max(2 * error(other, reference), 1e-6)


@pytest.mark.skipif(not has_fast_bfloat16(), reason="this CPU has no bfloat16 products")
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_as_exact_as_plain_autocast(variant):
    network, (src, tgt) = make(variant), sentences()
    references = with_gradients(plain, network.double(), src, tgt)
    network.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert can_pack(network)
        found, others = with_gradients(packed, network, src, tgt), with_gradients(plain, network, src, tgt)
    for mine, other, reference in zip(found, others, references, strict=True):
        assert mine.dtype == torch.float32
        assert error(mine, reference) < 1.5 * error(other, reference)


def test_dropout_falls_as_often_as_in_the_plain_network():
    network, (src, tgt) = make(dropout=0.2), sentences()
    with torch.no_grad():
        runs = {how: torch.stack([how(network, src, tgt) for _ in range(400)]) for how in (plain, packed)}
    mean, others = runs[packed].mean(0), runs[plain].mean(0)
    deviation = (runs[packed].var(0) / 400 + runs[plain].var(0) / 400).sqrt()
    assert ((mean - others).abs() / deviation).max() < 5.5  # of some 500 features
    assert runs[packed].std(0).mean().item() == pytest.approx(runs[plain].std(0).mean().item(), rel=0.05)
    assert torch.equal(packed(network.eval(), src, tgt), packed(network, src, tgt))


def test_chances_inside_the_layers_are_drawn_as_well():
    src, tgt = sentences()
    for option in ("activation_dropout", "attention_dropout"):
        network = make(**{option: 0.5})
        assert can_pack(network)
        assert not torch.equal(packed(network, src, tgt), packed(network, src, tgt))
        network.eval().double()
        assert error(packed(network, src, tgt), plain(network, src, tgt)) < 1e-12


class Tempered(MultiHeadAttention):
    """Somebody's attention rule."""

    def attend(self, query, key, value, mask=None, is_causal=False):
        return super().attend(query * 2, key, value, mask, is_causal)


class WithOwnRule(Transformer):
    def build_attention(self):
        return Tempered(self.d_model, self.num_heads)


def test_somebodys_attention_rule_is_used():
    network, (src, tgt) = make(network_class=WithOwnRule).double(), sentences()
    assert can_pack(network)
    assert error(packed(network, src, tgt), plain(network, src, tgt)) < 1e-12


def own(kind, method="forward"):
    """A subclass of a part that has its own way."""
    return type(f"Own{kind.__name__}", (kind,), {method: lambda self, *args, **kwargs: None})


@pytest.mark.parametrize(
    "kind",
    [EncoderLayer, DecoderLayer, MultiHeadAttention, PositionwiseFeedForward, ResidualNorm, Dropout, nn.LayerNorm],
)
def test_an_overridden_part_leaves_the_network_plain(kind):
    network = make()
    part = next(module for module in network.modules() if type(module) is kind)
    part.__class__ = own(kind)
    assert not can_pack(network)


@pytest.mark.parametrize("method", ["features", "_encode", "_embed_target", "_source_mask"])
def test_an_overridden_method_of_the_network_leaves_it_plain(method):
    network = make()
    assert can_pack(network)
    network.__class__ = own(Transformer, method)
    assert not can_pack(network)


@pytest.mark.parametrize(
    "place", ["encoder.layers.0", "decoder.layers.1.self_attention", "decoder.layers.1.feed_forward"]
)
def test_a_method_patched_on_one_object_leaves_the_network_plain(place):
    network = make()
    part = network.get_submodule(place)
    part.forward = part.forward
    assert not can_pack(network)


def test_somebodys_embedding_is_used():
    """One of fewer features, and a matrix that makes them wide: it has no weight of its own."""
    network, (src, tgt) = make(tie="none"), sentences()
    for side in ("src_embedding", "tgt_embedding"):
        setattr(network, side, nn.Sequential(nn.Embedding(network.vocab_size, 4), nn.Linear(4, network.d_model)))
    network.double()
    assert can_pack(network)
    assert error(packed(network, src, tgt), plain(network, src, tgt)) < 1e-12


def test_an_output_layer_of_another_kind_leaves_the_network_plain():
    network = make(tie="none")
    network.projection = nn.Sequential(network.projection)
    assert not can_pack(network)


def test_a_part_of_another_kind_leaves_the_network_plain():
    network = make()
    network.encoder.layers[0].feed_forward = nn.Sequential(nn.Linear(16, 16))
    assert not can_pack(network)
    network = make()
    network.decoder.layers[1].self_attention.key = nn.Sequential(nn.Linear(16, 16))
    assert not can_pack(network)
    network = make()
    network.encoder.final_norm = nn.LayerNorm(16)
    assert not can_pack(network)
    network = make(dropout=1.0)
    assert not can_pack(network)


@pytest.mark.parametrize("dropout", [nn.Identity(), nn.Dropout1d(0.5), nn.LayerNorm(16)])
def test_another_module_in_the_place_of_dropout_leaves_the_network_plain(dropout):
    src, tgt = sentences()
    tgt[:, 0] = 2
    for place in ("embedding_dropout", "decoder.layers.1.feed_forward.dropout"):
        network = make()
        if isinstance(dropout, nn.LayerNorm) and place != "embedding_dropout":
            dropout = nn.LayerNorm(48)
        network.set_submodule(place, dropout)
        assert not can_pack(network)
        assert LitTransformer(network).compute_loss(TranslationBatch(src=src, tgt=tgt)).loss.isfinite()
        network.set_submodule(place, nn.Dropout(0.5))
        assert can_pack(network)


def test_hooks_and_compiled_parts_leave_the_network_plain():
    network = make()
    handle = network.decoder.layers[0].register_forward_hook(lambda *_: None)
    assert not can_pack(network)
    handle.remove()
    handle = network.encoder.layers[0].feed_forward.register_full_backward_hook(lambda *_: None)
    assert not can_pack(network)
    handle.remove()
    assert can_pack(network)
    network.encoder.layers[0].compile(backend="eager")
    assert not can_pack(network)


def test_other_precisions_stay_plain():
    assert not can_pack(make().bfloat16())
    with torch.autocast("cpu", torch.float16):
        assert not can_pack(make())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_module_trains_packed_and_validates_plain(variant, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "lit_transformer.nn.outputs.packed_features", lambda *args: calls.append(1) or packed_features(*args)
    )
    src, tgt = sentences()
    tgt[:, 0] = 2
    module, batch = LitTransformer(make(variant)).double(), TranslationBatch(src=src, tgt=tgt)
    loss = module.compute_loss(batch).loss
    assert len(calls) == 1
    with torch.no_grad():
        reference = module.compute_loss(batch).loss
    assert len(calls) == 1
    assert error(loss.detach(), reference) < 1e-12
    module.eval().compute_loss(batch)
    assert len(calls) == 1


def test_frozen_weights_get_no_gradient_and_others_the_same():
    network, (src, tgt) = make().double(), sentences()
    for parameter in (*network.encoder.parameters(), network.tgt_embedding.weight):
        parameter.requires_grad_(False)
    references = with_gradients(plain, network, src, tgt)
    for found, reference in zip(with_gradients(packed, network, src, tgt), references, strict=True):
        assert error(found, reference) < 1e-12
    assert network.encoder.layers[0].feed_forward.inner.weight.grad is None


def test_products_see_numbers_of_rows_that_repeat_from_batch_to_batch(monkeypatch):
    seen = set()
    for place in ("lit_transformer.nn.fused.product", "lit_transformer.loss.product"):
        monkeypatch.setattr(place, lambda x, *args, **kwargs: seen.add(len(x)) or product(x, *args, **kwargs))
    module = LitTransformer(make().double())
    for num_words in (3, 7, 20):
        src, tgt = torch.randint(4, 40, (5, num_words)), torch.randint(4, 40, (5, num_words + 1))
        src[1, 2:] = PAD_ID
        module.compute_loss(TranslationBatch(src=src, tgt=tgt)).loss.backward()
    assert seen == {64, 128}


def test_a_step_leaves_nothing_to_the_garbage_collector():
    network, (src, tgt) = make(dropout=0.1), sentences()
    for _ in range(2):  # the first makes what stays, such as gradients
        gc.collect()
        packed(network, src, tgt).sum().backward()
        assert gc.collect() == 0
