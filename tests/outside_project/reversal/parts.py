"""One subclass for each seam: attention, network, loss, row reader, batches, schedule, search and score."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from lit_transformer import (
    BeamSearch,
    InverseSqrtWarmup,
    ParallelCorpus,
    SentencePair,
    Transformer,
    TranslationDataModule,
)
from lit_transformer.data.batching import TokenBudgetBatches
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


class SummedBatches(TokenBudgetBatches):
    """Batches whose budget counts source and target tokens together."""

    def cost(self, num_pairs: int, longest_src: int, longest_tgt: int) -> int:
        return num_pairs * (longest_src + longest_tgt)


class ReversalData(TranslationDataModule):
    """The data module with those batches."""

    def build_batches(self, max_tokens: int, shuffle: bool) -> TokenBudgetBatches:
        return SummedBatches(max_tokens, shuffle)


class MeanBeams(BeamSearch):
    """Beam search that ranks by the mean log probability of the tokens."""

    def penalty(self, length: int | Tensor) -> float | Tensor:
        return length


class ExactMatch(Metric):
    """Share of the sentences that are translated without a mistake, in percent."""

    name = "exact"
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, translations: list[str], references: list[str]) -> None:
        self.right += sum(one == other for one, other in zip(translations, references, strict=True))
        self.total += len(references)

    def compute(self) -> Tensor:
        return 100 * self.right / self.total


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
