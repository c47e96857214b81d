import copy
import importlib
import pickle
import random

import pytest
import torch
from torch import nn

from lit_transformer.errors import InputError
from lit_transformer.interfaces import DecoderState
from lit_transformer.nn import KeyValueCache, MultiHeadAttention, PreparedTransformer, Transformer
from lit_transformer.nn.packed import packed_features
from lit_transformer.vocabulary import BOS_ID, PAD_ID

TINY = {"vocab_size": 32, "num_layers": 2, "d_model": 16, "d_ff": 24, "num_heads": 2}
VARIANTS = {
    "paper": {},
    "pre-norm": {"norm": "pre", "activation": "gelu"},
    "learned": {"positions": "learned", "max_length": 40},
    "free widths": {"d_k": 3, "d_v": 5, "bias": False, "num_decoder_layers": 1},
    "two vocabularies": {"src_vocab_size": 20, "tie": "output", "scale_embedding": False},
    "untied": {"tie": "none", "activation": "silu", "attention_dropout": 0.1, "activation_dropout": 0.1},
}


def build(variant="paper", **arguments):
    """A network in which no weight sits at 0 or 1, in evaluation mode."""
    network = Transformer(**(TINY | VARIANTS[variant] | arguments))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return network.eval()


def sentences(*lengths, vocab_size=20):
    """Random ids, one row for each length, padded on the right."""
    ids = torch.randint(4, vocab_size, (len(lengths), max(lengths)))
    for row, length in enumerate(lengths):
        ids[row, length:] = PAD_ID
    return ids


@pytest.fixture(params=VARIANTS)
def network(request):
    return build(request.param)


def test_padding_changes_nothing(network):
    src, tgt = sentences(5), sentences(4)
    expected = network(src, tgt)
    assert expected.shape == (1, 4, 32)
    wide_src, wide_tgt = sentences(9, 5, 7), sentences(8, 4, 2)
    wide_src[1, :5], wide_tgt[1, :4] = src, tgt
    torch.testing.assert_close(network(wide_src, wide_tgt)[1:2, :4], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network.encode(wide_src)[1:2, :5], network.encode(src), atol=1e-5, rtol=1e-4)


def test_no_token_sees_the_future(network):
    src, tgt = sentences(5), sentences(7)
    expected = network(src, tgt)
    for t in range(7):
        changed = tgt.clone()
        changed[0, t] = 20 + t
        logits = network(src, changed)
        torch.testing.assert_close(logits[:, :t], expected[:, :t], atol=1e-6, rtol=0)
        assert (logits[:, t] - expected[:, t]).abs().max() > 1e-4


def test_every_source_token_is_seen(network):
    src, tgt = sentences(5), sentences(3)
    expected = network(src, tgt)
    for s in range(5):
        changed = src.clone()
        changed[0, s] = (src[0, s] - 4 + 1) % 16 + 4
        assert (network(changed, tgt) - expected).abs().amax(-1).min() > 1e-5


def test_features_and_projection_make_the_logits(network):
    src, tgt = sentences(5, 3), sentences(4, 2)
    features = network.features(src, tgt)
    assert features.shape == (2, 4, 16)
    torch.testing.assert_close(network(src, tgt), features @ network.projection.weight.T, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(network.project(features[:, 1]), network(src, tgt)[:, 1], atol=1e-6, rtol=1e-5)


def test_stepping_equals_the_full_pass(network):
    src, tgt = sentences(6, 3, 1), sentences(9, 9, 9)
    state = network.start(src)
    assert isinstance(state, DecoderState)
    steps = []
    for t in range(9):
        logits, state = network.step(tgt[:, t], state)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, dim=1), network(src, tgt), atol=1e-5, rtol=1e-4)


def beams(size):
    """Every sentence keeps its rows, as a beam search of fixed size selects."""

    def choose(owners, step):
        if step == 0:
            return [row for row in range(len(owners)) for _ in range(size)]
        return [random.choice([r for r in range(len(owners)) if owners[r] == owner]) for owner in owners]

    return choose


