"""The optimizer of the paper, and a faster way through it on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

PAPER_RATE = (512 * 4000) ** -0.5  # the peak of equation 3 for the base model


def paper_adam(parameters: Any) -> torch.optim.Optimizer:
    """Adam as in section 5.3 of the paper: beta1 0.9, beta2 0.98, epsilon 1e-9.

    The rate is the paper's peak for the base model, ``(512 * 4000) ** -0.5``; ``InverseSqrtWarmup`` scales it.
    """
    return torch.optim.Adam(parameters, lr=PAPER_RATE, betas=(0.9, 0.98), eps=1e-9)


def fuse_on_cpu(optimizer: torch.optim.Optimizer) -> None:
    """Lets Adam work through each CPU tensor once instead of ten times, unless its arguments say how to work.

    Not by ``fused=True`` in its constructor: that also takes over the gradient scaling of float16, and Lightning
    then refuses to clip. Each step is noted in the tensors, as other steps are, so that whoever has made copies of them
    can see that they are old.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        is_plain = all(
            type(parameter.data) is Tensor and parameter.device.type == "cpu" for parameter in group["params"]
        )
        is_free = group["fused"] is None and group["foreach"] is None
        if is_plain and is_free and not group["capturable"] and not group["differentiable"]:
            group["fused"] = True
    optimizer.register_step_post_hook(_note_changes)


def _note_changes(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        if group["fused"]:
            increment_version(parameter for parameter in group["params"] if parameter.grad is not None)
