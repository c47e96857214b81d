"""Dropout whose random numbers do not cost more than the network around it (section 5.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LEVELS = 1 << 16  # what 16 random bits can tell apart


class Dropout(nn.Dropout):
    """``nn.Dropout`` with a faster source of chance on CPUs.

    There ``nn.Dropout`` draws one random number for each feature, which takes several times as long as all else that
    it does. Here one 64-bit number of the same generator decides about four features, 16 bits each. So the
    probability is rounded to a multiple of 1/65536, and kept features are scaled by the rounded one: the mean stays
    exact. On other devices, and in compiled code, it is ``nn.Dropout``.

    Source: Vaswani et al. 2017, section 5.4.

    Args:
        p: Probability to drop a feature in training.
        inplace: As for ``nn.Dropout``, which then does the work.

    Example:
        >>> dropout = Dropout(0.25)
        >>> features = dropout(torch.ones(10_000))
        >>> round(features.max().item(), 4), abs(features.mean().item() - 1) < 0.02
        (1.3333, True)
    """

    def forward(self, features: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """Drops features of any shape in training, and leaves them alone otherwise."""
        is_ours = features.device.type == "cpu" and not self.inplace and not torch.compiler.is_compiling()
        if not self.training or not is_ours or not can_draw(self.p):
            return super().forward(features)
        keep, scale = keep_or_drop(features.shape, self.p)
        return (features * keep).mul_(scale)


def keep_or_drop(shape: Sequence[int], p: float) -> tuple[Tensor, float]:
    """Draws which features are kept, on the CPU.

    Args:
        shape: Of the features.
        p: Probability to drop one, at least 1/131072 and below 1 by as much.

    Returns:
        1 for each feature that is kept and 0 for others in int8, which is small and fast to multiply by, and the
        factor for kept ones that keeps the mean.
    """
    threshold = round(_LEVELS * p)
    num_features = math.prod(shape)
    words = torch.empty(-(-num_features // 4), dtype=torch.int64).random_(-(1 << 63), None)
    chances = words.view(torch.int16)[:num_features].view(shape)  # uniform from -32768 to 32767
    return chances.ge_(threshold - _LEVELS // 2).to(torch.int8), _LEVELS / (_LEVELS - threshold)


def is_dropout(module: nn.Module) -> TypeGuard[nn.Dropout]:
    """Whether a module drops single features and does nothing else, so that it can be left out of an evaluation."""
    forwards = (nn.Dropout.forward, Dropout.forward)
    return isinstance(module, nn.Dropout) and type(module).forward in forwards and "forward" not in vars(module)


def can_draw(p: float) -> bool:
    """Whether a probability is one that ``keep_or_drop`` can tell from never and always."""
    return 0 < round(_LEVELS * p) < _LEVELS
