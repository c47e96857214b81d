"""What surrounds attention in a layer: the feed-forward network and the residual connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_transformer.nn.dropout import Dropout

Activation = Literal["relu", "gelu", "silu"]
Norm = Literal["post", "pre"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


def call_layer(layer: nn.Module, *inputs: Any, is_checkpointed: bool) -> Tensor:
    """The output of a layer; checkpointed, what it computes inside is not kept for gradients, but computed again.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
    """
    if is_checkpointed and layer.training and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)  # type: ignore[no-any-return]  # draws dropout alike
    return layer(*inputs)  # type: ignore[no-any-return]


class PositionwiseFeedForward(nn.Module):
    r"""Transforms each position by itself: :math:`\max(0, x W_1 + b_1) W_2 + b_2`.

    Source: Vaswani et al. 2017, section 3.3, equation 2.

    Args:
        d_model: Width of the token representations, in features.
        d_ff: Width of the inner layer, in features.
        activation: The function between the two layers; the paper has ``relu``.
        activation_dropout: Probability to drop an inner feature in training; the paper has none.

    Raises:
        ValueError: If ``activation`` is unknown.

    Example:
        >>> import torch
        >>> PositionwiseFeedForward(d_model=16, d_ff=64)(torch.randn(2, 5, 16)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self, d_model: int, d_ff: int, activation: Activation = "relu", activation_dropout: float = 0.0
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.inner = nn.Linear(d_model, d_ff)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = Dropout(activation_dropout)
        self.outer = nn.Linear(d_ff, d_model)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Transforms tokens ``(B, T, D)``, each alike and alone."""
        return self.outer(self.dropout(self.activation(self.inner(tokens))))  # type: ignore[no-any-return]


class ResidualNorm(nn.Module):
    r"""Wraps a sub-layer: adds its output to its input and normalises.

    The paper normalises the sum, ``norm="post"``: :math:`\mathrm{LayerNorm}(x + \mathrm{Sublayer}(x))`. With
    ``norm="pre"`` the sub-layer reads a normalised input and the sum stays as it is, which trains deep stacks
    without warm-up; such a stack needs one more norm at its end. Dropout acts on the sub-layer's output before
    it is added.

    Source: Vaswani et al. 2017, sections 3.1 and 5.4.

    Args:
        d_model: Width of the token representations, in features.
        dropout: Probability to drop a feature of the sub-layer's output in training.
        norm: Where the layer norm stands, ``"post"`` or ``"pre"``.

    Raises:
        ValueError: If ``norm`` is neither ``"post"`` nor ``"pre"``.

    Example:
        >>> import torch
        >>> residual = ResidualNorm(d_model=16, dropout=0.0)
        >>> tokens = torch.randn(2, 5, 16)
        >>> torch.equal(residual(tokens, torch.zeros_like), residual.norm(tokens))
        True
    """

    def __init__(self, d_model: int, dropout: float = 0.1, norm: Norm = "post") -> None:
        super().__init__()
        if norm not in ("post", "pre"):
            raise ValueError(f"norm must be 'post' or 'pre', got {norm!r}")
        self.is_pre_norm = norm == "pre"
        self.norm = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "B T D"], sublayer: Callable[[Tensor], Tensor]) -> Float[Tensor, "B T D"]:
        """Applies ``sublayer`` to tokens ``(B, T, D)`` inside the residual connection."""
        if self.is_pre_norm:
            return tokens + self.dropout(sublayer(self.norm(tokens)))  # type: ignore[no-any-return]
        return self.norm(tokens + self.dropout(sublayer(tokens)))  # type: ignore[no-any-return]
