"""Marian folders whose tokenizer is a pair of sentencepiece models, as those of OPUS-MT, put into our order of ids.

There padding comes last and the decoder begins with it; here the special tokens come first and BOS begins. So BOS gets
a copy of padding's vector, and a score so low that it takes no part in any probability.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_transformer.checkpoints import CheckpointError
from lit_transformer.data.sentencepiece import SentencePieceModel, read_model
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.exchange.marian import OUTPUT_BIAS, TABLES
from lit_transformer.interfaces import InputError
from lit_transformer.json_files import read_json
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS

_FILES = ("source.spm", "target.spm", "vocab.json")
_NEVER = -20.0  # exp of it is below what single precision can add to the 1 that padding's score gives
_TAG = re.compile(r">>\S*\w\S*<<")


def is_opus(folder: Path) -> bool:
    """Whether a folder has sentencepiece models and no tokenizer of ours."""
    return (folder / "source.spm").is_file() and not (folder / "tokenizer.json").is_file()


def read_opus(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor]
) -> tuple[SubwordTokenizer, dict[str, Any], dict[str, Tensor]]:
    """The tokenizer, and configuration and weights with the ids in our order.

    Args:
        folder: With ``source.spm``, ``target.spm`` and ``vocab.json``.
        config: What stands in its ``config.json``.
        weights: Its tensors by their names there.

    Raises:
        CheckpointError: If a file is missing or damaged.
        InputError: If the vocabulary or a sentencepiece model is of a kind that cannot be represented exactly.
    """
    if (folder / "target_vocab.json").is_file():
        raise InputError("it has two vocabularies (target_vocab.json), but only models with one can be read")
    missing = next((name for name in _FILES if not (folder / name).is_file()), None)
    if missing is not None:
        raise CheckpointError(f"{folder} is not a complete Marian model: it has no {missing}")
    size = int(config["vocab_size"])
    names = _names(folder, size)
    order = _order(config, names)
    tokens = [*SPECIAL_TOKENS, *(names[number] for number in order[len(SPECIAL_TOKENS) :])]
    src, tgt = (_model(folder / name) for name in _FILES[:2])
    tokenizer = SubwordTokenizer.from_sentencepiece(tokens, src, tgt, [one for one in tokens if _TAG.fullmatch(one)])
    ids = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "decoder_start_token_id": BOS_ID}
    config = {**config, **ids, "vocab_size": len(order), "decoder_vocab_size": len(order)}
    config["src_vocab_size"] = None if tokenizer.joint else len(order)  # as the data module will have it
    return tokenizer, config, _reordered(weights, torch.tensor(order), size)


def _names(folder: Path, size: int) -> list[str]:
    """The tokens by their ids in the folder, with names for ids that no token uses."""
    try:
        vocab = read_json(folder / "vocab.json")
        found = {int(number): str(token) for token, number in vocab.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder / 'vocab.json'} is damaged: {error}") from None
    if found and not 0 <= min(found) <= max(found) < size:
        raise InputError(f"vocab.json has ids up to {max(found)}, but vocab_size is {size}")
    return [found.get(number, f"<unused {number}>") for number in range(size)]


def _order(config: dict[str, Any], names: list[str]) -> list[int]:
    """For each id of ours, the id in the folder."""
    if "<unk>" not in names:
        raise InputError("vocab.json has no <unk>")
    eos, pad = (int(config.get(name, -1)) for name in ("eos_token_id", "pad_token_id"))
    start = int(config.get("decoder_start_token_id", pad))
    if not all(0 <= number < len(names) for number in (eos, pad, start)):
        raise InputError(f"pad {pad}, eos {eos} and decoder start {start} should lie below vocab_size={len(names)}")
    first = [pad, names.index("<unk>"), start, eos]
    return [*first, *(number for number in range(len(names)) if number not in first)]


def _model(path: Path) -> SentencePieceModel:
    try:
        return read_model(path.read_bytes())
    except InputError as error:
        raise InputError(f"{path.name} cannot be read: {error}") from None


def _reordered(weights: dict[str, Tensor], order: Tensor, size: int) -> dict[str, Tensor]:
    """The tables and the bias of the output with their rows in our order."""
    bias = weights.get(OUTPUT_BIAS, torch.zeros(1, size))
    for name in (name for name in (*TABLES, OUTPUT_BIAS) if name in weights):
        if weights[name].dim() != 2 or weights[name].size(0 if name in TABLES else 1) != size:
            raise InputError(f"{name} of shape {tuple(weights[name].shape)} does not fit vocab_size={size}")
    moved = {name: weights[name][order] for name in TABLES if name in weights}
    moved[OUTPUT_BIAS] = bias[:, order].clone()
    if order[BOS_ID] == order[PAD_ID]:
        moved[OUTPUT_BIAS][0, BOS_ID] = _NEVER
    return {**weights, **moved}
