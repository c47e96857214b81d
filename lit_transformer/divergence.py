"""How far two predictions of the same tokens are apart, without ever keeping all the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CPU_CHUNK = 1 << 21  # logits of each prediction held at a time
_GPU_CHUNK = 1 << 25


def symmetric_divergence(logits: Tensor, others: Tensor) -> Tensor:
    r"""Half of :math:`KL(P \| Q) + KL(Q \| P)` of two predictions, a mean per token, in nats.

    Source: Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks", equation 2.

    Args:
        logits: Scores ``(N, V)`` behind the distributions P.
        others: Scores ``(N, V)`` behind the distributions Q.

    Returns:
        A scalar that carries gradients to both, 0 if there is no token.

    Example:
        >>> scores = torch.tensor([[1.0, 2.0, 3.0]])
        >>> symmetric_divergence(scores, scores + 1)  # the same distribution
        tensor(0.)
    """
    p, q = logits.log_softmax(-1), others.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum() / (2 * max(1, len(logits)))


def divergence_of_products(features: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    """``symmetric_divergence`` of ``features @ weight.T`` and ``others @ weight.T``, a few rows at a time.

    As in the loss beside it, gradients are formed while a chunk of logits is at hand, and only those of the size of
    features and weight are kept.

    Args:
        features: What the decoder says of each token, ``(N, D)``.
        others: What it says under another dropout, ``(N, D)``.
        weight: The output layer, ``(V, D)``.

    Returns:
        A scalar that carries gradients to all three.

    Example:
        >>> features, weight = torch.randn(3, 4), torch.randn(8, 4)
        >>> divergence_of_products(features, features, weight)
        tensor(0.)
    """
    divergence: Tensor = _ChunkedDivergence.apply(features, others, weight)  # type: ignore[no-untyped-call]
    return divergence


class _ChunkedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, others: Tensor, weight: Tensor) -> Tensor:
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        x, y, w = features.to(dtype), others.to(dtype), weight.to(dtype)
        full = torch.float64 if weight.dtype == torch.float64 else torch.float32
        total, d_weight = x.new_zeros((), dtype=full), torch.zeros_like(weight, dtype=full)
        d_x, d_y = torch.empty_like(x), torch.empty_like(y)
        rows = max(1, (_CPU_CHUNK if device == "cpu" else _GPU_CHUNK) // len(weight))
        for start in range(0, len(x), rows):
            here = slice(start, start + rows)
            divergence, d_p, d_q = _divergence_and_gradients((x[here] @ w.T).to(full), (y[here] @ w.T).to(full))
            total += divergence
            d_p, d_q = d_p.to(dtype), d_q.to(dtype)
            torch.mm(d_p, w, out=d_x[here])
            torch.mm(d_q, w, out=d_y[here])
            d_weight += d_p.T @ x[here] + d_q.T @ y[here]
        ctx.save_for_backward(d_x, d_y, d_weight)
        ctx.scale = 1 / (2 * max(1, len(x)))
        mean: Tensor = total * ctx.scale
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d_x, d_y, d_weight = ctx.saved_tensors
        scale = gradients[0] * ctx.scale
        return scale * d_x, scale * d_y, scale * d_weight


def _divergence_and_gradients(logits: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The sum of :math:`KL(P \| Q) + KL(Q \| P)` over the rows, and its gradients in both logits.

    With :math:`d = \log P - \log Q`, the gradient in the logits of P is :math:`P (d - KL(P \| Q)) + P - Q`.
    """
    log_p, log_q = logits.log_softmax(-1), others.log_softmax(-1)
    p, q, distance = log_p.exp(), log_q.exp(), log_p - log_q
    p_to_q = (p * distance).sum(-1, keepdim=True)
    q_to_p = -(q * distance).sum(-1, keepdim=True)
    difference = p - q
    d_p = p * (distance - p_to_q) + difference
    d_q = -q * (distance + q_to_p) - difference
    return (p_to_q + q_to_p).sum(), d_p, d_q
