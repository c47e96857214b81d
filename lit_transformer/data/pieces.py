"""Ids of a vocabulary back to text, to one readable string each, and to the words that they are part of."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID

_VISIBLE = str.maketrans({" ": "▁", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


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


def word_numbers(text: str, offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """For each stretch of a text the number of the word that it is part of, counted from 0.

    Words are what stands between white space, as ``str.split`` cuts them. None is the number of white space, and of
    signs that are only attached to a word, such as the full stop of ``cats.``: they say nothing of that word.

    Example:
        >>> word_numbers("I  love cats.", [(0, 1), (1, 2), (2, 5), (5, 7), (7, 12), (12, 13)])
        [0, None, 1, 1, 2, None]
        >>> word_numbers("I - you", [(0, 1), (1, 3), (3, 7)])
        [0, 1, 2]
    """
    places: list[int | None] = []
    number = -1
    for before, character in zip(" " + text, text, strict=False):
        number += before.isspace() and not character.isspace()
        places.append(None if character.isspace() else number)
    spoken = {place for place, character in zip(places, text, strict=True) if character.isalnum()}
    numbers: list[int | None] = []
    for start, end in offsets:
        word = next((one for one in places[start:end] if one is not None), None)
        is_attached = word in spoken and not any(character.isalnum() for character in text[start:end])
        numbers.append(None if is_attached else word)
    return numbers
