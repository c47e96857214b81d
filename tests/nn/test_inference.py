"""The prepared network against the plain one, its reference; and that nothing somebody wrote is left out."""

import copy

import pytest
import torch
from torch import nn

from lit_transformer.nn import Decoder, MultiHeadAttention, PositionwiseFeedForward, PreparedTransformer, Transformer
from lit_transformer.nn.inference import PastTokens
from lit_transformer.nn.obstacles import obstacle
from lit_transformer.nn.preparing import prepare_if_possible
from lit_transformer.nn.products import Product, _has_short_sums
from lit_transformer.vocabulary import PAD_ID

SIZES = {"vocab_size": 40, "num_layers": 2, "d_model": 16, "d_ff": 48, "num_heads": 2}
VARIANTS = [
    {},
    {"norm": "pre", "bias": False, "tie": "none", "positions": "learned", "max_length": 50},
    {"d_k": 5, "d_v": 3, "num_heads": 3, "activation": "gelu", "num_decoder_layers": 1, "scale_embedding": False},
]


class Tempered(MultiHeadAttention):
    """An attention rule with a weight of its own."""

    def __init__(self, d_model, num_heads):
        super().__init__(d_model, num_heads)
        self.temperature = nn.Parameter(torch.rand(num_heads, 1, 1) + 1)

    def attend(self, query, key, value, mask=None, is_causal=False):
        return super().attend(query * self.temperature, key, value, mask, is_causal)


class OwnParts(Transformer):
    """Somebody's attention rule and feed-forward network."""

    def build_attention(self):
        return Tempered(self.d_model, self.num_heads)

    def build_feed_forward(self):
        return nn.Sequential(nn.Linear(self.d_model, self.d_ff), nn.Tanh(), nn.Linear(self.d_ff, self.d_model))


def randomised(network):
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return network.eval()


def source():
    src = torch.randint(4, 40, (5, 9))
    src[1, 4:], src[3, 1:] = PAD_ID, PAD_ID
    return src


def walk(network, src, steps=40):
    """The logits of a walk in which rows are multiplied, reordered and dropped, always in the same way."""
    generator = torch.Generator().manual_seed(0)
    state, rows, logits = network.start(src), len(src), []
    for number in range(steps):
        scores, state = network.step(torch.randint(4, 40, (rows,), generator=generator), state)
        logits.append(scores.float())
        if number == 0:  # three rows for each sentence, as in a beam
            picks = torch.arange(rows).repeat_interleave(3)
        elif number == 20:  # an uneven choice: a sentence is gone, another has one row
            picks = torch.tensor([0, 2, 1, 5, 9, 9, 10, 12])
        elif rows == 15:  # as in beam search: each replaced by one of its own sentence
            picks = torch.arange(rows) // 3 * 3 + torch.randint(0, 3, (rows,), generator=generator)
        else:
            picks = torch.randint(0, rows, (max(1, rows - number % 2),), generator=generator)
        state, rows = state.select(picks), len(picks)
    return logits


@pytest.mark.parametrize("options", VARIANTS)
@torch.inference_mode()
def test_every_step_equals_that_of_the_plain_network(options):
    network, src = randomised(Transformer(**{**SIZES, **options})), source()
    expected, found = walk(network, src), walk(PreparedTransformer(network), src)
    assert expected[0].std() > 0.5
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_overridden_parts_are_used():
    network, src = randomised(OwnParts(**SIZES)), source()
    prepared = PreparedTransformer(network)
    for ours, theirs in zip(walk(prepared, src, 5), walk(network, src, 5), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    for layer in network.decoder.layers:
        layer.self_attention.temperature.fill_(0.0)
    assert not torch.allclose(walk(prepared, src, 5)[-1], theirs, atol=1e-2)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("int8", 0.05)])
@pytest.mark.parametrize("kind", [Transformer, OwnParts])
@torch.inference_mode()
def test_lower_precisions_come_near(precision, tolerance, kind):
    torch.manual_seed(0)
    network, src = randomised(kind(**SIZES)), source()
    expected, found = walk(network, src), walk(PreparedTransformer(network, precision), src)
    for ours, theirs in zip(found, expected, strict=True):
        difference = (ours - theirs).norm() / theirs.norm()
        assert 1e-4 < difference < tolerance


