import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_transformer.nn import Dropout

MANY = 400_000


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_drops_as_often_as_nn_dropout_and_keeps_the_mean(p):
    kept = Dropout(p)(torch.ones(MANY))
    deviation = (p * (1 - p) / MANY) ** 0.5  # of the share of dropped features
    assert abs((kept == 0).float().mean().item() - p) < 5 * deviation + 2**-17
    assert abs((nn.Dropout(p)(torch.ones(MANY)) == 0).float().mean().item() - p) < 5 * deviation
    assert kept[kept > 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=2e-4)
    assert abs(kept.mean().item() - 1) < 5 * deviation / (1 - p)


def test_neighbours_are_dropped_independently():
    dropped = (Dropout(0.3)(torch.ones(MANY)) == 0).float()
    for distance in (1, 2, 3, 4, 128):  # four features share a random word
        both = (dropped[distance:] * dropped[:-distance]).mean().item()
        assert abs(both - 0.09) < 5 * (0.09 * 0.91 / MANY) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (0, 4), ()])
def test_gradient_passes_where_features_were_kept(dtype, shape):
    features = torch.randn(shape, dtype=dtype).abs().add(1).requires_grad_()
    result = Dropout(0.4)(features)
    assert (result.dtype, result.shape) == (dtype, features.shape)
    (gradient,) = torch.autograd.grad(result.sum(), features)
    torch.testing.assert_close(gradient * features, result)


def test_the_seed_decides_and_every_call_draws_anew():
    dropout, features = Dropout(0.3), torch.randn(64, 9)
    torch.manual_seed(7)
    first, second = dropout(features), dropout(features)
    torch.manual_seed(7)
    assert torch.equal(dropout(features), first)
    assert torch.equal(dropout(features), second)
    assert not torch.equal(first, second)


def test_extremes_and_evaluation_equal_nn_dropout():
    features = torch.randn(6, 8)
    assert torch.equal(Dropout(0.0)(features), features)
    assert torch.equal(Dropout(0.5).eval()(features), features)
    assert Dropout(1.0)(features).count_nonzero() == 0
    changed = features.clone()
    torch.manual_seed(2)
    assert Dropout(0.5, inplace=True)(changed) is changed
    torch.manual_seed(2)
    assert torch.equal(changed, F.dropout(features, 0.5))
