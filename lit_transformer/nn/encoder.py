"""The encoder: layers that let every source token look at all others (section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from lit_transformer.nn.attention import MultiHeadAttention
from lit_transformer.nn.layers import Norm, ResidualNorm, call_layer


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network, each inside a residual connection.

    Source: Vaswani et al. 2017, section 3.1.

    Args:
        d_model: Width of the token representations, in features.
        self_attention: How source tokens look at each other.
        feed_forward: How each token is transformed, ``(B, S, D)`` to ``(B, S, D)``.
        dropout: Probability to drop a feature of a sub-layer's output in training.
        norm: ``"post"`` normalises after the residual sum, as in the paper, ``"pre"`` before the sub-layer.

    Example:
        >>> import torch
        >>> from lit_transformer.nn import PositionwiseFeedForward
        >>> layer = EncoderLayer(16, MultiHeadAttention(16, num_heads=2), PositionwiseFeedForward(16, d_ff=32))
        >>> layer(torch.randn(2, 5, 16)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        d_model: int,
        self_attention: MultiHeadAttention,
        feed_forward: nn.Module,
        dropout: float = 0.1,
        norm: Norm = "post",
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_residual = ResidualNorm(d_model, dropout, norm)
        self.feed_forward = feed_forward
        self.feed_forward_residual = ResidualNorm(d_model, dropout, norm)

    def forward(
        self, tokens: Float[Tensor, "B S D"], mask: Bool[Tensor, "B 1 1 S"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """Refines tokens ``(B, S, D)``; ``mask`` ``(B, 1, 1, S)`` is True at real tokens, None if all are."""
        tokens = self.self_attention_residual(tokens, lambda x: self.self_attention(x, x, x, mask=mask))
        return self.feed_forward_residual(tokens, self.feed_forward)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """A stack of encoder layers.

    Source: Vaswani et al. 2017, section 3.1.

    Args:
        layers: The layers, first to last.
        final_norm: Applied to the result of the last layer; pre-norm stacks need one, the paper's have none.

    Attributes:
        activation_checkpointing: Whether training keeps the output of each layer only; see
            :meth:`Transformer.checkpoint_activations`.

    Example:
        >>> import torch
        >>> from lit_transformer.nn import PositionwiseFeedForward
        >>> layer = EncoderLayer(16, MultiHeadAttention(16, num_heads=2), PositionwiseFeedForward(16, d_ff=32))
        >>> Encoder([layer])(torch.randn(2, 5, 16)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(self, layers: Iterable[nn.Module], final_norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm
        self.activation_checkpointing = False

    def forward(
        self, tokens: Float[Tensor, "B S D"], mask: Bool[Tensor, "B 1 1 S"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """Reads embedded source tokens ``(B, S, D)``; returns the memory ``(B, S, D)``.

        Args:
            tokens: The embedded source, ``(B, S, D)``.
            mask: ``(B, 1, 1, S)``, True at real tokens; None if all are.
        """
        for layer in self.layers:
            tokens = call_layer(layer, tokens, mask, is_checkpointed=self.activation_checkpointing)
        return tokens if self.final_norm is None else self.final_norm(tokens)
