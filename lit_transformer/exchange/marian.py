"""Our network as Hugging Face's Marian or Pegasus and back: configuration and weights, as plain data.

Marian is the paper's network too, and Pegasus is Marian with ``norm="pre"``. Both order the waves of the positions in
another way: all sines, then all cosines, where ours alternate. So the features are put into the other order everywhere,
which changes no result, and their own table of positions fits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_transformer.exchange.shared import own_transformer
from lit_transformer.interfaces import InputError, TranslationNetwork
from lit_transformer.nn import Transformer
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID

MAX_POSITIONS = 1024  # of Marian's table, for a network of ours that sets no bound

_MODELS = {  # of transformers, by our ``norm``: type and class
    "post": ("marian", "MarianMTModel"),
    "pre": ("pegasus", "PegasusForConditionalGeneration"),
}

SHARED = "model.shared.weight"
_SAME_AS_SHARED = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
OUTPUT_BIAS = "final_logits_bias"
TABLES = (SHARED, *_SAME_AS_SHARED)
_POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
_OUR_TABLES = ("src_embedding.weight", "tgt_embedding.weight", "projection.weight")

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu"}  # theirs: ours

_DEFAULTS = {  # of MarianConfig, for arguments of the same name
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "scale_embedding": False,
}

# ours, theirs, and which axis of weight and bias are the features that change their order; None: none does
_PARTS: dict[str, tuple[str, int | None, int | None]] = {
    "self_attention.query": ("self_attn.q_proj", 1, None),
    "self_attention.key": ("self_attn.k_proj", 1, None),
    "self_attention.value": ("self_attn.v_proj", 1, None),
    "self_attention.output": ("self_attn.out_proj", 0, 0),
    "self_attention_residual.norm": ("self_attn_layer_norm", 0, 0),
    "cross_attention.query": ("encoder_attn.q_proj", 1, None),
    "cross_attention.key": ("encoder_attn.k_proj", 1, None),
    "cross_attention.value": ("encoder_attn.v_proj", 1, None),
    "cross_attention.output": ("encoder_attn.out_proj", 0, 0),
    "cross_attention_residual.norm": ("encoder_attn_layer_norm", 0, 0),
    "feed_forward.inner": ("fc1", 1, None),
    "feed_forward.outer": ("fc2", 0, 0),
    "feed_forward_residual.norm": ("final_layer_norm", 0, 0),
}


def marian_config(network: TranslationNetwork) -> dict[str, Any]:
    """The arguments of ``MarianConfig``, or of ``PegasusConfig`` for a pre-norm network, that describe a network.

    Args:
        network: A ``Transformer``, with any sizes, layers, heads and activation.

    Raises:
        InputError: If neither has such a network; the message names the argument.
    """
    model_type, model_class = _MODELS[network.norm] if isinstance(network, Transformer) else _MODELS["post"]
    network = own_transformer(network, model_type.capitalize())
    obstacle = _obstacle(network)
    if obstacle is not None:
        raise InputError(f"this network cannot become a {model_type.capitalize()} model: {obstacle}")
    return {
        "architectures": [model_class],
        "model_type": model_type,
        "vocab_size": network.vocab_size,
        "decoder_vocab_size": network.vocab_size,
        "d_model": network.d_model,
        "encoder_layers": network.num_layers,
        "decoder_layers": network.num_decoder_layers,
        "encoder_ffn_dim": network.d_ff,
        "decoder_ffn_dim": network.d_ff,
        "encoder_attention_heads": network.num_heads,
        "decoder_attention_heads": network.num_heads,
        "activation_function": network.activation,
        "dropout": network.dropout,
        "attention_dropout": network.attention_dropout,
        "activation_dropout": network.activation_dropout,
        "scale_embedding": network.scale_embedding,
        "max_position_embeddings": network.max_length or MAX_POSITIONS,
        "static_position_embeddings": True,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "init_std": network.d_model**-0.5,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": BOS_ID,
    }


def _obstacle(network: Transformer) -> str | None:
    """What does not fit, beginning with the argument that asks for it; None if there is nothing."""
    if network.positions != "sinusoidal":
        return f"positions={network.positions!r}, but it computes sinusoidal ones and saves no others"
    if network.tie != "all":
        return f"tie={network.tie!r}, but the export needs one matrix for both embeddings and the output ('all')"
    return None


def to_marian(network: Transformer) -> dict[str, Tensor]:
    """The weights of a network under Marian's names and in Marian's order of features; missing biases are zeros."""
    ours = network.state_dict()
    order = _sines_first(network.d_model)
    bias = ours.get("projection.bias", torch.zeros(network.vocab_size))
    theirs = {SHARED: ours["tgt_embedding.weight"][:, order], OUTPUT_BIAS: bias.unsqueeze(0)}
    for name, (their_name, axis) in _layer_weights(network).items():
        tensor = ours.get(name)
        if tensor is None:  # bias=False
            tensor = torch.zeros(len(ours[name.removesuffix("bias") + "weight"]))
        theirs[their_name] = tensor if axis is None else tensor.index_select(axis, order)
    if network.norm == "pre":  # Pegasus would give notice of tables that it has to make
        waves = network.src_positions(torch.zeros(1, network.max_length or MAX_POSITIONS, network.d_model))[0]
        theirs |= dict.fromkeys(_POSITIONS, waves[:, order])
    return {name: tensor.contiguous().clone() for name, tensor in theirs.items()}


def from_marian(config: dict[str, Any], weights: dict[str, Tensor]) -> Transformer:
    """The network that a Marian or Pegasus folder describes.

    Args:
        config: What stands in its ``config.json``.
        weights: Its tensors by their names there.

    Raises:
        InputError: If it computes something that our network does not, or weights are missing or of other shapes.
    """
    bias = weights.get(OUTPUT_BIAS)
    has_bias = bias is not None and bool(bias.count_nonzero())
    network = Transformer(**_arguments(config), src_vocab_size=config.get("src_vocab_size"), output_bias=has_bias)
    tables = [weights[name] for name in TABLES if name in weights]
    if not tables:
        raise InputError(f"there is no tensor {SHARED} among the weights")
    if any(not torch.equal(tables[0], table) for table in tables):
        raise InputError("the embeddings and the output layer have different weights, so they are not one matrix")
    order = _sines_first(network.d_model)
    _check_positions(network, weights, order)
    back = order.argsort()
    ours = dict.fromkeys(_OUR_TABLES, _in_order(tables[0], 1, back))
    if bias is not None and has_bias:
        ours["projection.bias"] = bias.flatten()
    for name, (their_name, axis) in _layer_weights(network).items():
        if their_name not in weights:
            raise InputError(f"there is no tensor {their_name} among the weights")
        ours[name] = _in_order(weights[their_name], axis, back)
    try:
        network.load_state_dict(ours)
    except RuntimeError as error:  # many lines, the last the most particular
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"the weights do not fit the configuration: {reason}") from None
    return network


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of our network."""
    norms = {model_type: norm for norm, (model_type, _) in _MODELS.items()}
    norm = norms.get(str(config.get("model_type")))
    if norm is None:
        raise InputError(f"model_type is {config.get('model_type')!r}, but only {' and '.join(norms)} can be read")
    wanted: dict[str, Any] = {"pad_token_id": PAD_ID, "eos_token_id": EOS_ID, "decoder_start_token_id": BOS_ID}
    wanted |= {"share_encoder_decoder_embeddings": True, "tie_word_embeddings": True}
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise InputError(f"{name} is {config[name]!r}, but our networks need {value!r}")
    for ours, name in (("d_ff", "ffn_dim"), ("num_heads", "attention_heads")):
        pair = [_value(config, f"{side}_{name}") for side in ("encoder", "decoder")]
        if pair[0] != pair[1]:
            raise InputError(
                f"encoder_{name} is {pair[0]} and decoder_{name} {pair[1]}, but our {ours} is one for both"
            )
    activation = _value(config, "activation_function")
    if activation not in _ACTIVATIONS:
        raise InputError(f"activation_function is {activation!r}, but ours is one of {', '.join(_ACTIVATIONS)}")
    names = {
        "vocab_size": "vocab_size",
        "num_layers": "encoder_layers",
        "num_decoder_layers": "decoder_layers",
        "d_model": "d_model",
        "d_ff": "encoder_ffn_dim",
        "num_heads": "encoder_attention_heads",
        "max_length": "max_position_embeddings",
    }
    arguments = {ours: _value(config, theirs) for ours, theirs in names.items()}
    arguments |= {name: config.get(name, default) for name, default in _DEFAULTS.items()}
    return arguments | {"activation": _ACTIVATIONS[activation], "norm": norm}


