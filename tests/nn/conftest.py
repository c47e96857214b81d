"""Copies weights from torch's own attention and layers into ours, so that the results can be compared."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lit_transformer.nn import DecoderLayer, EncoderLayer, MultiHeadAttention


def randomise(module: nn.Module) -> nn.Module:
    """No weight at a value like 0 or 1, behind which a mistake could hide."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(mean=1.0 if is_norm else 0.0, std=0.3)
    return module


def copy_linear(ours: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    with torch.no_grad():
        ours.weight.copy_(weight)
        if bias is not None:
            ours.bias.copy_(bias)


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    biases = [None] * 3 if theirs.in_proj_bias is None else theirs.in_proj_bias.chunk(3)
    for linear, weight, bias in zip(
        (ours.query, ours.key, ours.value), theirs.in_proj_weight.chunk(3), biases, strict=True
    ):
        copy_linear(linear, weight, bias)
    copy_linear(ours.output, theirs.out_proj.weight, theirs.out_proj.bias)


def copy_layer(ours: nn.Module, theirs: nn.Module) -> None:
    copy_linear(ours.feed_forward.inner, theirs.linear1.weight, theirs.linear1.bias)
    copy_linear(ours.feed_forward.outer, theirs.linear2.weight, theirs.linear2.bias)
    copy_attention(ours.self_attention, theirs.self_attn)
    norms = [ours.self_attention_residual.norm]
    if isinstance(ours, DecoderLayer):
        copy_attention(ours.cross_attention, theirs.multihead_attn)
        norms.append(ours.cross_attention_residual.norm)
    norms.append(ours.feed_forward_residual.norm)
    for index, norm in enumerate(norms, start=1):
        norm.load_state_dict(getattr(theirs, f"norm{index}").state_dict())


@pytest.fixture
def copy_weights() -> Callable[[nn.Module, nn.Module], None]:
    """Randomises the weights of a torch module and copies them into our module of the same kind."""

    def copy(ours: nn.Module, theirs: nn.Module) -> None:
        randomise(theirs)
        if isinstance(ours, MultiHeadAttention):
            copy_attention(ours, theirs)
        elif isinstance(ours, (EncoderLayer, DecoderLayer)):
            copy_layer(ours, theirs)
        else:
            for our_layer, their_layer in zip(ours.layers, theirs.layers, strict=True):
                copy_layer(our_layer, their_layer)
            if theirs.norm is not None:
                ours.final_norm.load_state_dict(theirs.norm.state_dict())

    return copy


@pytest.fixture
def real_tokens() -> Callable[[int, int], torch.Tensor]:
    """True at real tokens ``(B, S)``: row b lacks its last b tokens, but never its first."""

    def make(batch: int, length: int) -> torch.Tensor:
        lengths = (length - torch.arange(batch)).clamp(min=1)
        return torch.arange(length) < lengths[:, None]

    return make
