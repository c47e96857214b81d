"""Attention: who looks at whom, and how keys and values are kept while decoding (section 3.2)."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_transformer.vocabulary import PAD_ID

_FILLS_VIEWS = ("cpu", "cuda")  # Apple's GPUs take no notice of the strides of a tensor that index_select shall fill


def padding_mask(ids: Int[Tensor, "B S"], pad_id: int = PAD_ID) -> Bool[Tensor, "B 1 1 S"]:
    """Allows every position to attend to real tokens only, whatever its head and its own place.

    Args:
        ids: Token ids ``(B, S)``.
        pad_id: The id that fills up short rows.

    Returns:
        ``(B, 1, 1, S)``, True where there is a real token.

    Example:
        >>> padding_mask(torch.tensor([[5, 6, 0]])).squeeze()
        tensor([ True,  True, False])
    """
    return (ids != pad_id)[:, None, None, :]


def causal_mask(length: int, device: torch.device | str | None = None) -> Bool[Tensor, "T T"]:
    """Allows position ``i`` to attend to positions up to ``i``, so that no token sees the future.

    Source: Vaswani et al. 2017, section 3.2.3.

    Args:
        length: Number of positions, in tokens.
        device: Where to make the mask.

    Returns:
        ``(T, T)``, row = the position that attends, True where it may look.

    Example:
        >>> causal_mask(3).int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


