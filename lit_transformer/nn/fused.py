"""The steps of a layer in training on a CPU, each with a gradient that passes through memory as few times as it can.

Every function here names its plain reference, which it is tested against. All work on rows of features ``(N, D)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_transformer.kernels import SLICE, product


class Origin(NamedTuple):
    """What rows are made from. It is kept for gradients anyway, so the rows need not be: they are made again.

    Args:
        kept: What somebody else keeps.
        make: Makes the rows from it.
    """

    kept: Tensor
    make: Callable[[Tensor], Tensor]


def linears(x: Tensor, layers: Sequence[nn.Linear], origin: Origin | None = None) -> tuple[Tensor, ...]:
    """Applies several linear layers to the same rows.

    The plain reference is ``[layer(x) for layer in layers]``. The weights are taken in the type of ``x``, results
    have it too, and the gradients by ``x`` are added on the way.

    Args:
        x: The rows, ``(N, I)``.
        layers: Layers whose inputs have ``I`` features.
        origin: Where ``x`` comes from, to be kept instead of it.
    """
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    with _keeping(x, origin):
        return _Linears.apply(x, *parameters)  # type: ignore[no-any-return, no-untyped-call]


def feed_forward(x: Tensor, inner: nn.Linear, outer: nn.Linear, origin: Origin | None = None) -> Tensor:
    """The feed-forward network ``outer(relu(inner(x)))`` of the paper, on rows ``(N, D)``.

    The ReLU and its gradient are computed in place, and only its result is kept for the gradient. ``origin`` is as for
    :func:`linears`.
    """
    with _keeping(x, origin):
        return _FeedForward.apply(x, inner.weight, inner.bias, outer.weight, outer.bias)  # type: ignore[no-any-return, no-untyped-call]


def add_norm(
    x: Tensor, y: Tensor, norm: nn.LayerNorm, keep: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The end of a sub-layer: dropout, the residual sum and the layer norm.

    The plain reference is ``total = x + scale * keep * y``. Kept for the gradient are the sum and a byte for each
    decision of dropout. The output ``y`` is used up: its memory becomes that of the sum.

    Args:
        x: What entered the sub-layer, ``(N, D)``.
        y: The sub-layer's output, ``(N, D)``, maybe in bfloat16, which nobody else needs.
        norm: The layer norm.
        keep: 1 where a feature of ``y`` is kept and 0 where it is dropped, ``(N, D)`` in int8; None keeps all.
        scale: What kept features are multiplied by.

    Returns:
        The sum and ``norm(total)``, both in the type of ``x``.
    """
    return _AddNorm.apply(x, y, keep, scale, norm.weight, norm.bias, norm.eps)  # type: ignore[no-any-return, no-untyped-call]


def spread(rows: Tensor, source: Tensor, real: Tensor) -> Tensor:
    """Sets rows of tokens ``(R, D)`` into a rectangle of places ``(M, D)``: ``rows[source]``.

    Places of padding repeat some row. Nothing may depend on them: they are taken to get no gradient, like the rows
    after the last token.

    Args:
        rows: The tokens, ``(R, D)``, and maybe other rows after the N-th.
        source: The row that stands at each place, ``(M,)``.
        real: The place of each token, ``(N,)``.
    """
    return _Spread.apply(rows, source, real)  # type: ignore[no-any-return, no-untyped-call]