def _value(config: dict[str, Any], name: str) -> Any:
    try:
        return config[name]
    except KeyError:
        raise InputError(f"the configuration has no {name}") from None


def _check_positions(network: Transformer, weights: dict[str, Tensor], order: Tensor) -> None:
    """Refuses tables of positions, where they are stored at all, that are not the waves."""
    for name in _POSITIONS:
        if name in weights:
            waves = network.src_positions(torch.zeros(1, len(weights[name]), network.d_model))[0]
            if weights[name].shape != waves.shape or not torch.allclose(weights[name], waves[:, order], atol=1e-4):
                raise InputError(f"{name} holds no sinusoidal waves, and other stored positions cannot be read")


def _layer_weights(network: Transformer) -> dict[str, tuple[str, int | None]]:
    """For our name of each weight and bias in encoder and decoder, Marian's name and the axis of the features."""
    found: dict[str, tuple[str, int | None]] = {}
    for stack in ("encoder", "decoder"):
        if network.norm == "pre":
            for kind in ("weight", "bias"):
                found[f"{stack}.final_norm.{kind}"] = (f"model.{stack}.layer_norm.{kind}", 0)
        for index, layer in enumerate(getattr(network, stack).layers):
            parts = {name for name, _ in layer.named_modules()} & _PARTS.keys()
            for part in sorted(parts):
                their_part, weight_axis, bias_axis = _PARTS[part]
                ours, theirs = f"{stack}.layers.{index}.{part}", f"model.{stack}.layers.{index}.{their_part}"
                found[f"{ours}.weight"] = (f"{theirs}.weight", weight_axis)
                found[f"{ours}.bias"] = (f"{theirs}.bias", bias_axis)
    return found


def _sines_first(d_model: int) -> Tensor:
    """Where each feature of Marian's order stands in ours."""
    return torch.cat((torch.arange(0, d_model, 2), torch.arange(1, d_model, 2)))


def _in_order(tensor: Tensor, axis: int | None, order: Tensor) -> Tensor:
    if axis is None:
        return tensor
    if tensor.dim() <= axis or tensor.size(axis) != len(order):
        raise InputError(f"a tensor of shape {tuple(tensor.shape)} should have {len(order)} features")
    return tensor.index_select(axis, order)
