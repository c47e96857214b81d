"""BPE dropout: each epoch cuts the same words into other subwords, so that a small corpus looks larger."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np

from lit_transformer.data.batching import Ragged
from lit_transformer.data.side import Unit
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import InputError

_VARIANTS = 64  # cuts that are drawn for each unit, see SubwordTokenizer.units
_GONE = -1  # stands where an id was before it was merged into the one before it
_KEPT_CUTS = 1_000_000  # cuts in memory, 200 MB; those beyond are drawn anew, which gives the same


class Units:
    """Sentences as numbers of units, and the units: small in memory, ready to be cut in many ways.

    Args:
        sentences: The units of each sentence, as ``SubwordTokenizer.units`` gives them.
    """

    def __init__(self, sentences: Sequence[Sequence[Unit]]) -> None:
        numbers: dict[Unit, int] = {}
        self.rows = Ragged([[numbers.setdefault(unit, len(numbers)) for unit in sentence] for sentence in sentences])
        self.units = list(numbers)


class BPEDropout:
    """Cuts words into subwords by byte-pair encoding that passes over merges at random.

    Wherever byte-pair encoding looks for the best merge in a unit (a word, number or run of signs), each possible one
    is passed over with ``probability``; a unit is done when none is left. With 0 that is byte-pair encoding itself,
    with 1 each word is spelled in characters. What is read stays the same text.

    Every unit has 64 cuts, drawn by the rule above from ``seed`` and the unit alone; in a sentence it takes one of
    them, chosen by the seed of its pool. So the text of an epoch is a function of seeds, on every machine and with any
    number of workers. (The dropout inside ``tokenizers`` cannot be seeded.)

    Source: Provilkov et al. 2020, "BPE-Dropout: Simple and Effective Subword Regularization", algorithm 1.

    Args:
        tokenizer: A trained tokenizer of the ``bpe`` model.
        probability: Of passing over a merge, from 0 to 1; the paper recommends 0.1, and 0.6 for Chinese and Japanese.
        seed: Decides the cuts of each unit.

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
        self._cuts: dict[tuple[str, Unit, int], Unit] = {}

    def __call__(self, units: Units, side: str, seed: str) -> list[list[int]]:
        """The sentences as ids, each unit cut in one of its ways.

        Args:
            units: The sentences of a pool.
            side: ``src`` or ``tgt``, whose vocabularies may differ.
            seed: Decides which cut each unit takes.
        """
        source = np.random.RandomState(random.Random(f"{seed}/{side}").getrandbits(32))  # the same in every NumPy
        variants = source.randint(_VARIANTS, size=len(units.rows.flat)).tolist()
        numbers, starts = units.rows.flat.tolist(), units.rows.starts.tolist()
        cuts = [
            self._cut(units.units[number], side, variant) for number, variant in zip(numbers, variants, strict=True)
        ]
        return [[i for cut in cuts[start:end] for i in cut] for start, end in pairwise(starts)]

    def _cut(self, unit: Unit, side: str, variant: int) -> Unit:
        key = side, unit, variant
        found = self._cuts.get(key)
        if found is None:
            found = self.cut(unit, side, random.Random(f"{self.seed}/{variant}/{unit}").random)
            if len(self._cuts) < _KEPT_CUTS:  # the first units of a corpus are mostly its frequent ones
                self._cuts[key] = found
        return found

    def cut(self, unit: Unit, side: str, draw: Callable[[], float]) -> Unit:
        """A unit cut in a new way.

        Args:
            unit: The ids of one unit, however it is cut.
            side: ``src`` or ``tgt``.
            draw: Gives numbers from 0 to 1, evenly spread.
        """
        rules = self._rules[side]
        ids = [character for i in unit for character in self._characters(i, side)]
        previous, following = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))
        possible = [(*rules[pair], place) for place, pair in enumerate(pairwise(ids)) if pair in rules]
        heapify(possible)  # the best merge first; long units would take long if all were sorted for each merge
        passed: list[tuple[int, int, int]] = []
        while possible:
            rank, made, place = best = heappop(possible)
            right = following[place]
            if right == len(ids) or rules.get((ids[place], ids[right])) != (rank, made):
                continue  # another merge took one of the two
            if draw() < self.probability:
                passed.append(best)
                continue
            ids[place], ids[right] = made, _GONE
            following[place] = after = following[right]
            if after < len(ids):
                previous[after] = place
            for one, other in ((previous[place], place), (place, after)):
                if one >= 0 and other < len(ids) and (rule := rules.get((ids[one], ids[other]))):
                    heappush(possible, (*rule, one))
            while passed:  # each may be taken when the next one is looked for
                heappush(possible, passed.pop())
        return tuple(i for i in ids if i != _GONE)

    def _characters(self, i: int, side: str) -> list[int]:
        """The ids that a subword is merged from; those that no merge makes are characters, bytes or special."""
        pair = self._parts[side].get(i)
        return [i] if pair is None else [character for part in pair for character in self._characters(part, side)]
