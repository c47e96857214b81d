"""Dropout whose random numbers do not cost more than the network around it (section 5.4)."""

from __future__ import annotations

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
        threshold = round(_LEVELS * self.p)
        is_ours = features.device.type == "cpu" and not self.inplace and not torch.compiler.is_compiling()
        if not self.training or not is_ours or not 0 < threshold < _LEVELS:
            return super().forward(features)
        return features * _mask(features, threshold)


def _mask(like: Tensor, threshold: int) -> Tensor:
    """Zero with probability ``threshold / 65536``, else the factor that keeps the mean."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    chances = words.view(torch.int16)[: like.numel()].view(like.shape)  # uniform from -32768 to 32767
    keep = chances.ge_(threshold - _LEVELS // 2)
    return keep.to(like.dtype).mul_(_LEVELS / (_LEVELS - threshold))