def leaving_beams(owners, step):
    """Beams of three; after each third step one sentence is done and all its rows leave."""
    if step % 3 == 0 and len(set(owners)) > 1:
        gone = random.choice(sorted(set(owners)))
        return [row for row, owner in enumerate(owners) if owner != gone]
    return beams(3)(owners, 0 if step == 1 else step)


def anything(owners, step):
    """Rows in any number and order, some sentences lost on the way."""
    return [random.randrange(len(owners)) for _ in range(random.randint(1, 9))]


@pytest.mark.parametrize("variant", ["paper", "learned", "free widths"])
@pytest.mark.parametrize("choose", [beams(1), beams(4), leaving_beams, anything])
@pytest.mark.parametrize("lengths", [(6, 6, 6, 6), (7, 2, 5, 4)])
def test_selected_rows_go_on_as_if_decoded_alone(variant, choose, lengths):
    random.seed(0)
    network, src = build(variant), sentences(*lengths)
    state, owners, prefixes = network.start(src), list(range(4)), torch.empty(4, 0, dtype=torch.long)
    for step in range(10):
        tokens = torch.randint(4, 32, (len(owners),))
        logits, state = network.step(tokens, state)
        prefixes = torch.cat((prefixes, tokens[:, None]), dim=1)
        expected = network(src[owners], prefixes)[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
        rows = choose(owners, step)
        state = state.select(torch.tensor(rows))
        owners, prefixes = [owners[row] for row in rows], prefixes[rows]


def test_no_rows_are_welcome():
    network = build()
    _, state = network.step(torch.tensor([BOS_ID, BOS_ID]), network.start(sentences(4, 3)))
    logits, _ = network.step(torch.empty(0, dtype=torch.long), state.select(torch.empty(0, dtype=torch.long)))
    assert logits.shape == (0, 32)


def test_the_source_is_projected_once_and_kept_once_per_sentence():
    network, calls = build(), []
    layer = network.decoder.layers[0]
    layer.cross_attention.key.register_forward_hook(lambda *_: calls.append(1))
    state = network.start(sentences(5, 4, 3))
    for t in range(4):
        _, state = network.step(torch.full((len(state.rows.owners),), 4 + t), state)
        state = state.select(torch.arange(len(state.rows.owners)).repeat_interleave(2))
    assert len(state.rows.owners) == 48
    assert len(calls) == 1
    assert state.layers[0].keys.size(0) == 3
    state = state.select(torch.tensor([40, 41, 5]))  # the last sentence twice, the first once
    assert state.layers[0].keys.size(0) == 2
    assert state.mask.size(0) == 2


def test_the_past_is_projected_once(monkeypatch):
    seen = []
    append = KeyValueCache.append
    monkeypatch.setattr(KeyValueCache, "append", lambda self, k, v: seen.append(k.size(2)) or append(self, k, v))
    network = build()
    state = network.start(sentences(5))
    for _ in range(3):
        _, state = network.step(torch.tensor([7]), state)
    assert seen == [1] * 3 * 2  # one position per step and layer


def test_decoding_takes_no_part_in_gradients():
    network = build()
    logits, _ = network.step(torch.tensor([BOS_ID]), network.start(sentences(4)))
    assert not logits.requires_grad


def test_a_foreign_state_is_refused():
    class Foreign(DecoderState):
        def select(self, rows):
            return self

    with pytest.raises(TypeError, match="step needs the TransformerState that start returned, got Foreign"):
        build().step(torch.tensor([BOS_ID]), Foreign())


def test_attention_maps_are_the_weights_in_use(network):
    src, tgt = sentences(6, 4), sentences(5, 5)
    used = []

    def remember(module, args, kwargs, output):
        used.append((module, args[2], output))

    hooks = [
        module.register_forward_hook(remember, with_kwargs=True)
        for module in network.modules()
        if isinstance(module, MultiHeadAttention)
    ]
    maps = network.attention_maps(src, tgt)
    [hook.remove() for hook in hooks]
    layers = len(network.decoder.layers)
    in_order = maps.encoder + [m for both in zip(maps.decoder, maps.cross, strict=True) for m in both]
    assert (len(maps.encoder), len(maps.decoder), len(maps.cross)) == (2, layers, layers)
    assert [tuple(m.shape) for m in in_order] == [(2, 2, 6, 6)] * 2 + [(2, 2, 5, 5), (2, 2, 5, 6)] * layers
    for weights, (module, value, output) in zip(in_order, used, strict=True):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        values = module.value(value).unflatten(-1, (module.num_heads, module.d_v))
        heads = torch.einsum("bhts,bshv->bthv", weights, values).flatten(2)
        torch.testing.assert_close(module.output(heads), output, atol=1e-5, rtol=1e-4)
    for weights in maps.encoder + maps.cross:
        assert weights[1, ..., 4:].count_nonzero() == 0
    for weights in maps.decoder:
        assert weights.triu(1).count_nonzero() == 0


def test_looking_leaves_no_trace():
    network = build()
    network.attention_maps(sentences(4), sentences(3))
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(("tie", "src_is_tgt", "out_is_tgt"), [("all", 1, 1), ("output", 0, 1), ("none", 0, 0)])
def test_tied_matrices_are_one(tie, src_is_tgt, out_is_tgt):
    network, fresh = build(tie=tie), Transformer(**TINY, tie=tie).eval()
    fresh.load_state_dict(copy.deepcopy(network.state_dict()))
    src, tgt = sentences(4), sentences(3)
    torch.testing.assert_close(fresh(src, tgt), network(src, tgt), rtol=0, atol=0)
    for one in (network, fresh, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        src_weight, tgt_weight = one.src_embedding.weight, one.tgt_embedding.weight
        assert (src_weight.data_ptr() == tgt_weight.data_ptr()) == bool(src_is_tgt)
        assert (one.projection.weight.data_ptr() == tgt_weight.data_ptr()) == bool(out_is_tgt)
    matrices = sum(p.shape == (32, 16) for p in network.parameters())
    assert matrices == 3 - src_is_tgt - out_is_tgt


@pytest.mark.parametrize("tie", ["all", "none"])
def test_weights_start_as_documented(tie):
    network = Transformer(4000, num_layers=1, d_model=64, d_ff=256, num_heads=4, tie=tie)
    for embedding in (network.src_embedding, network.tgt_embedding):
        assert embedding.weight[PAD_ID].count_nonzero() == 0
        assert embedding.weight[1:].std().item() == pytest.approx(64**-0.5, rel=0.01)
    linears = [m for m in network.modules() if isinstance(m, nn.Linear) and m is not network.projection]
    for linear in linears + ([network.projection] if tie == "none" else []):
        bound = (6 / sum(linear.weight.shape)) ** 0.5  # Glorot and Bengio 2010
        assert 0.95 * bound < linear.weight.abs().max() <= bound
        assert linear.bias is None or linear.bias.count_nonzero() == 0


def test_dropout_falls_on_the_sums_of_embeddings_and_positions():
    network = Transformer(**TINY, dropout=1.0)  # drops the sums and every sub-layer: nothing is left to normalise
    src, tgt = sentences(4), sentences(3)
    assert network.encode(src).count_nonzero() == 0
    assert network.features(src, tgt).count_nonzero() == 0
    network.eval()
    assert network.encode(src).count_nonzero() > 0
    assert network.features(src, tgt).count_nonzero() > 0


def test_every_argument_reaches_its_part():
    network = build("untied", dropout=0.3, scale_embedding=False, d_k=3, d_v=5, num_decoder_layers=1)
    encoder, decoder = network.encoder.layers[1], network.decoder.layers[0]
    assert (len(network.encoder.layers), len(network.decoder.layers)) == (2, 1)
    for attention in (encoder.self_attention, decoder.self_attention, decoder.cross_attention):
        assert (attention.num_heads, attention.d_k, attention.d_v, attention.dropout) == (2, 3, 5, 0.1)
    for layer in (encoder, decoder):
        assert isinstance(layer.feed_forward.activation, nn.SiLU)
        assert (layer.feed_forward.dropout.p, layer.feed_forward_residual.dropout.p) == (0.1, 0.3)
    ids = sentences(3)
    for embedding, factor in ((network.src_embedding, 1), (build().src_embedding, 4)):
        torch.testing.assert_close(embedding(ids), embedding.weight[ids] * factor)


def test_all_weights_learn():
    network = Transformer(**TINY, tie="none")
    network(sentences(5, 3), sentences(4, 4)).square().mean().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or p.grad.count_nonzero() == 0]
    assert still == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_spec_builds_an_equal_network(variant):
    network = build(variant)
    module, name = network.spec["class_path"].rsplit(".", 1)
    again = getattr(importlib.import_module(module), name)(**network.spec["init_args"]).eval()
    assert again.spec == network.spec
    again.load_state_dict(network.state_dict())
    src, tgt = sentences(5, 3), sentences(4, 4)
    torch.testing.assert_close(again(src, tgt), network(src, tgt), rtol=0, atol=0)


def test_copies_and_pickles_work(network):
    src, tgt = sentences(5, 3), sentences(4, 4)
    expected = network(src, tgt)
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert again.spec == network.spec
        torch.testing.assert_close(again(src, tgt), expected, rtol=0, atol=0)


def test_the_defaults_are_the_papers_base_model():
    with torch.device("meta"):
        network = Transformer()
    assert (len(network.encoder.layers), len(network.decoder.layers)) == (6, 6)
    attention, feed_forward = network.encoder.layers[0].self_attention, network.encoder.layers[0].feed_forward
    assert (attention.num_heads, attention.d_k, attention.d_v, attention.dropout) == (8, 64, 64, 0.0)
    assert (feed_forward.inner.in_features, feed_forward.inner.out_features) == (512, 2048)
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.1, 0.0}
    assert network.embedding_dropout.p == network.decoder.layers[5].cross_attention_residual.dropout.p == 0.1
    assert (network.vocab_size, network.max_length) == (37000, None)


