"""The Transformer in training on a CPU: the same network, computed on real tokens only and with fused steps.

The plain modules are the reference that this file is tested against; everything else goes through them. What is done
differently here: tokens of all sentences stand in one row without padding, ``(N, D)``, except where attention compares
them, and the steps of a layer are those of :mod:`lit_transformer.nn.fused`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_transformer.kernels import has_fast_bfloat16, rounded
from lit_transformer.nn.attention import MultiHeadAttention, padding_mask
from lit_transformer.nn.decoder import Decoder, DecoderLayer
from lit_transformer.nn.dropout import Dropout, can_draw, is_dropout, keep_or_drop
from lit_transformer.nn.encoder import Encoder, EncoderLayer
from lit_transformer.nn.fused import Origin, add_norm, collect, feed_forward, linears, spread, take_rows
from lit_transformer.nn.layers import ACTIVATIONS, PositionwiseFeedForward, ResidualNorm
from lit_transformer.nn.own import is_own
from lit_transformer.nn.transformer import Transformer
from lit_transformer.vocabulary import PAD_ID

# What is done differently here; who overrides one of these must get what they wrote.
_REPLACED: dict[type[nn.Module], tuple[str, ...]] = {
    Transformer: ("features", "_encode", "_embed_target", "_source_mask"),
    Encoder: ("forward",),
    EncoderLayer: ("forward",),
    Decoder: ("forward", "_finish"),
    DecoderLayer: ("forward",),
    MultiHeadAttention: ("forward", "keys_and_values", "read", "_split_heads"),
    ResidualNorm: ("forward",),
    PositionwiseFeedForward: ("forward",),
    nn.LayerNorm: ("forward",),
    nn.Linear: ("forward",),
    Dropout: ("forward",),
}


def packed_features(
    network: Transformer, src: Int[Tensor, "B S"], tgt_input: Int[Tensor, "B T"], real: Bool[Tensor, "B T"]
) -> Float[Tensor, "N D"]:
    """``network.features(src, tgt_input)[real]`` without work on padding, for networks that :func:`can_pack` allows.

    There must be at least one token on each side.

    Args:
        network: The network; dropout is drawn where its modules are in training mode.
        src: Source ids ``(B, S)``, padded on the right.
        tgt_input: Target ids ``(B, T)`` from BOS on, padded on the right.
        real: Which target positions are wanted, ``(B, T)``: in each row the first few.

    Returns:
        The features of the wanted positions, sentence by sentence, ``(N, D)``.

    Example:
        >>> network = Transformer(vocab_size=32, num_layers=1, d_model=16, d_ff=32, num_heads=2).eval()
        >>> src, tgt_input = torch.tensor([[5, 6, 3], [7, 3, 0]]), torch.tensor([[2, 8], [2, 0]])
        >>> features = packed_features(network, src, tgt_input, tgt_input != 0)
        >>> torch.allclose(features, network.features(src, tgt_input)[tgt_input != 0], atol=1e-5)
        True
    """
    src_places, tgt_places = _Places(src != PAD_ID), _Places(real)
    mask = None if src_places.are_all_real else padding_mask(src)
    source = src_places.collect(network.src_positions(network.src_embedding(src), 0))
    target = tgt_places.collect(network.tgt_positions(network.tgt_embedding(tgt_input), 0))
    encoder_layers: list[Any] = list(network.encoder.layers)
    decoder_layers: list[Any] = list(network.decoder.layers)
    encoder = _Stack(network.encoder, network.embedding_dropout(source), src_places)
    for layer in encoder_layers:
        encoder.look_at_itself(layer.self_attention, mask)
        encoder.add(_fed_forward(encoder, layer.feed_forward))
    decoder = _Stack(network.decoder, network.embedding_dropout(target), tgt_places)
    across = [layer.cross_attention for layer in decoder_layers]
    projections = [linear for one in across for linear in (one.key, one.value)]
    keys_and_values = list(linears(encoder.read, projections[::-1], encoder.origin))  # used up from its end
    for layer in decoder_layers:
        decoder.look_at_itself(layer.self_attention, is_causal=True)
        decoder.look_at_source(layer.cross_attention, keys_and_values.pop(), keys_and_values.pop(), src_places, mask)
        decoder.add(_fed_forward(decoder, layer.feed_forward))
    return decoder.normed[: tgt_places.num_tokens]


class _Places:
    """Where tokens, which stand in one row, belong in the rectangle of their batch.

    The number of rows is rounded up for the products. Rows after the last token are nobody's and get no gradient.
    """

    def __init__(self, real: Tensor) -> None:
        flat = real.flatten()
        self.shape = real.shape
        self.real = flat.nonzero().squeeze(1)  # the place of each token
        self.num_tokens = len(self.real)
        self.num_rows = rounded(self.num_tokens)
        self.are_all_real = self.num_tokens == len(flat)
        self.are_rows = self.are_all_real and self.num_rows == len(flat)  # nothing to move
        self.source = flat.cumsum(0).sub_(1).clamp_(min=0)  # the token at each place, some other one at padding

    def collect(self, features: Tensor) -> Tensor:
        """``(B, T, D)`` to ``(N, D)``."""
        places = features.flatten(0, 1)
        return places if self.are_rows else collect(places, self.real, self.num_rows)

    def origin(self, features: Tensor) -> Origin | None:
        """What :meth:`collect` makes rows from."""
        make = partial(take_rows, real=self.real, num_rows=self.num_rows)
        return None if self.are_rows else Origin(features.flatten(0, 1), make)

    def heads(self, rows: Tensor, num_heads: int) -> Tensor:
        """``(N, HK)`` to ``(B, H, T, K)``."""
        places = rows if self.are_rows else spread(rows, self.source, self.real)
        return places.view(*self.shape, num_heads, -1).transpose(1, 2)


class _Stack:
    """The tokens on their way through a stack of layers.

    ``total`` is what residual connections add to, ``read`` what the next sub-layer reads, in its precision, and
    ``normed`` the result of the last layer norm; ``origin`` says what ``read`` is made from.
    """

    def __init__(self, stack: Encoder | Decoder, tokens: Tensor, places: _Places) -> None:
        residuals = list(_residuals(stack))
        self._dropouts = (residual.dropout for residual in residuals)
        self._is_pre_norm = residuals[0].is_pre_norm
        norms = [residual.norm for residual in residuals]
        if self._is_pre_norm:
            norms.append(cast(nn.LayerNorm, stack.final_norm))
        self._norms = iter(norms)
        self._places = places
        self._dtype = _compute_dtype(tokens)
        self.total = tokens
        self.normed = next(self._norms)(tokens) if self._is_pre_norm else tokens
        self.read = self.normed.to(self._dtype)
        self.origin: Origin | None = None

    def add(self, features: Tensor) -> None:
        """Ends a sub-layer with its output ``(N, D)``: dropout, the residual sum and the next layer norm."""
        dropout, norm = next(self._dropouts), next(self._norms)
        drawn = keep_or_drop(features.shape, dropout.p) if dropout.training and can_draw(dropout.p) else ()
        total, self.normed = add_norm(self.total, features, norm, *drawn)
        self.origin = Origin(total, partial(_normed, norm, self._dtype))
        self.total = total if self._is_pre_norm else self.normed
        self.read = self.normed.to(self._dtype)

    def look_at_itself(
        self, attention: MultiHeadAttention, mask: Tensor | None = None, is_causal: bool = False
    ) -> None:
        """Self-attention, with the end of the sub-layer."""
        projections = linears(self.read, [attention.query, attention.key, attention.value], self.origin)
        query, key, value = (self._places.heads(rows, attention.num_heads) for rows in projections)
        self._finish(attention, attention.attend(query, key, value, mask, is_causal))

    def look_at_source(
        self, attention: MultiHeadAttention, keys: Tensor, values: Tensor, source: _Places, mask: Tensor | None
    ) -> None:
        """Attention over keys and values of the source, with the end of the sub-layer."""
        (projection,) = linears(self.read, [attention.query], self.origin)
        query = self._places.heads(projection, attention.num_heads)
        key, value = (source.heads(rows, attention.num_heads) for rows in (keys, values))
        self._finish(attention, attention.attend(query, key, value, mask))

    def _finish(self, attention: MultiHeadAttention, heads: Tensor) -> None:
        features = heads.transpose(1, 2).flatten(2)
        # attention keeps its own result, which in single precision is this one
        origin = self._places.origin(features) if features.dtype == self.total.dtype else None
        self.add(*linears(self._places.collect(features), [attention.output], origin))


def _fed_forward(stack: _Stack, network: PositionwiseFeedForward) -> Tensor:
    drops = network.dropout.training and network.dropout.p > 0
    if type(network.activation) is nn.ReLU and not drops:
        return feed_forward(stack.read, network.inner, network.outer, stack.origin)
    hidden = network.dropout(network.activation(*linears(stack.read, [network.inner], stack.origin)))
    return linears(hidden, [network.outer])[0]


def _normed(norm: nn.LayerNorm, dtype: torch.dtype, total: Tensor) -> Tensor:
    return F.layer_norm(total, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(dtype)


def _compute_dtype(tokens: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else tokens.dtype


def _residuals(stack: Encoder | Decoder) -> Iterator[ResidualNorm]:
    for layer in stack.layers:
        yield from (part for part in layer.children() if isinstance(part, ResidualNorm))


def can_pack(network: nn.Module) -> TypeGuard[Transformer]:
    """Whether :func:`packed_features` gives what the network itself gives: on a CPU, with all parts our own.

    ``MultiHeadAttention.attend``, embeddings and positions may be somebody's own; they are used as they are.
    """
    if not isinstance(network, Transformer) or torch.compiler.is_compiling():
        return False
    if not isinstance(network.projection, nn.Linear):
        return False
    weight = network.projection.weight
    dtype = _compute_dtype(weight)
    is_exact = dtype == weight.dtype and dtype in (torch.float32, torch.float64)
    is_half = dtype == torch.bfloat16 and weight.dtype == torch.float32 and has_fast_bfloat16()
    if weight.device.type != "cpu" or not (is_exact or is_half):
        return False
    if not is_dropout(network.embedding_dropout):  # another one may not take tokens in one row
        return False
    return all(map(_is_our_own, network.modules())) and all(
        _is_usual(stack, kind) for stack, kind in ((network.encoder, EncoderLayer), (network.decoder, DecoderLayer))
    )


def _is_our_own(module: nn.Module) -> bool:
    """Whether nobody overrode what is done differently here, or hooked on to the module."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    if module._compiled_call_impl is not None:
        return False
    return all(is_own(module, kind, names) for kind, names in _REPLACED.items() if isinstance(module, kind))


