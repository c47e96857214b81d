"""The layers of a prepared Transformer: those of the encoder and the decoder with packed weights and joint products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_transformer.nn.attention import MultiHeadAttention
from lit_transformer.nn.decoder import DecoderLayer, LayerMemory, TransformerState
from lit_transformer.nn.encoder import EncoderLayer
from lit_transformer.nn.layers import ResidualNorm
from lit_transformer.nn.obstacles import is_own_feed_forward
from lit_transformer.nn.products import Precision, Product


class _Residual:
    """A :class:`ResidualNorm` without dropout, around sub-layers that are products."""

    def __init__(self, module: ResidualNorm, dtype: torch.dtype) -> None:
        self.norm = prepared_norm(module.norm, dtype)
        self.is_pre_norm = module.is_pre_norm

    def __call__(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.is_pre_norm:
            return x + sublayer(self.norm(x))
        return self.norm(x + sublayer(x))


class PreparedEncoderLayer:
    """An :class:`EncoderLayer` with packed weights."""

    def __init__(self, layer: nn.Module, precision: Precision) -> None:
        assert isinstance(layer, EncoderLayer)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.attention, self.attend = layer.self_attention, _attend(layer.self_attention, dtype)
        self.query_key_value = _joint(layer.self_attention, precision)
        self.output = Product([layer.self_attention.output], precision)
        self.feed_forward = _feed_forward(layer.feed_forward, precision)
        self.attention_residual = _Residual(layer.self_attention_residual, dtype)
        self.feed_forward_residual = _Residual(layer.feed_forward_residual, dtype)

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Refines all positions ``(B, S, D)``; ``mask`` ``(B, 1, 1, S)`` is True at real tokens."""
        x = self.attention_residual(x, lambda x: self._look_around(x, mask))
        return self.feed_forward_residual(x, self.feed_forward)

    def _look_around(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, keys, values = _heads(self.query_key_value(x), self.attention)
        return self.output(self.attend(query, keys, values, mask).transpose(1, 2).flatten(2))


class PreparedDecoderLayer:
    """A :class:`DecoderLayer` with packed weights, one position at a time."""

    def __init__(self, layer: nn.Module, precision: Precision) -> None:
        assert isinstance(layer, DecoderLayer)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.self_attention, self.cross_attention = layer.self_attention, layer.cross_attention
        self.attend_back, self.attend_source = (
            _attend(part, dtype) for part in (layer.self_attention, layer.cross_attention)
        )
        self.sizes = (self.self_attention.num_heads, self.self_attention.d_k, self.self_attention.d_v)
        self.query_key_value = _joint(self.self_attention, precision)
        self.self_output = Product([self.self_attention.output], precision)
        self.cross_query = Product([self.cross_attention.query], precision)
        self.cross_key_value = Product([self.cross_attention.key, self.cross_attention.value], precision)
        self.cross_output = Product([self.cross_attention.output], precision)
        self.feed_forward = _feed_forward(layer.feed_forward, precision)
        self.self_residual = _Residual(layer.self_attention_residual, dtype)
        self.cross_residual = _Residual(layer.cross_attention_residual, dtype)
        self.feed_forward_residual = _Residual(layer.feed_forward_residual, dtype)

    def start(self, memory: Float[Tensor, "N S D"]) -> LayerMemory:
        """Projects the source's memory ``(N, S, D)`` once, for all steps to come."""
        attention = self.cross_attention
        num_heads = attention.num_heads
        both = torch.split(self.cross_key_value(memory), [num_heads * attention.d_k, num_heads * attention.d_v], dim=-1)
        keys, values = (split_heads(part, num_heads).transpose(1, 2) for part in both)
        return LayerMemory(keys, values)

    def step(
        self, x: Tensor, memory: LayerMemory, newest: Tensor, keys: Tensor, values: Tensor, state: TransformerState
    ) -> Tensor:
        """Refines the newest position ``(R, D)``; see ``PastTokens.next`` for what is written and read."""

        def look_back(x: Tensor) -> Tensor:
            num_heads, d_k, _ = self.sizes
            query, key_value = torch.split_with_sizes(self.query_key_value(x), (num_heads * d_k, newest.size(1)), 1)
            newest.copy_(key_value)
            heads = self.attend_back(query.view(-1, num_heads, 1, d_k), keys, values)
            return self.self_output(heads.flatten(1))

        def look_at_source(x: Tensor) -> Tensor:
            rows, num_heads, query = state.rows, self.cross_attention.num_heads, self.cross_query(x)
            if not rows.is_full_grid:
                query = rows.fold(query.unsqueeze(1))
            query = query.view(rows.num_sentences, rows.width, num_heads, -1).transpose(1, 2)
            heads = self.attend_source(query, memory.keys, memory.values, state.mask).transpose(1, 2)
            if rows.is_full_grid:
                return self.cross_output(heads.reshape(len(x), -1))
            return self.cross_output(rows.unfold(heads.flatten(2)).squeeze(1))

        x = self.self_residual(x, look_back)
        x = self.cross_residual(x, look_at_source)
        return self.feed_forward_residual(x, self.feed_forward)


def _joint(attention: MultiHeadAttention, precision: Precision) -> Product:
    return Product([attention.query, attention.key, attention.value], precision)


def _heads(joint: Tensor, attention: MultiHeadAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``(B, H, T, d_k or d_v)`` from their joint projection ``(B, T, ...)``."""
    widths = [attention.num_heads * width for width in (attention.d_k, attention.d_k, attention.d_v)]
    parts = torch.split(joint, widths, dim=-1)
    query, keys, values = (split_heads(part, attention.num_heads).transpose(1, 2) for part in parts)
    return query, keys, values


def split_heads(features: Tensor, num_heads: int) -> Tensor:
    """Features ``(..., H * K)`` as ``(..., H, K)``."""
    return features.view(*features.shape[:-1], num_heads, -1)


def _feed_forward(module: nn.Module, precision: Precision) -> Callable[[Tensor], Tensor]:
    """The feed-forward sub-layer as two products, or as it is where it is somebody's own."""
    if not is_own_feed_forward(module) or module.inner.bias is None:
        return _as_it_is(module)
    is_relu = type(module.activation) is nn.ReLU
    inner = Product([module.inner], precision, relu=is_relu)
    outer = Product([module.outer], precision)
    return (lambda x: outer(inner(x))) if is_relu else (lambda x: outer(module.activation(inner(x))))


def prepared_norm(module: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A norm in another precision, or as it is where it is somebody's own."""
    if type(module) is not nn.LayerNorm or "forward" in vars(module):
        return _as_it_is(module)
    weight, bias = (None if p is None else p.detach().to(dtype) for p in (module.weight, module.bias))
    shape, eps = list(module.normalized_shape), module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _as_it_is(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Somebody's own module, given what the plain network gives it: ``(B, T, D)`` in the precision of its weights."""
    own = _dtype_of(module)
    return lambda x: module(x.to(own).unsqueeze(1) if x.dim() == 2 else x.to(own)).reshape(x.shape).to(x.dtype)


def _attend(attention: MultiHeadAttention, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The attention rule; one that somebody wrote gets the precision of its weights."""
    own = _dtype_of(attention)
    is_plain = "attend" not in vars(attention) and type(attention).attend is MultiHeadAttention.attend
    if dtype is own or is_plain:
        return attention.attend

    def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        return attention.attend(query.to(own), keys.to(own), values.to(own), mask).to(dtype)

    return attend


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in module.parameters()), torch.float32)
