"""One subclass for each seam: the attention rule, the network, the loss, the row reader and a callback."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_transformer import InverseSqrtWarmup, ParallelCorpus, SentencePair, Transformer
from lit_transformer.nn import MultiHeadAttention


class ScaledAttention(MultiHeadAttention):
    """Attention with one learned temperature for each head."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__(d_model, num_heads)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        return super().attend(query * self.temperature, key, value, mask, is_causal)


class ScaledTransformer(Transformer):
    """The Transformer with that attention everywhere."""

    def build_attention(self) -> MultiHeadAttention:
        return ScaledAttention(self.d_model, self.num_heads)


class ConfidentLoss(nn.Module):
    """Cross-entropy that counts uncertain tokens more (a focal loss).

    Args:
        gamma: How much less a certain token counts; 0 is plain cross-entropy.
    """

    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        nll = F.cross_entropy(logits, labels, reduction="none")
        return ((1 - (-nll).exp()) ** self.gamma * nll).mean()


class ReversalCorpus(ParallelCorpus):
    """Reads rows of digits; the translation is the digits backwards. Rows that begin with 0 are dropped."""

    def read_row(self, row: dict[str, object]) -> SentencePair | None:
        digits = str(row["digits"])
        return None if digits.startswith("0") else SentencePair(" ".join(digits), " ".join(reversed(digits)))


class LinearWarmdown(InverseSqrtWarmup):
    """Warms up like the paper, then falls in a straight line to nothing.

    Args:
        warmup_steps: Optimizer steps until the peak.
        total_steps: Optimizer steps until the rate is 0.
    """

    def __init__(self, warmup_steps: int = 100, total_steps: int = 1000) -> None:
        super().__init__(warmup_steps)
        self.total_steps = total_steps

    def scale(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        return max(0.0, (self.total_steps - step) / (self.total_steps - self.warmup_steps))