def test_bounds_are_kept():
    network = build("learned", max_length=5)
    assert network.max_length == 5
    with pytest.raises(ValueError, match="a sequence of 6 tokens is past max_length=5"):
        network(sentences(6), sentences(3))
    bounded = build(max_length=5)
    with pytest.raises(ValueError, match="a sequence of 6 tokens is past max_length=5"):
        bounded(sentences(5), sentences(6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"src_vocab_size": 20}, "tie='all' needs one vocabulary, got src_vocab_size=20 and vocab_size=32"),
        ({"positions": "learned"}, "positions='learned' needs max_length"),
        ({"vocab_size": 3}, "vocab_size must exceed 3 to hold the special tokens, got 3"),
        ({"src_vocab_size": 2, "tie": "none"}, "src_vocab_size must exceed 3"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_decoder_layers": 0}, "num_decoder_layers must be at least 1, got 0"),
        ({"d_ff": -5}, "d_ff must be at least 1, got -5"),
        ({"num_heads": 3}, "d_model=16 is not divisible by num_heads=3"),
        ({"d_model": 15, "num_heads": 3}, "d_model must be even"),
        ({"attention_dropout": -0.1}, "dropout of the attention weights"),
        ({"dropout": 1.5}, "dropout probability has to be between 0 and 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Transformer(**(TINY | arguments))


@pytest.mark.parametrize("name", ["positions", "tie", "norm", "activation"])
def test_unknown_choices_are_refused(name):
    # the shape checker of the tests refuses them by type before our own ValueError would
    with pytest.raises((ValueError, TypeError), match="sideways"):
        Transformer(**TINY, **{name: "sideways"})


def test_low_precision_runs_in_both_modes():
    network = build().to(torch.bfloat16)
    src, tgt = sentences(5, 3), sentences(4, 4)
    assert network(src, tgt).dtype == torch.bfloat16
    full, network = build(), build()
    network.load_state_dict(full.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        state = network.start(src)
        steps = [network.step(tgt[:, t], state)[0] for t in range(4)]
    torch.testing.assert_close(torch.stack(steps, 1).float(), full(src, tgt), atol=0.3, rtol=0.1)


def test_one_part_can_be_replaced():
    class Averaging(MultiHeadAttention):
        def attend(self, query, key, value, mask=None, is_causal=False):
            return value.mean(2, keepdim=True).expand(-1, -1, query.size(2), -1)

    class AveragingTransformer(Transformer):
        def build_encoder_layer(self):
            layer = super().build_encoder_layer()
            layer.self_attention = Averaging(self.d_model, self.num_heads)
            return layer

    network = AveragingTransformer(**TINY)
    attention = network.encoder.layers[0].self_attention
    assert attention.query.bias.count_nonzero() == 0  # init_weights reached it
    assert network(sentences(4), sentences(3)).shape == (1, 3, 32)


def test_attention_can_begin_as_in_torch_and_fairseq():
    sizes = {"vocab_size": 32, "num_layers": 1, "d_model": 64, "d_ff": 32, "num_heads": 4}
    theirs = torch.nn.MultiheadAttention(64, 4).in_proj_weight.abs().max()
    torch.manual_seed(4)
    scaled = Transformer(**sizes, qkv_gain=2**-0.5)
    torch.manual_seed(4)
    plain = Transformer(**sizes)
    for one, other in zip(scaled.modules(), plain.modules(), strict=True):
        if isinstance(one, MultiHeadAttention):
            torch.testing.assert_close(one.key.weight.abs().max(), theirs, rtol=0.01, atol=0)
            for name in ("query", "key", "value"):
                assert torch.equal(getattr(one, name).weight, getattr(other, name).weight * 2**-0.5)
            assert torch.equal(one.output.weight, other.output.weight)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_gpu_equals_cpu(variant):
    network, src, tgt = build(variant), sentences(7, 2, 5), sentences(6, 6, 6)
    expected = network(src, tgt)
    network, src, tgt = network.cuda(), src.cuda(), tgt.cuda()
    torch.testing.assert_close(network(src, tgt).cpu(), expected, atol=1e-3, rtol=1e-3)
    state = network.start(src).select(torch.tensor([0, 0, 1, 2, 2], device="cuda"))
    for t in range(6):
        logits, state = network.step(tgt[[0, 0, 1, 2, 2], t], state)
        torch.testing.assert_close(logits.cpu(), expected[[0, 0, 1, 2, 2], t], atol=1e-3, rtol=1e-3)
        state = state.select(torch.tensor([1, 0, 2, 4, 3], device="cuda"))


class WithoutAttention(nn.Module):
    def forward(self, tokens, mask):
        return tokens


class OwnLayers(Transformer):
    def build_encoder_layer(self):
        return WithoutAttention()


def test_layers_without_attention_show_none():
    network = OwnLayers(**TINY).eval()
    network(sentences(4), sentences(3))
    with pytest.raises(
        InputError, match="WithoutAttention has no self_attention with attention_weights, so there is no"
    ):
        network.attention_maps(sentences(4), sentences(3))
    assert network.cross_attention(sentences(4), sentences(3), -1).shape == (1, 2, 3, 4)


class Placed(nn.Module):
    """Positions that must be told where they begin."""

    def forward(self, tokens, start):
        return tokens + torch.arange(start, start + tokens.size(1))[:, None]


class OwnPositions(Transformer):
    def build_positions(self):
        return Placed()


def test_positions_are_always_told_where_they_begin():
    network, src, tgt = OwnPositions(**TINY).eval(), sentences(4, 3), sentences(3, 2)
    state, expected = network.start(src), network(src, tgt)
    for place in range(2):
        logits, state = network.step(tgt[:, place], state)
        torch.testing.assert_close(logits, expected[:, place], atol=1e-4, rtol=1e-4)
    real = tgt != PAD_ID
    features = packed_features(network.train(), src, tgt, real)
    assert features.shape == (5, 16)
    memory, _ = PreparedTransformer(network.eval()).read(src)
    torch.testing.assert_close(memory[1, :3], network.encode(src)[1, :3], atol=1e-4, rtol=1e-4)


class NamelessArguments(Transformer):
    def __init__(self, *args, extra=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


def test_what_goes_into_nameless_arguments_must_be_named():
    network = NamelessArguments(extra=2, **TINY)
    assert network.init_args == {"extra": 2, **TINY}
    with pytest.raises(
        TypeError, match=r"NamelessArguments got 1 arguments without a name in \*args: give them by name"
    ):
        NamelessArguments(32, num_layers=1)
