"""Folders of Hugging Face transformers, a model with its tokenizer, written and read without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lit_transformer.checkpoints import CheckpointError, replacing
from lit_transformer.decoding import GreedySearch
from lit_transformer.decoding.beam import BeamSearch, PenaltyKind
from lit_transformer.exchange.marian import MAX_POSITIONS, from_marian, marian_config, to_marian
from lit_transformer.exchange.opus import is_opus, read_opus
from lit_transformer.exchange.shared import write_json
from lit_transformer.exchange.tokenizer_files import tokenizer_files, tokenizer_from_files
from lit_transformer.interfaces import InputError, Search
from lit_transformer.json_files import read_json
from lit_transformer.nn import Transformer
from lit_transformer.translator import Translator
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID, UNK_ID

_LONGEST_OUTPUT = 512  # tokens, as Marian's own models have it, where the network sets no lower bound
_USUAL_LENGTH = 20  # tokens of a sentence


def export_huggingface(translator: Translator, folder: str | Path) -> list[Path]:
    """Writes a folder that ``AutoModelForSeq2SeqLM`` and ``AutoTokenizer`` of transformers load.

    It holds a Marian model, which is the paper's network, or for ``norm="pre"`` a Pegasus model.

    Args:
        translator: Network and tokenizer; its search becomes the model's settings for ``generate``.
        folder: Where to write.

    Returns:
        The files.

    Raises:
        InputError: If neither has such a network, or the tokenizer has two vocabularies; the message says why.
    """
    folder, network = Path(folder), translator.network
    config = marian_config(network)
    assert isinstance(network, Transformer)  # marian_config refuses all others
    tokenizer, settings = tokenizer_files(translator.tokenizer, network.max_length or MAX_POSITIONS)
    contents = {
        "config.json": config,
        "generation_config.json": generation_config(translator.search, network.max_length),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings,
    }
    files = write_json(folder, contents)
    weights = folder / "model.safetensors"
    with replacing(weights) as partial:
        safetensors.torch.save_file(to_marian(network), str(partial), metadata={"format": "pt"})
    return [*files, weights]


def generation_config(search: Search, max_length: int | None) -> dict[str, Any]:
    """The settings of ``generate`` that are nearest to a search.

    Hugging Face divides log probabilities by the length to the power of alpha: ``penalty_kind="power"`` of a
    :class:`~lit_transformer.BeamSearch`. The default of that, ``"gnmt"``, is gentler, so it is written as the smaller
    power that weighs one token more of a sentence of 20 alike. And Hugging Face knows no bound that depends on the
    source: what never ends is cut later there, unless ``generate`` is told ``max_length``, which counts BOS.

    Args:
        search: A beam search; of any other search nothing is known, and generation is greedy.
        max_length: Longest sequence of the network in tokens; None for no bound.
    """
    content: dict[str, Any] = {
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": BOS_ID,
        "forced_eos_token_id": EOS_ID,
        "suppress_tokens": [PAD_ID, BOS_ID],
        "max_length": min(_LONGEST_OUTPUT, max_length or MAX_POSITIONS) + 1,  # BOS counts there
        "num_beams": 1,
    }
    if isinstance(search, (BeamSearch, GreedySearch)):
        if not search.allow_unknown:
            content["suppress_tokens"] = [PAD_ID, UNK_ID, BOS_ID]
        if search.no_repeat_ngram_size > 0:
            content["no_repeat_ngram_size"] = search.no_repeat_ngram_size
    if isinstance(search, BeamSearch) and search.beam_size > 1:
        content["num_beams"] = search.beam_size
        content["length_penalty"] = search.length_penalty * _steepness(search.penalty_kind)
        content["early_stopping"] = True if search.stop_early else "never"
    return content


def _steepness(kind: PenaltyKind) -> float:
    """How fast the logarithm of the penalty grows with that of the length, for alpha = 1."""
    return 1.0 if kind == "power" else _USUAL_LENGTH / (5 + _USUAL_LENGTH)


def import_huggingface(folder: str | Path, **options: Any) -> Translator:
    """Reads a Marian or Pegasus folder whose tokenizer this package exported, or a Marian folder as OPUS-MT has them.

    The latter have two sentencepiece models and one vocabulary; the translator gives the ids of the same pieces, in
    our order, and the same logits.

    Args:
        folder: With ``config.json``, the weights in ``model.safetensors`` or ``pytorch_model.bin``, and
            ``tokenizer.json`` and ``tokenizer_config.json``, or ``source.spm``, ``target.spm`` and ``vocab.json``.
        options: Arguments of :class:`~lit_transformer.Translator`.

    Raises:
        CheckpointError: If a file is missing or damaged.
        InputError: If the network or the tokenizer is of a kind that cannot be read; the message says why.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; name one that holds a Hugging Face model")
    config = _read_json(folder, "config.json")
    try:
        weights = _read_weights(folder)
        if is_opus(folder):
            tokenizer, config, weights = read_opus(folder, config, weights)
        else:
            content, settings = (_read_json(folder, name) for name in ("tokenizer.json", "tokenizer_config.json"))
            tokenizer = tokenizer_from_files(content, settings, folder)
        network = from_marian(config, weights)
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder} cannot be imported: {error}") from None
    return Translator(network, tokenizer, **options)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = read_json(folder / name)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a complete Hugging Face model: it has no {name}") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / name} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / name} is damaged: it should hold an object")
    return content


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors in single precision, read as plain data."""
    path = next(
        (folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()), None
    )
    if path is None:
        parts = " in one file, not in several," if [*folder.glob("*.index.json")] else ""
        raise CheckpointError(f"{folder} has no weights{parts} named model.safetensors or pytorch_model.bin")
    try:
        if path.suffix == ".safetensors":
            weights = safetensors.torch.load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float() for name, tensor in weights.items()}
    except Exception as error:  # bytes that are no pickle can raise nearly anything
        raise CheckpointError(f"{path} is damaged, or holds more than tensors: {error}") from None