def _is_usual(stack: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a stack has the parts that the package gives it, all normalised in the same place."""
    if not isinstance(stack, (Encoder, Decoder)) or stack.activation_checkpointing:
        return False
    if not all(isinstance(layer, kind) for layer in stack.layers):
        return False
    residuals = list(_residuals(stack))
    norms: list[nn.Module | None] = [residual.norm for residual in residuals]
    if residuals and residuals[0].is_pre_norm:
        norms.append(stack.final_norm)
    elif stack.final_norm is not None:
        return False
    return (
        len(residuals) == len(stack.layers) * (2 if kind is EncoderLayer else 3)
        and len({residual.is_pre_norm for residual in residuals}) == 1
        and all(isinstance(norm, nn.LayerNorm) and norm.bias is not None for norm in norms)
        and all(isinstance(residual.dropout, Dropout) and residual.dropout.p < 1 - 2**-16 for residual in residuals)
        and all(_is_usual_layer(layer) for layer in stack.layers)
    )


def _is_usual_layer(layer: nn.Module) -> bool:
    attentions = [layer.self_attention, *([layer.cross_attention] if isinstance(layer, DecoderLayer) else [])]
    network = layer.feed_forward
    if not isinstance(network, PositionwiseFeedForward):
        return False
    parts = [part for one in attentions if isinstance(one, MultiHeadAttention) for part in one.children()]
    return (
        len(parts) == 4 * len(attentions)
        and all(isinstance(part, nn.Linear) for part in (*parts, network.inner, network.outer))
        and network.inner.bias is not None
        and network.outer.bias is not None
        and type(network.activation) in ACTIVATIONS.values()
        and is_dropout(network.dropout)
    )
