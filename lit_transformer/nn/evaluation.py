"""A network at rest: without dropout for a while, and then as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts a network that somebody may be training into evaluation mode, and each of its modules back afterwards.

    Example:
        >>> network = nn.Sequential(nn.Dropout(0.5)).train()
        >>> with evaluating(network):
        ...     print(network[0].training)
        False
        >>> network[0].training
        True
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
