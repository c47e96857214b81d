"""Folders of CTranslate2, a fast engine for translation; written through its own description of a model.

Its converter for Marian folders would not do: it drops the last token, where Marian keeps its padding, and lets the
decoder begin with a vector of zeros, where ours reads BOS.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_transformer.exchange.marian import MAX_POSITIONS
from lit_transformer.exchange.shared import own_transformer, write_json
from lit_transformer.exchange.tokenizer_files import tokenizer_files
from lit_transformer.interfaces import InputError, TranslationNetwork
from lit_transformer.nn import Transformer
from lit_transformer.nn.attention import MultiHeadAttention
from lit_transformer.translator import Translator
from lit_transformer.vocabulary import BOS_ID, EOS_ID, SPECIAL_TOKENS, UNK_ID

_ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "silu": "SWISH"}  # ours: theirs


def export_ctranslate2(translator: Translator, folder: str | Path) -> list[Path]:
    """Writes a folder that ``ctranslate2.Translator`` loads, with the tokenizer as ``AutoTokenizer`` loads it.

    Args:
        translator: Network and tokenizer. Pre-norm, learned positions and untied matrices fit as well.
        folder: Where to write.

    Returns:
        The files.

    Raises:
        InputError: If the package ctranslate2 is missing, it has no such network, or the tokenizer has two
            vocabularies; the message says why.
    """
    folder, network = Path(folder), _checked(translator.network)
    length = network.max_length or MAX_POSITIONS
    tokenizer, settings = tokenizer_files(translator.tokenizer, length)
    spec = _described(network, package("ctranslate2.specs"), length)
    vocabulary = _vocabulary(tokenizer, network.vocab_size)
    spec.register_source_vocabulary(vocabulary)
    spec.register_target_vocabulary(vocabulary)
    spec.config.unk_token, spec.config.eos_token = SPECIAL_TOKENS[UNK_ID], SPECIAL_TOKENS[EOS_ID]
    spec.config.bos_token = spec.config.decoder_start_token = SPECIAL_TOKENS[BOS_ID]
    spec.validate()
    spec.optimize()
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    write_json(folder, {"tokenizer.json": tokenizer, "tokenizer_config.json": settings})
    return sorted(folder.iterdir())


def package(name: str = "ctranslate2") -> Any:
    """The package CTranslate2 or a module of it.

    Raises:
        InputError: If it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise InputError('CTranslate2 needs a package: pip install "lit-transformer[ctranslate2]"') from None


def _checked(network: TranslationNetwork) -> Transformer:
    """The network, if CTranslate2 computes what it does."""
    network = own_transformer(network, "CTranslate2")
    if network.src_vocab_size != network.vocab_size:
        raise InputError(
            f"src_vocab_size={network.src_vocab_size} differs from vocab_size={network.vocab_size}, but the export "
            "needs one vocabulary for both sides"
        )
    return network


def _vocabulary(tokenizer: dict[str, Any], size: int) -> list[str]:
    """The tokens in the order of their ids, with names for ids that no token uses."""
    vocab = tokenizer["model"]["vocab"]
    is_scored = not isinstance(vocab, dict)  # unigram has them in order, with their scores
    tokens = [token for token, _ in vocab] if is_scored else sorted(vocab, key=vocab.__getitem__)
    return tokens + [f"<unused {number}>" for number in range(len(tokens), size)]


def _described(network: Transformer, specs: Any, length: int) -> Any:
    """CTranslate2's description of the network, filled with its weights."""
    spec = specs.TransformerSpec.from_config(
        (network.num_layers, network.num_decoder_layers),
        network.num_heads,
        pre_norm=network.norm == "pre",
        activation=getattr(specs.Activation, _ACTIVATIONS[network.activation]),
    )
    sides = (
        (spec.encoder, network.encoder, network.src_positions),
        (spec.decoder, network.decoder, network.tgt_positions),
    )
    for target, stack, positions in sides:
        target.scale_embeddings = network.scale_embedding
        target.position_encodings.encodings = _numbers(positions(torch.zeros(1, length, network.d_model))[0])
        for layer_spec, layer in zip(target.layer, stack.layers, strict=True):
            _fill_layer(layer_spec, layer)
        if network.norm == "pre":
            _fill_norm(target.layer_norm, stack.final_norm)
    spec.encoder.embeddings[0].weight = _numbers(network.src_embedding.weight)
    spec.decoder.embeddings.weight = _numbers(network.tgt_embedding.weight)
    _fill_linear(spec.decoder.projection, [network.projection])
    return spec


def _fill_layer(spec: Any, layer: Any) -> None:
    for target, attention, residual in _attentions(spec, layer):
        projections = [attention.query, attention.key, attention.value]
        cut = 3 if len(target.linear) == 2 else 1  # queries have a product of their own where they read the source
        _fill_linear(target.linear[0], projections[:cut])
        if cut == 1:
            _fill_linear(target.linear[1], projections[1:])
        _fill_linear(target.linear[-1], [attention.output])
        _fill_norm(target.layer_norm, residual.norm)
    _fill_linear(spec.ffn.linear_0, [layer.feed_forward.inner])
    _fill_linear(spec.ffn.linear_1, [layer.feed_forward.outer])
    _fill_norm(spec.ffn.layer_norm, layer.feed_forward_residual.norm)


def _attentions(spec: Any, layer: Any) -> Iterator[tuple[Any, MultiHeadAttention, Any]]:
    yield spec.self_attention, layer.self_attention, layer.self_attention_residual
    if hasattr(spec, "attention"):
        yield spec.attention, layer.cross_attention, layer.cross_attention_residual


def _fill_linear(spec: Any, linears: list[nn.Linear]) -> None:
    """Several linear layers of one input as one."""
    weights: list[Tensor] = [linear.weight for linear in linears]
    spec.weight = _numbers(torch.cat(weights))
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    if biases:
        spec.bias = _numbers(torch.cat(biases))


def _fill_norm(spec: Any, norm: Any) -> None:
    spec.gamma, spec.beta = _numbers(norm.weight), _numbers(norm.bias)


def _numbers(tensor: Tensor) -> Any:
    return tensor.detach().float().cpu().contiguous().numpy()
