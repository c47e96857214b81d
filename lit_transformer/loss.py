"""The label-smoothed loss over the vocabulary, without ever keeping all the logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CPU_CHUNK = 1 << 22  # logits held at a time: 16 MiB in float32, enough rows for fast matrix products
_GPU_CHUNK = 1 << 26  # 256 MiB: enough rows to keep an accelerator busy


class SmoothedLoss(NamedTuple):
    """A loss and what it would be without label smoothing, both means per token, in nats."""

    loss: Tensor
    nll: Tensor


def smoothed_cross_entropy(features: Tensor, weight: Tensor, labels: Tensor, smoothing: float = 0.0) -> SmoothedLoss:
    """Cross-entropy of ``features @ weight.T`` against labels, a few rows at a time.

    Equal to ``CrossEntropyLoss(label_smoothing=smoothing)`` of the logits. The logits of a large vocabulary need
    more memory and time than the rest of a small model; here each chunk's gradient is formed while the chunk is
    still in the cache, and only gradients of the size of ``features`` and ``weight`` are kept.

    Source: Vaswani et al. 2017, sections 3.4 (output layer) and 5.4 (label smoothing).

    Args:
        features: What the decoder says of each real target token, ``(N, D)``.
        weight: The output layer, ``(V, D)``.
        labels: The right tokens, ``(N,)``, none of them padding.
        smoothing: Probability taken from the right token and spread over the vocabulary.

    Returns:
        The loss, which carries the gradient, and the negative log-likelihood without smoothing, which does not.
        Both are 0 if there is no label.

    Example:
        >>> features, weight = torch.zeros(3, 4), torch.zeros(8, 4)
        >>> loss = smoothed_cross_entropy(features, weight, torch.tensor([5, 6, 7])).loss
        >>> round(loss.exp().item(), 3)  # as good as guessing among eight words
        8.0
    """
    wants_gradient = torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad)
    arguments = features, weight, labels, smoothing, wants_gradient
    return SmoothedLoss(*_ChunkedCrossEntropy.apply(*arguments))  # type: ignore[no-untyped-call]


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, labels: Tensor, smoothing: float, wants_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.get_autocast_dtype(features.device.type) if _autocast(features) else weight.dtype
        x, w = features.to(dtype), weight.to(dtype)
        full = torch.float64 if weight.dtype == torch.float64 else torch.float32
        total = features.new_zeros(
            2, dtype=full
        )  # of the softmax's denominators (logarithms) and of the labels' logits
        d_features = torch.empty_like(x) if wants_gradient else x
        d_weight = torch.zeros_like(weight, dtype=full) if wants_gradient else weight
        rows = max(1, (_CPU_CHUNK if x.device.type == "cpu" else _GPU_CHUNK) // len(weight))
        for start in range(0, len(labels), rows):
            chunk, target = x[start : start + rows], labels[start : start + rows, None]
            logits = (chunk @ w.T).to(full)  # (rows, V)
            probs = logits.softmax(-1)
            log_denominators = logits.amax(1) - probs.amax(1).log()  # of two largest, so that none is infinite
            total += torch.stack((log_denominators.sum(), logits.gather(1, target).sum()))
            if wants_gradient:
                gradient = probs.scatter_add_(1, target, probs.new_full(target.shape, smoothing - 1)).to(dtype)
                torch.mm(gradient, w, out=d_features[start : start + rows])
                _add_product(d_weight, gradient.T, chunk)
        x_sum, w_mean = x.sum(0, dtype=full), w.mean(0, dtype=full)
        if wants_gradient:  # smoothing takes the same from every logit
            d_features -= smoothing * w_mean
            d_weight -= smoothing / len(weight) * x_sum
        ctx.save_for_backward(d_features, d_weight)
        ctx.num_labels = max(1, len(labels))
        denominators, own = total / ctx.num_labels
        nll, uniform = denominators - own, denominators - x_sum @ w_mean / ctx.num_labels
        ctx.mark_non_differentiable(nll)
        return (1 - smoothing) * nll + smoothing * uniform, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_features, d_weight = ctx.saved_tensors
        scale = gradients[0] / ctx.num_labels  # only here: divided earlier, it would vanish in float16
        return scale * d_features, scale * d_weight, None, None, None


def _autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds a matrix product, in the full precision of ``total``."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
