"""R-Drop: two dropouts of one network, taught to agree with each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lit_transformer.divergence import symmetric_divergence
from lit_transformer.interfaces import TranslationBatch
from lit_transformer.loss import SmoothedLoss, smoothed_cross_entropy
from lit_transformer.module import LitTransformer


class RDropTransformer(LitTransformer):
    r"""Trains with R-Drop: each sentence passes twice, under two dropouts, and the two predictions shall agree.

    To the mean of both cross-entropies comes ``alpha / 2`` times the symmetric divergence, half of
    :math:`KL(P \| Q) + KL(Q \| P)`, as a mean per target token. That is half of the paper's loss, which adds the two
    cross-entropies up; so ``train/loss`` without the divergence compares with that of other runs, and
    ``train/perplexity`` does in any case. A step takes twice the time and, for what is kept of each pass, twice the
    memory, from ``start_step`` on: try ``max_tokens`` with ``start_step=0`` first. Without dropout both passes are the
    same, and nothing is gained. Validation, test and decoding are those of ``LitTransformer``.

    A network that knows nothing yet agrees best with itself by saying nothing, and learns late to look at the source:
    on Multi30k a small model with ``alpha`` 3 and BPE dropout from the first step on took two to three times as many
    steps to the same perplexity as one without both. With ``start_step`` it learns the language first, in cheap steps,
    and to agree afterwards.

    Source: Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks", equations 1 to 4, with alpha 5 for
    translation.

    Args:
        *args: Arguments of ``LitTransformer``, the network first; it needs dropout.
        alpha: Weight of the divergence; 0 leaves the mean of the two cross-entropies.
        start_step: Optimizer steps before R-Drop begins, in which each sentence passes once. Without a trainer there
            is no step, and it counts as 0.
        **kwargs: Arguments of ``LitTransformer``. A ``criterion`` takes the place of both cross-entropies.

    Raises:
        ValueError: If ``label_smoothing`` is not in [0, 1), or ``alpha`` or ``start_step`` is negative.

    Example:
        >>> from lit_transformer import Transformer
        >>> network = Transformer(vocab_size=16, num_layers=1, d_model=8, d_ff=16, num_heads=2, dropout=0.5)
        >>> module = RDropTransformer(network, alpha=1000.0)
        >>> batch = TranslationBatch(torch.tensor([[5, 3]]), torch.tensor([[2, 6, 3]]))
        >>> bool(module.train().compute_loss(batch).loss > 10 * module.eval().compute_loss(batch).loss)
        True
    """

    def __init__(self, *args: Any, alpha: float = 5.0, start_step: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, value in (("alpha", alpha), ("start_step", start_step)):
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        self.alpha, self.start_step = alpha, start_step

    def compute_loss(self, batch: TranslationBatch) -> SmoothedLoss:
        """In training the loss of both passes and of what divides them; otherwise that of ``LitTransformer``."""
        return super().compute_loss(_twice(batch) if self._passes_twice else batch)

    def loss_of_features(self, features: Tensor, labels: Tensor) -> SmoothedLoss:
        """The loss from what the decoder says of each token ``(N, D)``, where its output layer is a product."""
        if not self._passes_twice:
            return super().loss_of_features(features, labels)
        return smoothed_cross_entropy(features, self.output_weight, labels, self.label_smoothing, self.alpha / 2)

    def loss_of_logits(self, logits: Tensor, labels: Tensor) -> SmoothedLoss:
        """The loss from scores ``(N, V)``, for any other network or criterion."""
        found = super().loss_of_logits(logits, labels)
        return SmoothedLoss(found.loss + self._apart(logits), found.nll) if self._passes_twice else found

    def _apart(self, logits: Tensor) -> Tensor:
        """What the two predictions ``(N, V)`` add to the loss."""
        one, other = logits.chunk(2)
        return self.alpha / 2 * symmetric_divergence(one, other)

    @property
    def _passes_twice(self) -> bool:
        return self.training and self.global_step >= self.start_step


def _twice(batch: TranslationBatch) -> TranslationBatch:
    """All sentences, and all of them again: one pass of the network, two dropouts."""
    return replace(batch, src=torch.cat((batch.src, batch.src)), tgt=torch.cat((batch.tgt, batch.tgt)))
