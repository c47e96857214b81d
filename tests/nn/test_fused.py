"""Each fused step against the plain one that its docstring names, in value and in gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_transformer.kernels import has_fast_bfloat16, product
from lit_transformer.nn.fused import Origin, _column_sums, add_norm, collect, feed_forward, linears, spread

N, D = 7, 6


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def gradients(results, inputs):
    total = sum(
        (result * torch.linspace(-1, 2, result.numel(), dtype=result.dtype).view_as(result)).sum() for result in results
    )
    return torch.autograd.grad(total, inputs)


def assert_same(found, expected, inputs):
    for mine, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)
    for mine, reference in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_linears(bias):
    x, layers = leaf(N, D), [nn.Linear(D, width, bias=bias).double() for width in (4, 9, 1)]
    weights = [weight for layer in layers for weight in layer.parameters()]
    assert_same(linears(x, layers), [layer(x) for layer in layers], [x, *weights])


def test_rows_made_from_their_origin_again_give_the_same_gradients():
    total, norm = leaf(N, D), nn.LayerNorm(D).double()
    nn.init.normal_(norm.weight)
    inner, outer, origin = (
        nn.Linear(D, 9).double(),
        nn.Linear(9, D).double(),
        Origin(total, lambda kept: F.layer_norm(kept, (D,), norm.weight, norm.bias, norm.eps)),
    )
    inputs = [total, norm.weight, inner.weight, outer.weight]
    assert_same([feed_forward(norm(total), inner, outer, origin)], [outer(inner(norm(total)).relu())], inputs)
    assert_same(linears(norm(total), [inner, inner], origin), [inner(norm(total))] * 2, inputs[:3])


def test_gradient_of_linears_where_some_results_are_unused():
    x, layers = leaf(N, D), [nn.Linear(D, 4).double() for _ in range(2)]
    assert_same(linears(x, layers)[:1], [layers[0](x)], [x, layers[0].weight])


@pytest.mark.parametrize("num_rows", [0, 3, 2000])
def test_sums_of_half_precision_rows_in_slices_are_those_of_single_precision(num_rows):
    rows = torch.randn(num_rows, 700).bfloat16()
    torch.testing.assert_close(_column_sums(rows, torch.float32), rows.double().sum(0).float(), rtol=1e-5, atol=1e-4)


def test_feed_forward():
    x, inner, outer = leaf(N, D), nn.Linear(D, 9).double(), nn.Linear(9, D).double()
    inputs = [x, *inner.parameters(), *outer.parameters()]
    assert_same([feed_forward(x, inner, outer)], [outer(inner(x).relu())], inputs)
    torch.autograd.gradcheck(lambda rows: feed_forward(rows, inner, outer), x)


@pytest.mark.parametrize("used", [[0], [1], [0, 1]])
@pytest.mark.parametrize("drops", [True, False])
def test_add_norm(used, drops):
    x, y, norm = leaf(N, D), leaf(N, D), nn.LayerNorm(D).double()
    nn.init.normal_(norm.weight)
    keep = torch.randint(2, (N, D), dtype=torch.int8) if drops else None
    total = x + y * keep * 1.25 if drops else x + y
    output = y * 1  # which is used up
    found = add_norm(x, output, norm, keep, 1.25) if drops else add_norm(x, output, norm)
    expected = total, norm(total)
    inputs = [x, y, norm.weight, norm.bias] if 1 in used else [x, y]
    assert_same([found[index] for index in used], [expected[index] for index in used], inputs)


@pytest.mark.parametrize("num_rows", [N, N + 3])
def test_spread_and_collect_are_inverse(num_rows):
    real = torch.tensor([0, 1, 3, 4, 5, 6, 9])
    source = torch.tensor([0, 1, 1, 2, 3, 4, 5, 5, 5, 6])
    rows = leaf(num_rows, D)
    places = spread(rows, source, real)
    assert torch.equal(places, rows[source])
    others = rows.new_zeros(num_rows - N, D)
    expected = torch.cat((rows[:N], others))
    assert torch.equal(collect(places, real, num_rows), expected)
    assert_same([collect(places, real, num_rows)], [expected], [rows])
    rectangle = leaf(10, D)
    assert_same([collect(rectangle, real, num_rows)], [torch.cat((rectangle[real], others))], [rectangle])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("num_rows", [0, 1, 33])
def test_product_equals_linear(dtype, relu, num_rows):
    if dtype == torch.bfloat16 and not has_fast_bfloat16():
        pytest.skip("this CPU has no bfloat16 products")
    x, weight, bias = (torch.randn(*shape) for shape in ((num_rows, 12), (5, 12), (5,)))
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    expected = nn.functional.linear(x.double(), weight.double(), bias.double())
    expected = expected.relu() if relu else expected
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    for one in (weight, weight.t().contiguous().t()):  # the weight may be a transposed view
        found = product(x, one, bias, relu)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=close, atol=close)
