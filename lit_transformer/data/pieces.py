"""Ids of a vocabulary back to text, to one readable string each, and to words; the merges of byte-pair encoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from tokenizers import Encoding, Tokenizer

from lit_transformer.data.sentencepiece import HIDDEN
from lit_transformer.interfaces import InputError
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID

Word = tuple[int, ...]  # the ids of one word, number or run of signs
Merges = dict[tuple[int, int], tuple[int, int]]  # the rank of a merge and the id that it makes, by what it joins

_VISIBLE = str.maketrans({HIDDEN: "", " ": "▁", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _checked(ids: Sequence[int], vocab_size: int) -> Sequence[int]:
    if len(ids) and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise ValueError(f"ids must lie between 0 and {vocab_size - 1}, got {min(ids)} to {max(ids)}")
    return ids


def decoded(tokenizer: Tokenizer, rows: Sequence[Sequence[int]], vocab_size: int, tags: Sequence[str]) -> list[str]:
    """Rows of ids as texts, without PAD, BOS, EOS and tags."""
    silent = {PAD_ID, BOS_ID, EOS_ID, *map(tokenizer.token_to_id, tags)}
    spoken = [[i for i in _checked(row, vocab_size) if i not in silent] for row in rows]
    return tokenizer.decode_batch(spoken, skip_special_tokens=False)


def pieces(tokenizer: Tokenizer, ids: Sequence[int], vocab_size: int) -> list[str]:
    """One readable string for each id, the number itself where no token uses it."""
    spellings = (tokenizer.id_to_token(i) for i in _checked(ids, vocab_size))
    return [f"<{i}>" if piece is None else piece.translate(_VISIBLE) for i, piece in zip(ids, spellings, strict=True)]


def encodings(tokenizer: Tokenizer, texts: Sequence[str], with_words: bool = False) -> list[Encoding]:
    """Normalised sentences as ids; those that also know the words take longer.

    Raises:
        InputError: If a sentence is no text.
    """
    encode = tokenizer.encode_batch if with_words else tokenizer.encode_batch_fast
    try:
        return encode(texts, add_special_tokens=False)
    except TypeError as error:  # what `tokenizers` says of half a surrogate pair
        raise InputError("a sentence cannot be written as UTF-8, so it is no text: repair its encoding") from error


def words_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[Word]]:
    """Normalised sentences as the ids of each of their words."""
    found = []
    for one in encodings(tokenizer, texts, with_words=True):
        spans = groupby(zip(one.word_ids, one.ids, strict=True), key=itemgetter(0))
        found.append([tuple(i for _, i in span) for _, span in spans])
    return found


def merges_of(tokenizer: Tokenizer) -> Merges:
    """The merges of byte-pair encoding, best first; none for other models."""
    model = json.loads(tokenizer.to_str())["model"]
    ids, pairs = model["vocab"], model.get("merges") or []
    return {(ids[left], ids[right]): (rank, ids[left + right]) for rank, (left, right) in enumerate(pairs)}


def _places(text: str) -> list[int | None]:
    """For each character the number of its word; None for white space."""
    places: list[int | None] = []
    number = -1
    for before, character in zip(" " + text, text, strict=False):
        number += before.isspace() and not character.isspace()
        places.append(None if character.isspace() else number)
    return places


def word_numbers(
    text: str, offsets: Sequence[tuple[int, int]], places: list[int | None] | None = None
) -> list[int | None]:
    """For each stretch of a text the number of the word that it is part of, counted from 0.

    Words are what stands between white space, as ``str.split`` cuts them. None is the number of white space, and of
    signs that are only attached to a word, such as the full stop of ``cats.``: they say nothing of that word.

    Args:
        text: The text.
        offsets: Begin and end of each stretch.
        places: For each character the number of its word, None for white space; None counts them in ``text``.

    Example:
        >>> word_numbers("I  love cats.", [(0, 1), (1, 2), (2, 5), (5, 7), (7, 12), (12, 13)])
        [0, None, 1, 1, 2, None]
        >>> word_numbers("I - you", [(0, 1), (1, 3), (3, 7)])
        [0, 1, 2]
    """
    places = _places(text) if places is None else places
    spoken = {place for place, character in zip(places, text, strict=True) if character.isalnum()}
    numbers: list[int | None] = []
    for start, end in offsets:
        word = next((one for one in places[start:end] if one is not None), None)
        is_attached = word in spoken and not any(character.isalnum() for character in text[start:end])
        numbers.append(None if is_attached else word)
    return numbers