def test_bfloat16_without_kernels_for_it_is_slow_and_right(monkeypatch):
    monkeypatch.setattr("lit_transformer.nn.products.has_onednn", lambda dtype: dtype != torch.bfloat16)
    linear, x = nn.Linear(16, 16), torch.randn(3, 16)
    with torch.inference_mode():
        found = Product([linear], "bf16", relu=True)(x.bfloat16()).float()
        assert (found - linear(x).relu()).norm() < 0.02 * linear(x).norm()


@pytest.mark.parametrize("is_short", [False, True])
def test_int8_does_not_overflow_where_products_add_up_in_16_bits(monkeypatch, is_short):
    if not is_short and _has_short_sums():
        pytest.skip("on this CPU they do")
    monkeypatch.setattr("lit_transformer.nn.products._has_short_sums", lambda: is_short)
    linear = nn.Linear(64, 1, bias=False)
    nn.init.ones_(linear.weight)
    assert Product([linear], "int8")(torch.ones(1, 64)).item() == pytest.approx(64, rel=0.01)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bf16", 0.02), ("int8", 0.02)])
@pytest.mark.parametrize("width", [16, 512])
@torch.inference_mode()
def test_a_product_is_its_linear_layers_side_by_side(precision, tolerance, relu, width):
    if precision == "int8" and _has_short_sums():
        tolerance = 0.03  # inputs keep 7 bits
    linears = [nn.Linear(width, width), nn.Linear(width, 24, bias=False), nn.Linear(width, 40)]
    product = Product(linears, precision, relu)
    for shape in [(1, width), (70, width), (2, 40, width)]:
        x = torch.randn(shape)
        expected = torch.cat([linear(x) for linear in linears], dim=-1)
        expected = expected.relu() if relu else expected
        found = product(x.bfloat16() if precision == "bf16" else x).float()
        assert (found - expected).norm() / expected.norm() < tolerance


def test_a_changed_weight_is_noticed():
    network = Transformer(**SIZES).eval()
    prepared = PreparedTransformer(network)
    assert prepared.is_current()
    network.load_state_dict(Transformer(**SIZES).state_dict())
    assert not prepared.is_current()
    assert PreparedTransformer(network).is_current()