def collect(places: Tensor, real: Tensor, num_rows: int) -> Tensor:
    """Takes the rows of tokens out of a rectangle of places ``(M, D)``: ``places[real]``, and zeros after them.

    Args:
        places: The rectangle, ``(M, D)``.
        real: The place of each token, ``(N,)``.
        num_rows: How many rows to return, N or more.
    """
    return _Collect.apply(places, real, num_rows)  # type: ignore[no-any-return, no-untyped-call]


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = parameters[::2], parameters[1::2]
        ctx.save_for_backward(x, *weights)
        ctx.has_bias = [bias is not None for bias in biases]
        return tuple(product(x, _cast(w, x), _cast(b, x)) for w, b in zip(weights, biases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        dx: Tensor | None = None
        d_parameters: list[Tensor | None] = []
        for weight, has_bias, gradient in zip(weights, ctx.has_bias, gradients, strict=True):
            d_parameters += _parameter_gradients(gradient, x, weight, has_bias)
            one = product(gradient, _cast(weight, x).t())
            dx = one if dx is None else dx.add_(one)
        return dx, *d_parameters


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inner: Tensor, inner_bias: Tensor, outer: Tensor, outer_bias: Tensor) -> Tensor:
        hidden = product(x, _cast(inner, x), _cast(inner_bias, x), relu=True)
        ctx.save_for_backward(x, hidden, inner, outer)
        return product(hidden, _cast(outer, x), _cast(outer_bias, x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, inner, outer = ctx.saved_tensors
        d_outer = _parameter_gradients(gradient, hidden, outer)
        d_hidden = product(gradient, _cast(outer, x).t())
        torch.ops.aten.threshold_backward.grad_input(d_hidden, hidden, 0, grad_input=d_hidden)
        d_inner = _parameter_gradients(d_hidden, x, inner)
        return product(d_hidden, _cast(inner, x).t()), *d_inner, *d_outer


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, keep: Tensor | None, scale: float, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        dropped = y.detach() if keep is None else y.detach().mul_(keep)
        room = dropped if x.dtype == y.dtype else torch.empty_like(x)
        total = torch.add(x, dropped, alpha=scale, out=room)
        normed, mean, deviation = torch.native_layer_norm(total, weight.shape, weight, bias, eps)
        ctx.save_for_backward(total, keep, mean, deviation, weight, bias)
        ctx.scale, ctx.dtype = scale, y.dtype
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor | None, d_normed: Tensor | None) -> tuple[Tensor | None, ...]:
        total, keep, mean, deviation, weight, bias = ctx.saved_tensors
        d_weight = d_bias = None
        if d_normed is not None:
            shape, needs = weight.shape, [True, True, True]
            dx, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
                d_normed, total, shape, mean, deviation, weight, bias, needs
            )
            dx = dx if d_total is None else dx.add_(d_total)
        else:
            dx = d_total
        dy = None if dx is None else dx.to(ctx.dtype) if keep is None else (dx.to(ctx.dtype) * keep).mul_(ctx.scale)
        return dx, dy, None, None, d_weight, d_bias, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, real: Tensor) -> Tensor:
        ctx.real, ctx.num_rows = real, len(rows)
        return rows.index_select(0, source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return take_rows(gradient, ctx.real, ctx.num_rows), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, places: Tensor, real: Tensor, num_rows: int) -> Tensor:
        ctx.real, ctx.num_places = real, len(places)
        return take_rows(places, real, num_rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        places = gradient.new_zeros(ctx.num_places, gradient.size(1))
        return places.index_copy_(0, ctx.real, gradient[: len(ctx.real)]), None, None


def take_rows(places: Tensor, real: Tensor, num_rows: int) -> Tensor:
    """:func:`collect`, without a part in gradients."""
    rows = places.new_empty(num_rows, places.size(1))
    torch.index_select(places, 0, real, out=rows[: len(real)])
    rows[len(real) :] = 0
    return rows


def _keeping(x: Tensor, origin: Origin | None) -> AbstractContextManager[Any]:
    """Keeps for the gradient what ``x`` comes from, where that is known, and makes ``x`` from it again."""
    if origin is None:
        return nullcontext()
    place, kept, make = x.data_ptr(), origin.kept.detach(), origin.make

    def keep(saved: Tensor) -> Tensor:
        return kept if saved.data_ptr() == place else saved

    def restore(saved: Tensor) -> Tensor:
        return make(kept) if saved is kept else saved

    return torch.autograd.graph.saved_tensors_hooks(keep, restore)


def _cast(parameter: Any, like: Tensor) -> Any:
    """The parameter, if any, in the type of ``like``; anew for the gradient, which is cheap and keeps no copies."""
    return None if parameter is None else parameter.to(like.dtype)


def _parameter_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, has_bias: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Of the weight and of the bias of a linear layer."""
    d_weight = (gradient.t() @ x).to(weight.dtype)
    return d_weight, _column_sums(gradient, weight.dtype) if has_bias else None


def _column_sums(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """``rows.sum(0, dtype=dtype)``, for which torch would first copy all rows into that type."""
    if rows.dtype == dtype:
        return rows.sum(0)
    parts = torch.split(rows, max(1, SLICE // rows.size(1)))
    return torch.stack([part.sum(0, dtype=dtype) for part in parts]).sum(0)
