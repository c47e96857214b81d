"""Sums over the target tokens of optimizer steps: what gradients are divided by, and what is logged."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_UNIT_TOKENS = 4096  # keeps summed losses in the range of half precision; a power of two, so that no digit changes


class StepSums:
    """Counts tokens and sums up losses, so that each target token weighs the same, whichever batch it is in.

    Of each batch call ``start_batch``, ``note`` and ``weigh`` in this order; of each optimizer step ``start_step``
    before its batches, and ``all_processes`` behind them. ``since_logged`` keeps sums of many steps.

    Example:
        >>> sums = StepSums()
        >>> for mean, num_labels in ((1.0, 3), (5.0, 1)):
        ...     sums.start_batch(torch.tensor(num_labels))
        ...     sums.note(torch.tensor(mean), torch.tensor(mean))
        ...     _ = sums.weigh(torch.tensor(mean))
        >>> sums.all_processes("cpu")
        tensor([4., 8., 8.])
    """

    def __init__(self) -> None:
        self._num_labels = torch.ones((), dtype=torch.long)  # of the batch in hand
        self._means: Tensor | None = None  # its loss and negative log-likelihood
        self._of_step: list[Tensor] = []  # labels and summed losses of the batches of an optimizer step
        self._since_logged: Tensor | None = None  # the same of the steps since the last logged one

    def start_batch(self, num_labels: Tensor) -> None:
        """Notes how many target tokens the next batch has."""
        self._num_labels, self._means = num_labels, None

    def note(self, loss: Tensor, nll: Tensor) -> None:
        """Notes the loss and the negative log-likelihood of the batch in hand, means per target token."""
        self._means = torch.stack((loss.detach(), nll.detach())).float()

    @property
    def has_means(self) -> bool:
        """Whether the losses of the batch in hand are known."""
        return self._means is not None

    def start_step(self) -> None:
        """Begins an optimizer step, just where its gradients begin."""
        self._of_step = []

    def weigh(self, loss: Tensor) -> Tensor:
        """Adds the batch in hand to the step; its mean loss as a sum over its tokens, in units of 4,096 of them."""
        means = loss.new_zeros(2, dtype=torch.float32) if self._means is None else self._means
        self._of_step.append(torch.cat((self._num_labels.view(1), means * self._num_labels)))
        return loss * (self._num_labels / _UNIT_TOKENS)

    def all_processes(self, device: torch.device | str) -> Tensor:
        """Ends the step: its labels, loss and negative log-likelihood ``(3,)``, sums over all processes.

        Args:
            device: Where to count, if batches were skipped and there is none.
        """
        own = self._of_step or [torch.zeros(3, device=device)]
        self._of_step = []
        totals = torch.stack(own).sum(0)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(totals)  # the strategy's own way waits for all devices before
        return totals

    def since_logged(self, totals: Tensor, starts_anew: bool) -> tuple[Tensor, Tensor]:
        """The loss and negative log-likelihood per token over all steps since the last logged one.

        Single batches are easy or hard, as their length is.

        Args:
            totals: From :meth:`all_processes`, of the newest step.
            starts_anew: Whether the step before was a logged one.
        """
        if self._since_logged is None or starts_anew:
            self._since_logged = torch.zeros_like(totals)
        self._since_logged = self._since_logged.to(totals.device) + totals
        loss, nll = self._since_logged[1:] / self._since_logged[0].clamp(min=1)
        return loss, nll

    def state(self) -> list[float] | None:
        """Sums that are yet to be logged, for a checkpoint."""
        return None if self._since_logged is None else self._since_logged.tolist()

    def load_state(self, state: list[float]) -> None:
        """Goes on with sums from a checkpoint."""
        self._since_logged = torch.tensor(state)


def divide_by_tokens(parameters: Iterable[Tensor], totals: Tensor, num_parts: int) -> None:
    """Makes gradients means per target token, in place.

    Args:
        parameters: Whose gradients are those of :meth:`StepSums.weigh`, divided by ``num_parts``.
        totals: From :meth:`StepSums.all_processes`.
        num_parts: Micro-batches times processes.
    """
    if gradients := [parameter.grad for parameter in parameters if parameter.grad is not None]:
        torch._foreach_mul_(gradients, num_parts * _UNIT_TOKENS / totals[0].clamp(min=1))
