"""One side of a tokenizer once it is trained: text to ids, ids to text, and which word each id is part of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import index, itemgetter

from tokenizers import Encoding, Tokenizer

from lit_transformer.data.sentencepiece import HIDDEN, CharacterRules, ids_in_vocabulary
from lit_transformer.interfaces import InputError
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID

Unit = tuple[int, ...]  # the ids of a stretch of text that merges stay within: one word, number or run of signs
Merges = dict[tuple[int, int], tuple[int, int]]  # the rank of a merge and the id that it makes, by what it joins

_VISIBLE = str.maketrans({HIDDEN: "", " ": "▁", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


class Side:
    """The vocabulary of source or target text, or of both where they share one.

    BOS, EOS and tags are the business of ``SubwordTokenizer``; here is the text between them.

    Args:
        tokenizer: Cuts text and numbers the pieces.
        size: Every id that is given is below it.
        normalize: Brings text to the form that ``tokenizer`` cuts.
        rules: What takes the place of ``normalize`` in a vocabulary of sentencepiece.
    """

    def __init__(
        self, tokenizer: Tokenizer, size: int, normalize: Callable[[str], str], rules: CharacterRules | None = None
    ) -> None:
        self.tokenizer, self.size, self.rules = tokenizer, size, rules
        self._normalize = rules or normalize

    @property
    def num_tokens(self) -> int:
        """Ids in use, at most ``size``."""
        return min(self.tokenizer.get_vocab_size(), self.size)

    def id_of(self, tag: str) -> int:
        """The id of a tag, which no text is encoded as.

        Raises:
            KeyError: If the vocabulary has no such tag.
        """
        number = self._find(tag)
        if number is None:
            raise KeyError(tag)
        return number

    def _find(self, tag: str) -> int | None:
        return self.tokenizer.token_to_id(tag if self.rules is None else HIDDEN + tag)

    def encode(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Sentences as ids.

        Raises:
            InputError: If a sentence cannot be written as UTF-8, or ``texts`` is a single string.
        """
        if isinstance(texts, str):
            raise InputError("texts must be a list of sentences, got one string; put it in a list")
        clean = self._clean(texts)
        found = self._encodings(clean)
        if self.rules is None:
            return (one.ids for one in found)
        both = zip(clean, found, strict=True)
        return (ids_in_vocabulary(self.tokenizer, text, one.ids, self.size) for text, one in both)

    def decode(self, rows: Sequence[Sequence[int]], tags: Sequence[str]) -> list[str]:
        """Rows of ids as texts, without PAD, BOS, EOS and tags."""
        silent = {PAD_ID, BOS_ID, EOS_ID, *map(self._find, tags)}
        spoken = [[i for i in self._checked(row) if i < self.size and i not in silent] for row in rows]
        return self.tokenizer.decode_batch(spoken, skip_special_tokens=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """One readable string for each id, the number itself where no token uses it."""
        spellings = [(i, self.tokenizer.id_to_token(i)) for i in self._checked(ids)]
        return [f"<{i}>" if piece is None else piece.translate(_VISIBLE) for i, piece in spellings]

    def words(self, texts: Sequence[str]) -> Iterator[list[int | None]]:
        """For each id of ``encode`` the number of the word it is part of, see ``word_numbers``."""
        clean = self._clean(texts)
        found = self._encodings(clean, with_offsets=True)
        places = [self.rules.places(text) if self.rules else None for text in texts]
        return (word_numbers(text, one.offsets, at) for text, one, at in zip(clean, found, places, strict=True))

    def units(self, texts: Sequence[str]) -> list[list[Unit]]:
        """Sentences as units, each with its ids."""
        found = []
        for one in self._encodings(self._clean(texts), with_offsets=True):
            spans = groupby(zip(one.word_ids, one.ids, strict=True), key=itemgetter(0))
            found.append([tuple(i for _, i in span) for _, span in spans])
        return found

    def merges(self) -> Merges:
        """The merges of byte-pair encoding, best first; none for other models."""
        model = json.loads(self.tokenizer.to_str())["model"]
        ids, pairs = model["vocab"], model.get("merges") or []
        return {(ids[left], ids[right]): (rank, ids[left + right]) for rank, (left, right) in enumerate(pairs)}

    def _clean(self, texts: Sequence[str]) -> list[str]:
        return [self._normalize(text) for text in texts]

    def _encodings(self, texts: Sequence[str], with_offsets: bool = False) -> list[Encoding]:
        """Normalised sentences as ids; those that also know where each stood in the text take longer."""
        encode = self.tokenizer.encode_batch if with_offsets else self.tokenizer.encode_batch_fast
        try:
            return encode(texts, add_special_tokens=False)
        except TypeError as error:  # what `tokenizers` says of half a surrogate pair
            raise InputError("a sentence cannot be written as UTF-8, so it is no text: repair its encoding") from error

    def _checked(self, ids: Sequence[int]) -> list[int]:
        numbers = list(map(index, ids))  # those of a tensor are equal to numbers, but never found in a set of them
        if numbers and min(numbers) < 0:
            raise ValueError(f"ids must be 0 or more, got {min(numbers)}")
        return numbers


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
