"""What a network may not have changed if its decoding is to be prepared or compiled."""

from __future__ import annotations

from typing import TypeGuard

from torch import nn

from lit_transformer.nn.attention import MultiHeadAttention
from lit_transformer.nn.decoder import Decoder, DecoderLayer
from lit_transformer.nn.dropout import is_dropout
from lit_transformer.nn.encoder import Encoder, EncoderLayer
from lit_transformer.nn.layers import PositionwiseFeedForward, ResidualNorm
from lit_transformer.nn.own import is_own
from lit_transformer.nn.products import Precision
from lit_transformer.nn.transformer import Transformer

# What is done differently there; who overrides one of these must get what they wrote.
_REPLACED: dict[type[nn.Module], tuple[str, ...]] = {
    Transformer: ("start", "step", "encode", "project", "_encode", "_embed_target", "_source_mask"),
    Encoder: ("forward",),
    EncoderLayer: ("forward",),
    Decoder: ("start", "step", "_finish"),
    DecoderLayer: ("start", "step"),
    MultiHeadAttention: ("forward", "keys_and_values", "read", "_split_heads"),
    ResidualNorm: ("forward",),
}
_PARTS = (("_attention", MultiHeadAttention), ("_residual", ResidualNorm))
ACTIVATION_KINDS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.GELU, nn.SiLU)  # in the order of decoder_step.c


def obstacle(network: nn.Module) -> str | None:
    """Why a network cannot be prepared, in a few words; None if it can.

    Parts may be replaced where :class:`PreparedTransformer` says so. Elsewhere it would be wrong to leave out what
    somebody has overridden or hooked on.
    """
    if not isinstance(network, Transformer):
        return f"{type(network).__name__} is not a Transformer"
    if network.training:
        return "it is in training mode"
    if any(parameter.device.type != "cpu" for parameter in network.parameters()):
        return "it is not on the CPU"
    known: list[tuple[nn.Module, type[nn.Module]]]
    known = [(network, Transformer), (network.encoder, Encoder), (network.decoder, Decoder)]
    known += [(layer, EncoderLayer) for layer in network.encoder.layers]
    known += [(layer, DecoderLayer) for layer in network.decoder.layers]
    for layer in (*network.encoder.layers, *network.decoder.layers):
        known += [(part, kind) for name, part in layer.named_children() for end, kind in _PARTS if name.endswith(end)]
    projections = ("query", "key", "value", "output")
    attentions = [module for module, kind in known if kind is MultiHeadAttention]
    known += [(getattr(attention, name), nn.Linear) for attention in attentions for name in projections]
    known.append((network.projection, nn.Linear))
    for module, kind in known:
        if not is_own(module, kind, _REPLACED.get(kind, ("forward",))):
            return f"{type(module).__name__} is not the package's own {kind.__name__}"
    dropouts = [module.dropout for module, kind in known if kind is ResidualNorm]
    for dropout in (network.embedding_dropout, *dropouts):
        if not isinstance(dropout, nn.Module) or not is_dropout(dropout):
            return f"{type(dropout).__name__} stands in the place of a Dropout"
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        return "it has forward hooks"
    return None


def is_own_feed_forward(module: nn.Module) -> TypeGuard[PositionwiseFeedForward]:
    """Whether a feed-forward sub-layer is two linear layers around an activation function that the package has."""
    return (
        type(module) is PositionwiseFeedForward
        and is_own(module, PositionwiseFeedForward)
        and is_own(module.inner, nn.Linear)
        and is_own(module.outer, nn.Linear)
        and type(module.activation) in ACTIVATION_KINDS
        and is_dropout(module.dropout)
    )


def compile_obstacle(network: nn.Module, precision: Precision) -> str | None:
    """Why a network that can be prepared cannot be compiled, in a few words; None if it can."""
    if precision == "bf16":
        return "compiled steps are float32 or int8, not bf16"
    assert isinstance(network, Transformer)
    layers, projection = decoder_layers(network), network.projection
    if (projection.in_features, projection.out_features) != (network.d_model, network.vocab_size):
        return f"its output layer is not of d_model={network.d_model} by vocab_size={network.vocab_size}"
    for layer in layers:
        for attention in (layer.self_attention, layer.cross_attention):
            if "attend" in vars(attention) or type(attention).attend is not MultiHeadAttention.attend:
                return f"{type(attention).__name__} has an attention rule of its own"
        forward = layer.feed_forward
        if not is_own_feed_forward(forward) or not _is_exact(forward.activation):
            return f"{type(forward).__name__} is not as the package builds it"
    norms = [residual.norm for layer in layers for residual in residuals(layer)]
    for norm in (*norms, network.decoder.final_norm):
        if norm is not None and type(norm) is not nn.LayerNorm:
            return f"{type(norm).__name__} is not LayerNorm"
    places = {residual.is_pre_norm for layer in layers for residual in residuals(layer)}
    kinds = {(sizes_of(layer), type(own_feed_forward(layer).activation)) for layer in layers}
    heads = {(part.num_heads, part.d_k, part.d_v) for n in layers for part in (n.self_attention, n.cross_attention)}
    return "its decoder layers are not all alike" if max(len(places), len(kinds), len(heads)) > 1 else None


def _is_exact(activation: nn.Module) -> bool:
    return not isinstance(activation, nn.GELU) or activation.approximate == "none"


def decoder_layers(network: Transformer) -> list[DecoderLayer]:
    """The decoder's layers, by the type that they have."""
    return [layer for layer in network.decoder.layers if isinstance(layer, DecoderLayer)]


def own_feed_forward(layer: DecoderLayer) -> PositionwiseFeedForward:
    """The feed-forward sub-layer of a layer that can be compiled."""
    assert isinstance(layer.feed_forward, PositionwiseFeedForward)
    return layer.feed_forward


def residuals(layer: DecoderLayer) -> tuple[ResidualNorm, ResidualNorm, ResidualNorm]:
    """What surrounds the three sub-layers."""
    return layer.self_attention_residual, layer.cross_attention_residual, layer.feed_forward_residual


def sizes_of(layer: DecoderLayer) -> tuple[int, ...]:
    """``d_model``, ``d_ff``, ``num_heads``, ``d_k``, ``d_v`` and whether it normalises first."""
    attention, inner = layer.self_attention, own_feed_forward(layer).inner
    is_pre_norm = layer.self_attention_residual.is_pre_norm
    return inner.in_features, inner.out_features, attention.num_heads, attention.d_k, attention.d_v, is_pre_norm