class MultiHeadAttention(nn.Module):
    r"""Lets each position gather information from others, in several learned ways at once.

    Every head compares its own projection of the queries with its own projection of the keys, and returns the
    average of the projected values under the weights
    :math:`\mathrm{softmax}(Q K^\top / \sqrt{d_k})`; ``output`` mixes the heads.

    To change the rule, override ``attend``, and ``attention_weights`` with it if the pictures are to follow.

    Source: Vaswani et al. 2017, section 3.2, equation 1.

    Args:
        d_model: Width of the token representations, in features.
        num_heads: Number of heads.
        d_k: Width of the queries and keys of one head, in features. Default ``d_model / num_heads``.
        d_v: Width of the values of one head, in features. Default ``d_model / num_heads``.
        bias: Whether the four projections add a bias.
        dropout: Probability to drop an attention weight in training. The paper has none; on a CPU anything above
            zero leaves torch's fused kernel and is several times slower.

    Raises:
        ValueError: If a size is below 1, ``dropout`` is not in [0, 1), or a head width is neither given nor
            ``d_model`` divisible by ``num_heads``.

    Example:
        >>> attention = MultiHeadAttention(d_model=16, num_heads=4)
        >>> tokens = torch.randn(2, 5, 16)
        >>> attention(tokens, tokens, tokens, is_causal=True).shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_k: int | None = None,
        d_v: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or d_model < 1:
            raise ValueError(f"d_model and num_heads must be at least 1, got {d_model} and {num_heads}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout of the attention weights must be in [0, 1), got {dropout}")
        self.num_heads = num_heads
        self.d_k = _head_width("d_k", d_k, d_model, num_heads)
        self.d_v = _head_width("d_v", d_v, d_model, num_heads)
        self.dropout = dropout
        self.query = nn.Linear(d_model, num_heads * self.d_k, bias=bias)
        self.key = nn.Linear(d_model, num_heads * self.d_k, bias=bias)
        self.value = nn.Linear(d_model, num_heads * self.d_v, bias=bias)
        self.output = nn.Linear(num_heads * self.d_v, d_model, bias=bias)

    def forward(
        self,
        query: Float[Tensor, "B T D"],
        key: Float[Tensor, "B S D"],
        value: Float[Tensor, "B S D"],
        mask: Bool[Tensor, "#B #H #T #S"] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """Answers the queries ``(B, T, D)`` from the keys and values ``(B, S, D)``.

        Args:
            query: The positions that look, ``(B, T, D)``.
            key: What they compare themselves with, ``(B, S, D)``.
            value: What they gather, ``(B, S, D)``.
            mask: True where a query may attend, broadcastable to ``(B, H, T, S)``; None allows everything.
            is_causal: Whether position ``i`` may only look at positions up to ``i``; needs ``T == S``.

        Returns:
            ``(B, T, D)``.
        """
        keys, values = self.keys_and_values(key, value)
        return self.read(query, keys, values, mask, is_causal)

    def keys_and_values(
        self, key: Float[Tensor, "B S D"], value: Float[Tensor, "B S D"]
    ) -> tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S Kv"]]:
        """Projects keys and values ``(B, S, D)`` once, for any number of later reads: ``(B, H, S, d_k or d_v)``."""
        return self._split_heads(self.key(key), self.d_k), self._split_heads(self.value(value), self.d_v)

    def read(
        self,
        query: Float[Tensor, "B T D"],
        keys: Float[Tensor, "B H S K"],
        values: Float[Tensor, "B H S Kv"],
        mask: Bool[Tensor, "#B #H #T #S"] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """Answers queries ``(B, T, D)`` from keys and values that are projected already."""
        heads = self.attend(self._split_heads(self.query(query), self.d_k), keys, values, mask, is_causal)
        return self.output(heads.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def attend(
        self,
        query: Float[Tensor, "B H T K"],
        key: Float[Tensor, "B H S K"],
        value: Float[Tensor, "B H S Kv"],
        mask: Bool[Tensor, "#B #H #T #S"] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "B H T Kv"]:
        """The attention rule itself, on projected heads: the seam for other rules.

        While decoding, queries are the last positions of the keys in self-attention; in attention over the
        source they may be several hypotheses of the same sentence.

        Args:
            query: ``(B, H, T, d_k)``.
            key: ``(B, H, S, d_k)``.
            value: ``(B, H, S, d_v)``.
            mask: True where a query may attend, broadcastable to ``(B, H, T, S)``; None allows everything.
            is_causal: Whether position ``i`` may only look at positions up to ``i``.

        Returns:
            ``(B, H, T, d_v)``.
        """
        if is_causal and mask is not None:  # not every torch kernel takes both at once
            mask, is_causal = mask & causal_mask(query.size(2), query.device), False
        dropout = self.dropout if self.training else 0.0
        if query.requires_grad and query.device.type == "cpu":
            return _attend_in_float32(query, key, value, mask, dropout, is_causal)
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal)

    def attention_weights(
        self,
        query: Float[Tensor, "B T D"],
        key: Float[Tensor, "B S D"],
        mask: Bool[Tensor, "#B #H #T #S"] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "B H T S"]:
        """The weights that ``forward`` uses without ever writing them down, before dropout, for a look inside.

        Args:
            query: The positions that look, ``(B, T, D)``.
            key: What they compare themselves with, ``(B, S, D)``.
            mask: As for ``forward``.
            is_causal: As for ``forward``.

        Returns:
            ``(B, H, T, S)``; the weights of each query sum to 1, forbidden keys have 0.
        """
        queries = self._split_heads(self.query(query), self.d_k)
        keys = self._split_heads(self.key(key), self.d_k)
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(self.d_k)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        if is_causal:
            scores = scores.masked_fill(~causal_mask(query.size(1), query.device), float("-inf"))
        return scores.softmax(dim=-1)

    def _split_heads(self, tokens: Float[Tensor, "B T HK"], width: int) -> Float[Tensor, "B H T K"]:
        return tokens.view(*tokens.shape[:2], self.num_heads, width).transpose(1, 2)

    def extra_repr(self) -> str:
        """What ``print`` shows besides the projections."""
        return f"num_heads={self.num_heads}, d_k={self.d_k}, d_v={self.d_v}, dropout={self.dropout}"


class KeyValueCache:
    """Keeps the keys and values of the positions decoded so far, so that each is projected once.

    It holds one row for each open hypothesis. Room is doubled when it runs out, so that a step writes its own
    position only. For decoding: it takes no part in gradients.

    Args:
        capacity: Positions to make room for at first, in tokens.

    Example:
        >>> cache = KeyValueCache()
        >>> for _ in range(3):
        ...     keys, values = cache.append(torch.zeros(2, 4, 1, 8), torch.zeros(2, 4, 1, 8))
        >>> keys.shape
        torch.Size([2, 4, 3, 8])
    """

    def __init__(self, capacity: int = 32) -> None:
        self.length = 0
        self._capacity = capacity
        self._buffers: list[Tensor] = []

    def append(
        self, keys: Float[Tensor, "R H T K"], values: Float[Tensor, "R H T Kv"]
    ) -> tuple[Float[Tensor, "R H L K"], Float[Tensor, "R H L Kv"]]:
        """Adds the keys ``(R, H, T, d_k)`` and values ``(R, H, T, d_v)`` of new positions; returns all so far."""
        start, end = self.length, self.length + keys.size(2)
        if not self._buffers or end > self._capacity:
            self._make_room(end, keys, values)
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, start:end] = new
        self.length = end
        all_keys, all_values = (buffer[:, :, :end] for buffer in self._buffers)
        return all_keys, all_values

    def select(self, rows: Int[Tensor, "R"]) -> None:
        """Makes the given rows the rows of the cache, in that order; repeats and drops are welcome."""
        self._buffers = [self._pick(buffer, rows) for buffer in self._buffers]

    def _make_room(self, end: int, *news: Tensor) -> None:
        old = [buffer[:, :, : self.length] for buffer in self._buffers]
        self._capacity = max(end, self._capacity, 2 * self.length)
        self._buffers = [new.new_empty(*new.shape[:2], self._capacity, new.size(3)) for new in news]
        for buffer, known in zip(self._buffers, old, strict=False):  # nothing is known at first
            buffer[:, :, : self.length] = known

    def _pick(self, buffer: Tensor, rows: Tensor) -> Tensor:
        picked = buffer.new_empty(rows.numel(), *buffer.shape[1:])
        known, kept = buffer[:, :, : self.length], picked[:, :, : self.length]
        if buffer.device.type in _FILLS_VIEWS:
            torch.index_select(known, 0, rows, out=kept)
        else:
            kept.copy_(known.index_select(0, rows))
        return picked


def _attend_in_float32(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> Tensor:
    """Attends in single precision at least: torch's gradient on CPUs takes four times as long in bfloat16.

    Kept for the gradient are the tensors in their own precision: half the memory for the same numbers. Only where it is
    another one, and nobody else decides what is kept, as activation checkpointing does: of several pairs of hooks torch
    heeds the innermost alone.
    """
    half, dtype = query.dtype, torch.promote_types(query.dtype, torch.float32)
    q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
    # compilation knows no such hooks, and would compile what stands around them only
    keeps_all = half == dtype or torch.compiler.is_compiling() or _has_saving_hooks()
    hooks = nullcontext() if keeps_all else _keeping_given((q, query), (k, key), (v, value))
    with torch.autocast(query.device.type, enabled=False), hooks:
        heads = F.scaled_dot_product_attention(q, k, v, *options)
    return heads.to(half)


def _keeping_given(*pairs: tuple[Tensor, Tensor]) -> AbstractContextManager[None]:
    """Keeps for the gradient, of pairs of a tensor in single and in its own precision, the latter."""
    dtype, half = (one.dtype for one in pairs[0])
    own = {full.data_ptr(): (full, given.detach()) for full, given in pairs}

    def keep(saved: Tensor) -> Tensor:
        full, given = own.get(saved.data_ptr(), (None, saved))
        if full is None or (full.shape, full.stride()) != (saved.shape, saved.stride()):
            return saved  # another view of it: some kernels put sentences and heads together
        return given

    def restore(kept: Tensor) -> Tensor:
        return kept.to(dtype) if kept.dtype == half else kept

    return torch.autograd.graph.saved_tensors_hooks(keep, restore)


def _has_saving_hooks() -> bool:
    """Whether somebody's ``saved_tensors_hooks`` are at work here."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _head_width(name: str, width: int | None, d_model: int, num_heads: int) -> int:
    if width is None:
        if d_model % num_heads:
            raise ValueError(f"d_model={d_model} is not divisible by num_heads={num_heads}; give {name} yourself")
        return d_model // num_heads
    if width < 1:
        raise ValueError(f"{name} must be at least 1, got {width}")
    return width
