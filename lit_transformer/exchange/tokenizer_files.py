"""Our tokenizer as the two JSON files that Hugging Face's fast tokenizers load, and back.

Ours does a few things in Python that theirs does inside ``tokenizer.json``: Unicode form NFC, lower case, EOS, and tags
before a source sentence. Everything else there is ours already. Three things remain different: theirs finds a tag in
the middle of a sentence too, and takes all spaces around it along; it knows one lower case of Σ, where Greek has two;
and its ``decode(..., skip_special_tokens=True)`` passes over ``<unk>``, which ours writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import InputError
from lit_transformer.vocabulary import EOS_ID, SPECIAL_TOKENS

OURS = "lit_transformer"  # the key of what only we need, which transformers carries along when it saves again

_ROLES = ("pad_token", "unk_token", "bos_token", "eos_token")  # of SPECIAL_TOKENS, in this order


def tokenizer_files(tokenizer: SubwordTokenizer, max_length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
        tokenizer: A trained tokenizer with one vocabulary for both sides.
        max_length: Longest sentence, in tokens, that the network takes.

    Raises:
        InputError: If source and target have vocabularies of their own, or were imported from sentencepiece.
    """
    if tokenizer.recipe["model"] == "sentencepiece":
        raise InputError("this tokenizer was imported from sentencepiece, and cannot be written as a fast one exactly")
    if not tokenizer.joint:
        raise InputError("this tokenizer has joint=False, two vocabularies, but a Hugging Face tokenizer has one")
    state = tokenizer.to_state()
    content: dict[str, Any] = json.loads(state["tokenizers"]["tgt"])
    vocabulary = tokenizer.pieces_tgt
    ids = {tag: number for number in range(tokenizer.num_tokens) if (tag := vocabulary([number])[0]) in tokenizer.tags}
    content["added_tokens"] = [_added(number, token, True) for number, token in enumerate(SPECIAL_TOKENS)]
    content["added_tokens"] += [_added(number, tag, False) for tag, number in ids.items()]
    first = [{"type": "Lowercase"}] if tokenizer.lowercase else []
    content["normalizer"] = {"type": "Sequence", "normalizers": [*first, {"type": "NFC"}, content["normalizer"]]}
    silent = [{"type": "Replace", "pattern": {"String": tag}, "content": ""} for tag in ids]
    content["decoder"]["decoders"] = [*silent, *content["decoder"]["decoders"]]
    content["post_processor"] = _ends_with_eos()
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(_ROLES, SPECIAL_TOKENS, strict=True)),
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # a typed </s> is text
        OURS: {name: value for name, value in state.items() if name != "tokenizers"}
        | {"fingerprint": tokenizer.fingerprint},
    }
    return content, settings


def _added(number: int, token: str, is_special: bool) -> dict[str, Any]:
    """How a token is told from text; tags take the spaces around them along."""
    spaces = {"lstrip": not is_special, "rstrip": not is_special}
    return {"id": number, "content": token, "single_word": False, **spaces, "normalized": False, "special": is_special}


def _ends_with_eos() -> dict[str, Any]:
    eos = SPECIAL_TOKENS[EOS_ID]
    parts = [{"Sequence": {"id": side, "type_id": 0}} for side in "AB"]
    end = {"SpecialToken": {"id": eos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [parts[0], end],
        "pair": [*parts, end],
        "special_tokens": {eos: {"id": eos, "ids": [EOS_ID], "tokens": [eos]}},
    }


def tokenizer_from_files(content: dict[str, Any], settings: dict[str, Any], folder: Path) -> SubwordTokenizer:
    """The tokenizer that ``tokenizer_files`` described, also after transformers has saved it again.

    Args:
        content: What ``tokenizer.json`` holds.
        settings: What ``tokenizer_config.json`` holds.
        folder: Where both lie; no code of it is run.

    Raises:
        InputError: If the files are not ours, or their vocabulary has changed since.
    """
    kept = settings.get(OURS)
    if not isinstance(kept, dict):
        raise InputError(
            f"tokenizer_config.json has no {OURS!r} entry: only tokenizers that lit-transformer exported can be read"
        )
    try:
        ours = {**content, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        ours["normalizer"] = content["normalizer"]["normalizers"][-1]
        tags = set(kept["recipe"]["tags"])
        decoders = [one for one in content["decoder"]["decoders"] if not _is_silence(one, tags)]
        ours["decoder"] = {**content["decoder"], "decoders": decoders}
        state = {name: value for name, value in kept.items() if name != "fingerprint"}
        tokenizer = SubwordTokenizer.from_state({**state, "tokenizers": {"tgt": json.dumps(ours)}}, folder)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"tokenizer.json is not as lit-transformer wrote it: {error!r}") from None
    if tokenizer.fingerprint != kept.get("fingerprint"):
        raise InputError("the vocabulary in tokenizer.json has changed since lit-transformer wrote it")
    return tokenizer


def _is_silence(decoder: dict[str, Any], tags: set[str]) -> bool:
    return decoder.get("type") == "Replace" and decoder["pattern"].get("String") in tags
