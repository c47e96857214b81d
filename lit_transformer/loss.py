"""The label-smoothed loss over the vocabulary, without ever keeping all the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_transformer.divergence import agreeing
from lit_transformer.kernels import ROW_STEP, SLICE, product, rounded

_CPU_CHUNK = 1 << 24  # bytes of logits held at a time
_CPU_ROWS = 192  # but no fewer rows than that, which would make slow matrix products
_CPU_SLICE = SLICE  # logits of a chunk, worked on at a time
_GPU_CHUNK = 1 << 27  # bytes: enough rows to keep an accelerator busy


class SmoothedLoss(NamedTuple):
    """A loss and what it would be without label smoothing, both means per token, in nats."""

    loss: Tensor
    nll: Tensor


class Teacher(NamedTuple):
    """What another model says of the same tokens: features ``(N, D)`` and its output layer ``(V, D)``.

    Without an output layer the features are its logits, ``(N, V)``.
    """

    features: Tensor
    weight: Tensor | None = None


class Shortlist(NamedTuple):
    """A distribution by its likeliest tokens ``(N, K)`` and their probabilities; the rest is spread over all tokens."""

    tokens: Tensor
    probs: Tensor

    @property
    def rest(self) -> Tensor:
        """The probability that is spread, ``(N, 1)``."""
        return (1 - self.probs.sum(1, keepdim=True)).clamp_(min=0)

    def spread(self, vocab_size: int) -> Tensor:
        """The whole distribution, ``(N, V)``."""
        whole = (self.rest / vocab_size).repeat(1, vocab_size)
        return whole.scatter_add_(1, self.tokens, self.probs)


def smoothed_cross_entropy(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    agreement: float | None = None,
    teachers: Sequence[Teacher] | Shortlist = (),
    teacher_weight: float = 0.0,
) -> SmoothedLoss:
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
        agreement: For features that are those of one pass and then those of another over the same tokens: the weight
            of :func:`symmetric_divergence` between both, which comes to the loss from the same logits.
        teachers: Models whose mean distribution is to be learned too, or the likeliest tokens of that distribution; no
            gradient goes to them. Of two passes they say each token once, for both.
        teacher_weight: How much of the loss is the cross-entropy against that distribution; the rest is against labels.

    Returns:
        The loss, which carries the gradient, and the negative log-likelihood without smoothing, which does not.
        Both are 0 if there is no label.

    Raises:
        ValueError: If two passes are said to be there and the number of rows is odd.

    Example:
        >>> features, weight = torch.zeros(3, 4), torch.zeros(8, 4)
        >>> loss = smoothed_cross_entropy(features, weight, torch.tensor([5, 6, 7])).loss
        >>> round(loss.exp().item(), 3)  # as good as guessing among eight words
        8.0
    """
    wants_gradient = torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad)
    if agreement is not None:
        if len(labels) % 2:
            raise ValueError(f"two passes over the same tokens give an even number of rows, got {len(labels)}")
        features, labels = _in_pairs(features), _in_pairs(labels)
    share = teacher_weight if teachers else 0.0
    arguments = features, weight, labels, smoothing, agreement, teachers, share, wants_gradient
    return SmoothedLoss(*_ChunkedCrossEntropy.apply(*arguments))  # type: ignore[no-untyped-call]


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        labels: Tensor,
        smoothing: float,
        agreement: float | None,
        teachers: Sequence[Teacher] | Shortlist,
        share: float,
        wants_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.get_autocast_dtype(features.device.type) if _autocast(features) else weight.dtype
        x, w = features.to(dtype), weight.to(dtype)
        full = torch.float64 if weight.dtype == torch.float64 else torch.float32
        d_features = torch.empty_like(x) if wants_gradient else x
        d_weight = torch.zeros_like(weight, dtype=full) if wants_gradient else weight
        denominators, own = x.new_empty(2, len(labels), dtype=full)  # of the softmax (logarithms); logits of labels
        apart, taught = x.new_zeros(2, dtype=full)  # divergence of all pairs of rows; cross-entropy with the teachers
        if isinstance(teachers, Shortlist):
            teachers = Shortlist(teachers.tokens, teachers.probs.to(full))
        else:
            teachers = [_in_dtype(teacher, dtype) for teacher in teachers]
        is_on_cpu = x.device.type == "cpu"
        row = len(weight) * x.element_size()  # bytes
        size = max(_CPU_ROWS, _CPU_CHUNK // row) if is_on_cpu else _GPU_CHUNK // row
        copies = 1 if agreement is None else 2  # rows of each token
        for rows in _slices(len(labels), size - size % ROW_STEP or size):  # only the last is filled up
            inputs = _filled(x[rows]) if is_on_cpu else x[rows]
            logits = product(inputs, w)  # (rows, V)
            real = labels[rows, None]
            said = _said(teachers, _tokens_of(rows, copies), is_on_cpu)
            chunk = logits[: len(real)], real, denominators[rows], own[rows]
            for part in _slices(len(real), _CPU_SLICE // len(weight) if is_on_cpu else len(real) + 1):
                found = _soften(
                    smoothing, agreement, _part_of(said, _tokens_of(part, copies)), share, *(one[part] for one in chunk)
                )
                apart, taught = apart + found[0], taught + found[1]
            if wants_gradient:  # the logits have become their gradient
                logits[len(real) :] = 0
                d_features[rows] = product(logits, w.t())[: len(real)]
                _add_product(d_weight, logits.T, inputs)
        x_sum, w_mean = x.sum(0, dtype=full), w.mean(0, dtype=full)
        if wants_gradient:  # smoothing takes the same from every logit
            d_features -= (1 - share) * smoothing * w_mean
            d_weight -= (1 - share) * smoothing / len(weight) * x_sum
        ctx.save_for_backward(d_features, d_weight)
        ctx.num_labels = max(1, len(labels))
        mean_denominator, mean_own = denominators.sum() / ctx.num_labels, own.sum() / ctx.num_labels
        nll, uniform = mean_denominator - mean_own, mean_denominator - (x_sum * w_mean).sum() / ctx.num_labels
        ctx.mark_non_differentiable(nll)
        loss = (1 - share) * ((1 - smoothing) * nll + smoothing * uniform) + share * taught / ctx.num_labels
        return loss + (agreement or 0) * apart / ctx.num_labels, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_features, d_weight = ctx.saved_tensors
        scale = gradients[0] / ctx.num_labels  # only here: divided earlier, it would vanish in float16
        return scale * d_features, scale * d_weight, None, None, None, None, None, None


def _in_pairs(rows: Tensor) -> Tensor:
    """From the rows of two passes, one after the other: both rows of each token side by side."""
    return torch.stack(rows.chunk(2), 1).flatten(0, 1)


def _slices(length: int, size: int) -> list[slice]:
    size = max(2, size - size % 2)  # both rows of a pair
    return [slice(start, start + size) for start in range(0, length, size)]


def _tokens_of(rows: slice, copies: int) -> slice:
    """The tokens that rows are of, with as many rows for each."""
    return slice(rows.start // copies, rows.stop // copies)


def _filled(x: Tensor) -> Tensor:
    """Adds rows of zeros up to a number that repeats."""
    missing = rounded(len(x)) - len(x)
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def mean_distribution(logits: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """What several models that gave logits ``(N, V)`` say together, ``(N, V)``, computed in ``dtype``."""
    total = logits[0].to(dtype).softmax(-1)
    for one in logits[1:]:
        total += one.to(dtype).softmax(-1)
    return total / len(logits)


def _in_dtype(teacher: Teacher, dtype: torch.dtype) -> Teacher:
    features, weight = teacher
    return teacher if weight is None else Teacher(features.to(dtype), weight.to(dtype))


def _said(teachers: Sequence[Teacher] | Shortlist, tokens: slice, is_on_cpu: bool) -> list[Tensor] | Shortlist:
    """What teachers say of some tokens, the logits of each."""
    if isinstance(teachers, Shortlist):
        return _part_of(teachers, tokens)
    return [_logits(teacher, tokens, is_on_cpu) for teacher in teachers]


def _part_of(said: Sequence[Tensor] | Shortlist, tokens: slice) -> list[Tensor] | Shortlist:
    parts = [one[tokens] for one in said]
    return Shortlist(*parts) if isinstance(said, Shortlist) else parts


def _logits(teacher: Teacher, tokens: slice, is_on_cpu: bool) -> Tensor:
    """What a teacher says of some tokens, ``(tokens, V)``."""
    features = teacher.features[tokens]
    if teacher.weight is None:
        return features
    return product(_filled(features) if is_on_cpu else features, teacher.weight)[: len(features)]


def _soften(
    smoothing: float,
    agreement: float | None,
    said: list[Tensor] | Shortlist,
    share: float,
    logits: Tensor,
    labels: Tensor,
    denominators: Tensor,
    own: Tensor,
) -> tuple[Tensor, Tensor]:
    """Replaces logits ``(rows, V)`` by the gradient of the loss, but for what smoothing takes from all alike.

    Returns the divergence within pairs of rows, 0 where ``agreement`` does not count it, and the cross-entropy with the
    mean distribution of teachers that have ``said`` their logits, 0 without any; both are sums.
    """
    full = logits.to(denominators.dtype)
    apart, taught = denominators.new_zeros(2)
    own.copy_(full.gather(1, labels).squeeze(1))
    if agreement is None:
        probs = full.softmax(-1)
        torch.sub(full.amax(1), probs.amax(1).log_(), out=denominators)  # of two largest, so that none is infinite
    else:
        log_probs = full.log_softmax(-1)
        torch.sub(full.amax(1), log_probs.amax(1), out=denominators)
        probs, apart = agreeing(log_probs, agreement)
    if isinstance(said, Shortlist):
        few = said if agreement is None else Shortlist(*(one.repeat_interleave(2, 0) for one in said))
        rest = few.rest
        taught = (denominators - (few.probs * full.gather(1, few.tokens)).sum(1) - rest[:, 0] * full.mean(1)).sum()
        probs.sub_(rest, alpha=share / full.size(1)).scatter_add_(1, few.tokens, few.probs * -share)
    elif said:
        target = mean_distribution(said, full.dtype)
        if agreement is not None:
            target = target.repeat_interleave(2, 0)
        taught = (denominators - (target * full).sum(1)).sum()
        probs.sub_(target, alpha=share)
    logits.copy_(probs.scatter_add_(1, labels, probs.new_full(labels.shape, (1 - share) * (smoothing - 1))))
    return apart, taught


def _autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds a matrix product, in the full precision of ``total``."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
