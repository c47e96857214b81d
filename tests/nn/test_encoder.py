import pytest
import torch
from torch import nn

from lit_transformer.nn import Encoder, EncoderLayer, MultiHeadAttention, PositionwiseFeedForward

SIZES = [(16, 2, 32), (24, 3, 8), (8, 1, 40)]  # d_model, num_heads, d_ff


def layer_of(d_model, num_heads, d_ff, norm="post", activation="relu", dropout=0.0):
    attention = MultiHeadAttention(d_model, num_heads)
    return EncoderLayer(d_model, attention, PositionwiseFeedForward(d_model, d_ff, activation), dropout, norm)


@pytest.mark.parametrize(("d_model", "num_heads", "d_ff"), SIZES)
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("masked", [False, True])
def test_layer_equals_torch(copy_weights, real_tokens, d_model, num_heads, d_ff, norm, activation, masked):
    theirs = nn.TransformerEncoderLayer(
        d_model, num_heads, d_ff, 0.0, activation, batch_first=True, norm_first=norm == "pre"
    )
    ours = layer_of(d_model, num_heads, d_ff, norm, activation)
    copy_weights(ours, theirs)
    tokens, real = torch.randn(3, 5, d_model), real_tokens(3, 5)
    expected = theirs(tokens, src_key_padding_mask=~real if masked else None)
    result = ours(tokens, real[:, None, None, :] if masked else None)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_stack_equals_torch(copy_weights, real_tokens, norm, num_layers):
    final = nn.LayerNorm(16) if norm == "pre" else None
    theirs = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True, norm_first=norm == "pre"),
        num_layers,
        norm=final,
        enable_nested_tensor=False,
    )
    ours = Encoder((layer_of(16, 4, 32, norm) for _ in range(num_layers)), nn.LayerNorm(16) if norm == "pre" else None)
    copy_weights(ours, theirs)
    tokens, real = torch.randn(3, 5, 16), real_tokens(3, 5)
    expected = theirs(tokens, src_key_padding_mask=~real)
    torch.testing.assert_close(ours(tokens, real[:, None, None, :]), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_dropout_spares_only_the_residual(norm):
    layer = layer_of(16, 2, 32, norm, dropout=1.0)
    tokens = torch.randn(2, 5, 16)
    normalised = nn.functional.layer_norm(tokens, (16,))
    expected = nn.functional.layer_norm(normalised, (16,)) if norm == "post" else tokens
    torch.testing.assert_close(layer(tokens), expected)
