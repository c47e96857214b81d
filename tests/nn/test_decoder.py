import pytest
import torch
from torch import nn

from lit_transformer.nn import Decoder, DecoderLayer, MultiHeadAttention, PositionwiseFeedForward, SentenceRows

SIZES = [(16, 2, 32), (24, 3, 8), (8, 1, 40)]  # d_model, num_heads, d_ff


def layer_of(d_model, num_heads, d_ff, norm="post", dropout=0.0):
    attentions = MultiHeadAttention(d_model, num_heads), MultiHeadAttention(d_model, num_heads)
    return DecoderLayer(d_model, *attentions, PositionwiseFeedForward(d_model, d_ff), dropout, norm)


def future(length):
    """What torch's layers call a mask: True where one may NOT look."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


@pytest.mark.parametrize(("d_model", "num_heads", "d_ff"), SIZES)
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(("tgt_length", "src_length"), [(1, 1), (6, 4), (3, 7)])
@pytest.mark.parametrize("masked", [False, True])
def test_layer_equals_torch(copy_weights, real_tokens, d_model, num_heads, d_ff, norm, tgt_length, src_length, masked):
    theirs = nn.TransformerDecoderLayer(d_model, num_heads, d_ff, 0.0, batch_first=True, norm_first=norm == "pre")
    ours = layer_of(d_model, num_heads, d_ff, norm)
    copy_weights(ours, theirs)
    tokens, memory = torch.randn(3, tgt_length, d_model), torch.randn(3, src_length, d_model)
    real = real_tokens(3, src_length)
    expected = theirs(tokens, memory, tgt_mask=future(tgt_length), memory_key_padding_mask=~real if masked else None)
    result = ours(tokens, memory, real[:, None, None, :] if masked else None)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_stack_equals_torch_in_one_pass_and_in_steps(copy_weights, real_tokens, norm, num_layers):
    theirs = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(16, 4, 32, 0.0, batch_first=True, norm_first=norm == "pre"),
        num_layers,
        norm=nn.LayerNorm(16) if norm == "pre" else None,
    )
    ours = Decoder((layer_of(16, 4, 32, norm) for _ in range(num_layers)), nn.LayerNorm(16) if norm == "pre" else None)
    copy_weights(ours, theirs)
    tokens, memory, real = torch.randn(3, 6, 16), torch.randn(3, 5, 16), real_tokens(3, 5)
    mask = real[:, None, None, :]
    with torch.no_grad():
        expected = theirs(tokens, memory, tgt_mask=future(6), memory_key_padding_mask=~real)
        torch.testing.assert_close(ours(tokens, memory, mask), expected, atol=1e-5, rtol=1e-4)
        state = ours.start(memory, mask)
        steps = [ours.step(tokens[:, t : t + 1], state) for t in range(6)]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_dropout_spares_only_the_residual(norm):
    layer = layer_of(16, 2, 32, norm, dropout=1.0)
    tokens = torch.randn(2, 5, 16)
    expected = tokens
    for _ in range(3 if norm == "post" else 0):
        expected = nn.functional.layer_norm(expected, (16,))
    torch.testing.assert_close(layer(tokens, torch.randn(2, 4, 16)), expected)


@pytest.mark.parametrize(
    ("owners", "num_sentences", "width"),
    [([0, 1, 2], 3, 1), ([0, 0, 1, 1], 2, 2), ([0, 1, 1, 1], 2, 3), ([1, 0, 1, 0, 1], 2, 3), ([], 0, 1)],
)
def test_each_row_meets_its_own_sentence(owners, num_sentences, width):
    rows = SentenceRows(owners, num_sentences)
    tokens = torch.arange(1.0, len(owners) + 1).view(-1, 1, 1).expand(-1, 1, 3)
    grid = rows.fold(tokens)
    assert grid.shape == (num_sentences, width, 3)
    for row, owner in enumerate(owners):
        assert row + 1 in grid[owner, :, 0].tolist()
    torch.testing.assert_close(rows.unfold(grid), tokens)