def test_what_somebody_overrode_or_hooked_on_stands_in_the_way():
    class OwnStep(Transformer):
        def step(self, tokens, state):
            return super().step(tokens, state)

    class OwnRead(MultiHeadAttention):
        def read(self, query, keys, values, mask=None, is_causal=False):
            return super().read(query, keys, values, mask, is_causal)

    class OwnLinear(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    class WithRead(Transformer):
        def build_attention(self):
            return OwnRead(self.d_model, self.num_heads)

    network = Transformer(**SIZES).eval()
    assert obstacle(network) is None
    assert obstacle(nn.Linear(2, 2)) == "Linear is not a Transformer"
    assert obstacle(OwnStep(**SIZES).eval()) == "OwnStep is not the package's own Transformer"
    assert obstacle(WithRead(**SIZES).eval()) == "OwnRead is not the package's own MultiHeadAttention"
    network.decoder.layers[1].cross_attention.key = OwnLinear(16, 16)
    assert obstacle(network) == "OwnLinear is not the package's own Linear"
    hooked = Transformer(**SIZES).eval()
    hooked.encoder.layers[0].register_forward_hook(lambda *_: None)
    assert obstacle(hooked) == "it has forward hooks"
    assert obstacle(Transformer(**SIZES)) == "it is in training mode"
    with pytest.raises(ValueError, match="cannot be prepared: it has forward hooks"):
        PreparedTransformer(hooked)


class WithDetour(nn.Linear):
    """A linear layer with something added, as low-rank adapters do."""

    def forward(self, x):
        y = super().forward(x)
        return y + y.roll(1, -1)


class Squared(nn.ReLU):
    def forward(self, x):
        return super().forward(x) ** 2


class Tripled(nn.Dropout):
    def forward(self, x):
        return 3 * x


class OwnTarget(Transformer):
    def _embed_target(self, ids, start=0):
        return 3 * super()._embed_target(ids, start)


class OwnFinish(Decoder):
    def _finish(self, tokens):
        return tokens.flip(-1)


def own_linear(network, name, side):
    forward = getattr(network, side).layers[1].feed_forward
    linear = getattr(forward, name)
    setattr(forward, name, WithDetour(linear.in_features, linear.out_features))


def own_activation(network):
    for layer in (*network.encoder.layers, *network.decoder.layers):
        layer.feed_forward.activation = Squared()


def own_forward_of_one_object(network):
    linear = network.decoder.layers[0].feed_forward.inner
    linear.forward = lambda x: 2 * nn.Linear.forward(linear, x)


CHANGES = {
    "an inner layer of the decoder": lambda network: own_linear(network, "inner", "decoder"),
    "an outer layer of the decoder": lambda network: own_linear(network, "outer", "decoder"),
    "an inner layer of the encoder": lambda network: own_linear(network, "inner", "encoder"),
    "the forward of one object": own_forward_of_one_object,
    "an activation derived from ReLU": own_activation,
    "a dropout of the embeddings": lambda network: setattr(network, "embedding_dropout", nn.Hardtanh()),
    "a subclass of dropout": lambda network: setattr(network, "embedding_dropout", Tripled()),
    "the target's embedding": lambda network: setattr(network, "__class__", OwnTarget),
    "the decoder's end": lambda network: setattr(network.decoder, "__class__", OwnFinish),
    "a dropout of a residual": lambda network: setattr(
        network.decoder.layers[0].feed_forward_residual, "dropout", Tripled()
    ),
    "a dropout of a feed-forward network": lambda network: setattr(
        network.decoder.layers[0].feed_forward, "dropout", Tripled()
    ),
    "where one residual normalises": lambda network: setattr(
        network.decoder.layers[1].cross_attention_residual, "is_pre_norm", True
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.inference_mode()
def test_whatever_somebody_changed_counts(change):
    torch.manual_seed(0)
    network, src = randomised(Transformer(**SIZES)), source()
    before = walk(network, src, 3)
    CHANGES[change](network)
    network.eval()
    expected, found = walk(network, src, 3), walk(prepare_if_possible(network) or network, src, 3)
    assert not torch.allclose(expected[-1], before[-1], atol=1e-2)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


class OwnForward(PositionwiseFeedForward):
    def forward(self, tokens):
        return 2 * super().forward(tokens)


class WithOwnForward(Transformer):
    def build_feed_forward(self):
        return OwnForward(self.d_model, self.d_ff)


class OwnNorm(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [Transformer, OwnParts, WithOwnForward])
@torch.inference_mode()
def test_own_parts_get_the_precision_of_their_weights(kind):
    torch.manual_seed(0)
    network, src = randomised(kind(**SIZES)).bfloat16(), source()
    network.decoder.layers[1].feed_forward_residual.norm = OwnNorm(16).bfloat16()
    network.eval()
    prepared = prepare_if_possible(network)
    assert isinstance(prepared, PreparedTransformer)
    exact = walk(copy.deepcopy(network).float(), src, 5)
    for fast in (prepared, PreparedTransformer(network, "float32")):
        for ours, theirs in zip(walk(fast, src, 5), exact, strict=True):
            assert (ours - theirs).norm() < 0.1 * theirs.norm()


def test_a_state_of_another_network_is_refused():
    network, src = Transformer(**SIZES).eval(), source()
    with pytest.raises(TypeError, match="step needs the PreparedState that start returned, got TransformerState"):
        PreparedTransformer(network).step(src[:, 0], network.start(src))


@torch.no_grad()
def test_teacher_forcing_uses_the_plain_network():
    network, src = Transformer(**SIZES).eval(), source()
    torch.testing.assert_close(PreparedTransformer(network)(src, src), network(src, src), rtol=0, atol=0)


def test_the_past_before_the_first_step_is_empty():
    past = PastTokens()
    past.select(torch.tensor([1, 0]))
    assert past.length == 0
