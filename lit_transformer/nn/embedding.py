"""From ids to vectors: what a token is (section 3.4) and where it stands (section 3.5)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_transformer.vocabulary import PAD_ID


class ScaledEmbedding(nn.Embedding):
    r"""Turns token ids into learned vectors, multiplied by :math:`\sqrt{d_{model}}`.

    The factor lets one matrix serve as embedding and as output layer: small weights for the scores, vectors of
    the size of the position pattern for the input. Padding gets no gradient from here.

    Source: Vaswani et al. 2017, section 3.4.

    Args:
        vocab_size: Number of token ids.
        d_model: Width of the token representations, in features.
        scale: Whether to multiply; False gives a plain embedding.

    Example:
        >>> embedding = ScaledEmbedding(vocab_size=8, d_model=16)
        >>> vectors = embedding(torch.tensor([[5, 6]]))
        >>> torch.equal(vectors[0, 0], embedding.weight[5] * 4)
        True
    """

    def __init__(self, vocab_size: int, d_model: int, scale: bool = True) -> None:
        super().__init__(vocab_size, d_model, padding_idx=PAD_ID)
        self.factor = d_model**0.5 if scale else 1.0

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Looks up ids ``(B, T)``; returns ``(B, T, D)``."""
        vectors = super().forward(ids)
        return vectors if self.factor == 1.0 else vectors * self.factor


class SinusoidalPositions(nn.Module):
    r"""Adds a fixed wave pattern that tells the network where each token stands.

    Features :math:`2i` and :math:`2i+1` of position :math:`p` hold the sine and cosine of
    :math:`p / 10000^{2i / d_{model}}`. Nothing is learned, nothing is saved in checkpoints. The table grows
    with the sequences it meets; it is no buffer, because ranks whose tables differ in length could not
    synchronise their buffers.

    Source: Vaswani et al. 2017, section 3.5.

    Args:
        d_model: Width of the token representations, in features. Must be even.
        max_length: Longest sequence to accept, in tokens; None accepts any.

    Raises:
        ValueError: If ``d_model`` is odd, or a sequence runs past ``max_length``.

    Example:
        >>> positions = SinusoidalPositions(d_model=4)
        >>> positions(torch.zeros(1, 2, 4))[0, 0]
        tensor([0., 1., 0., 1.])
    """

    def __init__(self, d_model: int, max_length: int | None = None) -> None:
        super().__init__()
        if d_model % 2:
            raise ValueError(f"d_model must be even to pair sines with cosines, got {d_model}")
        self.d_model = d_model
        self.max_length = max_length
        self._table = torch.empty(0, d_model)

    def forward(self, tokens: Float[Tensor, "B T D"], start: int = 0) -> Float[Tensor, "B T D"]:
        """Shifts tokens ``(B, T, D)`` by the pattern of their positions, counted from ``start``."""
        end = start + tokens.size(1)
        _check_length(end, self.max_length)
        table = self._table
        if end > len(table) or table.device != tokens.device or table.dtype != tokens.dtype:
            table = self._table = self._waves(max(256, 2 * end), tokens)
        return tokens + table[start:end]

    @torch.inference_mode(False)  # a table made during validation serves training as well
    def _waves(self, length: int, like: Tensor) -> Float[Tensor, "L D"]:
        # double precision on the CPU: at position 1000 single precision is wrong in the fourth digit
        rates = 10_000.0 ** (-torch.arange(0, self.d_model, 2, dtype=torch.float64, device="cpu") / self.d_model)
        angles = torch.arange(length, dtype=torch.float64, device="cpu").unsqueeze(1) * rates
        waves = torch.stack((angles.sin(), angles.cos()), dim=-1)  # (length, d_model / 2, 2)
        return waves.flatten(1).to(device=like.device, dtype=like.dtype)


class LearnedPositions(nn.Module):
    """Adds a learned vector for each place in the sequence, the paper's alternative to the waves.

    Source: Vaswani et al. 2017, section 3.5 and row (E) of Table 3.

    Args:
        d_model: Width of the token representations, in features.
        max_length: Longest sequence the table covers, in tokens.

    Raises:
        ValueError: If ``max_length`` is below 1, or a sequence runs past it.

    Example:
        >>> positions = LearnedPositions(d_model=4, max_length=8)
        >>> shifted = positions(torch.zeros(1, 2, 4), start=3)
        >>> torch.equal(shifted[0], positions.table.weight[3:5])
        True
    """

    def __init__(self, d_model: int, max_length: int) -> None:
        super().__init__()
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.max_length = max_length
        self.table = nn.Embedding(max_length, d_model)

    def forward(self, tokens: Float[Tensor, "B T D"], start: int = 0) -> Float[Tensor, "B T D"]:
        """Shifts tokens ``(B, T, D)`` by the vectors of their positions, counted from ``start``."""
        end = start + tokens.size(1)
        _check_length(end, self.max_length)
        return tokens + self.table.weight[start:end]


def _check_length(end: int, max_length: int | None) -> None:
    if max_length is not None and end > max_length:
        raise ValueError(f"a sequence of {end} tokens is past max_length={max_length}; build with a larger one")
