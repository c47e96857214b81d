import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_transformer.nn import PositionwiseFeedForward, ResidualNorm


@pytest.mark.parametrize(("activation", "function"), [("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu)])
def test_feed_forward_follows_equation_2(activation, function):
    network = PositionwiseFeedForward(8, 24, activation)
    tokens = torch.randn(2, 3, 8)
    inner = function(tokens @ network.inner.weight.T + network.inner.bias)
    expected = inner @ network.outer.weight.T + network.outer.bias
    torch.testing.assert_close(network(tokens), expected)


def test_activation_dropout_acts_on_the_inner_layer():
    network = PositionwiseFeedForward(8, 24, activation_dropout=1.0)
    tokens = torch.randn(2, 3, 8)
    torch.testing.assert_close(network(tokens), network.outer.bias.expand(2, 3, 8))
    assert not torch.allclose(network.eval()(tokens), network.outer.bias.expand(2, 3, 8))


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_residual_follows_its_formula(norm):
    residual, sublayer = ResidualNorm(8, dropout=0.0, norm=norm), nn.Linear(8, 8)
    nn.init.normal_(residual.norm.weight)
    nn.init.normal_(residual.norm.bias)
    tokens = torch.randn(2, 3, 8)

    def normalise(x):
        return F.layer_norm(x, (8,), residual.norm.weight, residual.norm.bias)

    expected = normalise(tokens + sublayer(tokens)) if norm == "post" else tokens + sublayer(normalise(tokens))
    torch.testing.assert_close(residual(tokens, sublayer), expected)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_dropout_falls_on_the_sublayer_and_not_on_the_residual(norm):
    residual = ResidualNorm(8, dropout=1.0, norm=norm)
    tokens = torch.randn(2, 3, 8)
    expected = F.layer_norm(tokens, (8,)) if norm == "post" else tokens
    torch.testing.assert_close(residual(tokens, nn.Linear(8, 8)), expected)


def test_unknown_choices_are_refused():
    # the shape checker of the tests refuses them by type before our own ValueError would
    with pytest.raises((ValueError, TypeError), match="tanh"):
        PositionwiseFeedForward(8, 24, "tanh")
    with pytest.raises((ValueError, TypeError), match="middle"):
        ResidualNorm(8, norm="middle")
