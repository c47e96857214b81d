"""Whether a part of a network is the package's own, as it was written."""

from __future__ import annotations

from torch import nn


def is_own(module: nn.Module, kind: type[nn.Module], names: tuple[str, ...] = ("forward",)) -> bool:
    """Whether a module is of that kind, and nobody overrode its methods of these names, in a class or in an object."""
    return isinstance(module, kind) and not any(
        name in vars(module) or getattr(type(module), name) is not getattr(kind, name) for name in names
    )
