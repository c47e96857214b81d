"""How far two predictions of the same tokens are apart."""

from __future__ import annotations

from torch import Tensor


def symmetric_divergence(logits: Tensor, others: Tensor) -> Tensor:
    r"""Half of :math:`KL(P \| Q) + KL(Q \| P)` of two predictions, a mean per token, in nats.

    Source: Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks", equation 2.

    Args:
        logits: Scores ``(N, V)`` behind the distributions P.
        others: Scores ``(N, V)`` behind the distributions Q.

    Returns:
        A scalar that carries gradients to both, 0 if there is no token.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[1.0, 2.0, 3.0]])
        >>> symmetric_divergence(scores, scores + 1)  # the same distribution
        tensor(0.)
    """
    p, q = logits.log_softmax(-1), others.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum() / (2 * max(1, len(logits)))


def agreeing(log_probs: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    r"""What two predictions of a token pay for being apart: part of the loss that never keeps all the logits.

    With :math:`d = \log P - \log Q`, the gradient of :math:`KL(P \| Q) + KL(Q \| P)` in the logits of P is
    :math:`P (d - KL(P \| Q)) + P - Q`, and with P and Q exchanged in those of Q.

    Args:
        log_probs: Rows 2i and 2i + 1 are the logarithms of both predictions of token i, ``(2N, V)``.
        weight: Of the divergence.

    Returns:
        The probabilities with ``weight`` times the gradient of :func:`symmetric_divergence` in the logits added, as a
        sum over both rows, ``(2N, V)``; and that divergence, a sum over both rows too.

    Example:
        >>> import torch
        >>> _, divergence = agreeing(torch.randn(1, 5).log_softmax(-1).expand(2, 5), weight=3.0)
        >>> divergence
        tensor(0.)
    """
    probs = log_probs.exp()
    (log_p, log_q), (p, q) = (x.view(-1, 2, x.size(-1)).unbind(1) for x in (log_probs, probs))  # (N, V) each
    distance = log_p - log_q
    p_to_q, q_to_p = (p * distance).sum(-1), -(q * distance).sum(-1)  # vecdot would be in half precision under autocast
    difference = (p - q).mul_(weight)
    distance *= weight
    p.mul_(distance - (weight * p_to_q - 1).unsqueeze(1)).add_(difference)
    q.mul_((1 - weight * q_to_p).unsqueeze(1) - distance).sub_(difference)
    return probs, (p_to_q + q_to_p).sum()
