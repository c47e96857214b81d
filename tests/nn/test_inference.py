"""The prepared network against the plain one, its reference; and that nothing somebody wrote is left out."""

import pytest
import torch
from torch import nn

from lit_transformer.nn import MultiHeadAttention, PreparedTransformer, Transformer
from lit_transformer.nn.inference import PastTokens
from lit_transformer.nn.obstacles import obstacle
from lit_transformer.nn.products import Product
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


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bf16", 0.02), ("int8", 0.02)])
@pytest.mark.parametrize("width", [16, 512])
@torch.inference_mode()
def test_a_product_is_its_linear_layers_side_by_side(precision, tolerance, relu, width):
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
