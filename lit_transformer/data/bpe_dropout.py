"""BPE dropout: each epoch cuts the same words into other subwords, so that a small corpus looks larger."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from lit_transformer.data.batching import Ragged
from lit_transformer.data.pieces import Word
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import InputError

_VARIANTS = 64  # cuts that are drawn for each word
_KEPT_CUTS = 1_000_000  # cuts in memory, 200 MB; those beyond are drawn anew, which gives the same


class Words:
    """Sentences as numbers of words, and the words: small in memory, ready to be cut in many ways.

    Args:
        sentences: The words of each sentence.
    """

    def __init__(self, sentences: Sequence[Sequence[Word]]) -> None:
        numbers: dict[Word, int] = {}
        self.rows = Ragged([[numbers.setdefault(word, len(numbers)) for word in sentence] for sentence in sentences])
        self.words = list(numbers)


class BPEDropout:
    """Cuts words into subwords by byte-pair encoding that passes over merges at random.

    Wherever byte-pair encoding looks for the best merge in a word, each possible one is passed over with
    ``probability``; a word is done when none is left. With 0 that is byte-pair encoding itself, with 1 each word is
    spelled in characters. What is read stays the same text.

    Every word has 64 cuts, drawn by the rule above from ``seed`` and the word alone; a word in a sentence takes one of
    them, chosen by the seed of its pool. So the text of an epoch is a function of seeds, on every machine and with any
    number of workers. (The dropout inside ``tokenizers`` cannot be seeded.)

    Source: Provilkov et al. 2020, "BPE-Dropout: Simple and Effective Subword Regularization", algorithm 1.

    Args:
        tokenizer: A trained tokenizer of the ``bpe`` model.
        probability: Of passing over a merge, from 0 to 1; the paper recommends 0.1, and 0.6 for Chinese and Japanese.
        seed: Decides the cuts of each word.

    Raises:
        InputError: If ``probability`` is out of range, or the tokenizer is of another model.
    """

    def __init__(self, tokenizer: SubwordTokenizer, probability: float, seed: int = 1) -> None:
        if not 0 <= probability <= 1:
            raise InputError(f"bpe_dropout must lie between 0 and 1, got {probability}")
        if tokenizer.recipe["model"] != "bpe":
            raise InputError(
                f"bpe_dropout needs a tokenizer of the bpe model, this one is {tokenizer.recipe['model']}: "
                "set bpe_dropout to 0, or change the tokenizer"
            )
        self.probability, self.seed = probability, seed
        self._rules = {side: tokenizer.merges(side) for side in ("src", "tgt")}
        self._parts = {
            side: {made: pair for pair, (_, made) in reversed(rules.items())} for side, rules in self._rules.items()
        }
        self._cuts: dict[tuple[str, Word, int], Word] = {}

    def __call__(self, words: Words, side: str, seed: str) -> list[list[int]]:
        """The sentences as ids, each word cut in one of its ways.

        Args:
            words: The sentences of a pool.
            side: ``src`` or ``tgt``, whose vocabularies may differ.
            seed: Decides which cut each word takes.
        """
        source = np.random.RandomState(random.Random(f"{seed}/{side}").getrandbits(32))  # the same in every NumPy
        variants = source.randint(_VARIANTS, size=len(words.rows.flat)).tolist()
        numbers, starts = words.rows.flat.tolist(), words.rows.starts.tolist()
        cuts = [
            self._cut(words.words[number], side, variant) for number, variant in zip(numbers, variants, strict=True)
        ]
        return [[i for cut in cuts[start:end] for i in cut] for start, end in pairwise(starts)]

    def _cut(self, word: Word, side: str, variant: int) -> Word:
        key = side, word, variant
        found = self._cuts.get(key)
        if found is None:
            found = self.cut(word, side, random.Random(f"{self.seed}/{variant}/{word}").random)
            if len(self._cuts) < _KEPT_CUTS:  # the first words of a corpus are mostly its frequent ones
                self._cuts[key] = found
        return found

    def cut(self, word: Word, side: str, draw: Callable[[], float]) -> Word:
        """A word cut in a new way.

        Args:
            word: The ids of one word, however it is cut.
            side: ``src`` or ``tgt``.
            draw: Gives numbers from 0 to 1, evenly spread.
        """
        rules = self._rules[side]
        ids = [character for i in word for character in self._characters(i, side)]
        while len(ids) > 1:
            pairs = enumerate(pairwise(ids))
            possible = sorted((*rules[pair], place) for place, pair in pairs if pair in rules)
            chosen = next((one for one in possible if draw() >= self.probability), None)
            if chosen is None:
                break
            _, made, place = chosen
            ids[place : place + 2] = [made]
        return tuple(ids)

    def _characters(self, i: int, side: str) -> list[int]:
        """The ids that a subword is merged from; those that no merge makes are characters, bytes or special."""
        pair = self._parts[side].get(i)
        return [i] if pair is None else [character for part in pair for character in self._characters(part, side)]
