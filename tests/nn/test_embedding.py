import copy
import math

import pytest
import torch

from lit_transformer.nn import LearnedPositions, ScaledEmbedding, SinusoidalPositions
from lit_transformer.vocabulary import PAD_ID


@pytest.mark.parametrize(("scale", "factor"), [(True, math.sqrt(12)), (False, 1.0)])
def test_embedding_is_scaled_by_the_root_of_the_width(scale, factor):
    embedding = ScaledEmbedding(9, 12, scale)
    ids = torch.tensor([[4, 8, 1], [5, 5, 0]])
    torch.testing.assert_close(embedding(ids), embedding.weight[ids] * factor)


def test_padding_gets_no_gradient():
    embedding = ScaledEmbedding(9, 12)
    embedding(torch.tensor([[4, PAD_ID, PAD_ID]])).sum().backward()
    assert embedding.weight.grad[PAD_ID].count_nonzero() == 0
    assert embedding.weight.grad[4].count_nonzero() == 12


def wave(position, feature, d_model):
    """Section 3.5: sine in even features, cosine in odd ones."""
    angle = position / 10_000 ** ((feature - feature % 2) / d_model)
    return math.cos(angle) if feature % 2 else math.sin(angle)


@pytest.mark.parametrize("d_model", [2, 8, 16])
def test_sinusoids_follow_section_3_5(d_model):
    positions = SinusoidalPositions(d_model)
    expected = torch.tensor([[wave(p, i, d_model) for i in range(d_model)] for p in range(20)])
    tokens = torch.randn(2, 20, d_model)
    torch.testing.assert_close(positions(tokens), tokens + expected, atol=1e-6, rtol=0)


def test_sinusoids_grow_without_bound_and_start_anywhere():
    positions = SinusoidalPositions(8)
    short = positions(torch.zeros(1, 3, 8))
    long = positions(torch.zeros(1, 5000, 8))
    torch.testing.assert_close(long[:, :3], short, rtol=0, atol=0)
    expected = torch.tensor([wave(4999, i, 8) for i in range(8)])
    torch.testing.assert_close(long[0, 4999], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(positions(torch.zeros(1, 2, 8), start=70), long[:, 70:72], rtol=0, atol=0)


def test_sinusoids_are_neither_saved_nor_synchronised():
    positions = SinusoidalPositions(8)
    positions(torch.zeros(1, 3, 8))
    assert not positions.state_dict()
    assert not list(positions.buffers())
    assert not list(positions.parameters())
    torch.testing.assert_close(copy.deepcopy(positions)(torch.zeros(1, 3, 8)), positions(torch.zeros(1, 3, 8)))


def test_sinusoids_made_in_validation_serve_training():
    positions = SinusoidalPositions(8)
    with torch.inference_mode():
        positions(torch.zeros(1, 3, 8))
    assert not positions._table.is_inference()  # such a tensor is refused by some training graphs
    tokens = torch.randn(1, 3, 8, requires_grad=True)
    positions(tokens).square().sum().backward()
    torch.testing.assert_close(tokens.grad, 2 * positions(tokens).detach())


def test_sinusoids_keep_their_precision_when_the_dtype_changes():
    positions = SinusoidalPositions(8)
    expected = positions(torch.zeros(1, 100, 8))
    assert positions(torch.zeros(1, 100, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    torch.testing.assert_close(positions(torch.zeros(1, 100, 8)), expected, rtol=0, atol=0)


def test_learned_positions_add_their_rows():
    positions = LearnedPositions(8, max_length=6)
    tokens = torch.randn(2, 3, 8)
    torch.testing.assert_close(positions(tokens, start=3), tokens + positions.table.weight[3:6])
    assert sum(p.numel() for p in positions.parameters()) == 6 * 8


@pytest.mark.parametrize("kind", [SinusoidalPositions, LearnedPositions])
def test_a_sequence_past_the_bound_is_refused(kind):
    positions = kind(8, max_length=4)
    positions(torch.zeros(1, 4, 8))
    with pytest.raises(ValueError, match="a sequence of 5 tokens is past max_length=4"):
        positions(torch.zeros(1, 1, 8), start=4)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"d_model must be even .* got 7"):
        SinusoidalPositions(7)
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        LearnedPositions(8, max_length=0)
