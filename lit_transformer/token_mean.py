"""A mean over the tokens of many batches and all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenMean(Metric):
    """The mean of batch means, weighed by their tokens, all processes together.

    One batch that is not a number makes the whole mean none: a loss that has diverged anywhere must show.

    Example:
        >>> mean = TokenMean()
        >>> mean.update(torch.tensor(1.0), torch.tensor(3))
        >>> mean.update(torch.tensor(5.0), torch.tensor(1))
        >>> mean.compute()
        tensor(2.)
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    num_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.zeros(()), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[..., Any], exclude_state: Any = "") -> TokenMean:
        """Counts in float32 at least, also in a module of half precision (bf16-true), which cannot count to 1,000."""
        super()._apply(fn, exclude_state)
        for name in ("total", "num_tokens"):
            state: Tensor = getattr(self, name)
            wide = torch.promote_types(state.dtype, torch.float32)
            setattr(self, name, state.to(wide))
            self._defaults[name] = torch.zeros((), dtype=wide, device=state.device)
        return self

    def update(self, mean: Tensor, num_tokens: Tensor) -> None:
        """Adds a batch: its mean per token, and how many tokens it has."""
        self.total += mean.detach().float() * num_tokens
        self.num_tokens += num_tokens

    def compute(self) -> Tensor:
        """The mean so far; not a number if there was no token."""
        return self.total / self.num_tokens
