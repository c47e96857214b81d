"""Sentences as rectangles of ids: grouped by length, cut by a budget of tokens, padded, dealt to processes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_transformer.interfaces import TranslationBatch
from lit_transformer.vocabulary import PAD_ID

T = TypeVar("T")
Rows = list[int]  # positions of sentence pairs in their pool


class Sentences(Protocol):
    """Lists of ids, wherever they are kept."""

    def __len__(self) -> int:
        """Number of lists."""

    def pad(self, rows: Sequence[int]) -> Tensor:
        """The chosen lists, padded on the right to the longest of them, ``(rows, longest)``."""


class Ragged:
    """Many lists of ids of different lengths, kept in one array: small in memory, cheap to hand to a process.

    Args:
        rows: The lists of ids.

    Attributes:
        lengths: Length of each list.
        starts: Where each list begins in ``flat``, and after them its length.
        flat: All ids, one list after another.

    Example:
        >>> Ragged([[5, 6, 7], [8]]).pad([1, 0])
        tensor([[8, 0, 0],
                [5, 6, 7]])
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.lengths: npt.NDArray[np.int64] = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        self.starts: npt.NDArray[np.int64] = np.concatenate(([0], np.cumsum(self.lengths)))
        ids = chain.from_iterable(rows)
        self.flat: npt.NDArray[np.int32] = np.fromiter(ids, dtype=np.int32, count=int(self.starts[-1]))

    def __len__(self) -> int:
        """Number of lists."""
        return len(self.lengths)

    def __getitem__(self, row: int) -> list[int]:
        """One list of ids."""
        ids: list[int] = self.flat[self.starts[row] : self.starts[row + 1]].tolist()
        return ids

    def pad(self, rows: Sequence[int]) -> Tensor:
        """The chosen lists, padded on the right to the longest of them, ``(rows, longest)``."""
        chosen = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[chosen, None]
        columns = np.arange(lengths.max(initial=0))
        is_real = columns < lengths
        padded = np.full(is_real.shape, PAD_ID, dtype=np.int64)
        padded[is_real] = self.flat[(self.starts[chosen, None] + columns)[is_real]]
        return torch.from_numpy(padded)


class TokenBudgetBatches:
    """Cuts a pool of sentence pairs into batches of similar length within a budget of tokens.

    A batch may hold ``max_tokens`` source positions and as many target positions, padding included. The budget is
    checked before a pair is added, so it is never exceeded; a pair that is too large alone is left out. The
    cuts come in random order, which depends only on the seed.

    Source: Vaswani et al. 2017, section 5.1: "Sentence pairs were batched together by approximate sequence
    length. Each training batch contained a set of sentence pairs containing approximately 25000 source tokens and
    25000 target tokens."

    Args:
        max_tokens: Largest number of positions on each side of a batch, in tokens.
        shuffle: Whether pairs of equal length and the finished batches are shuffled.

    Raises:
        ValueError: If ``max_tokens`` is below 1.

    Example:
        >>> batches = TokenBudgetBatches(max_tokens=6, shuffle=False)
        >>> batches([2, 3, 9, 2], [2, 3, 2, 2], seed="1")
        [[0, 3], [1]]
    """

    def __init__(self, max_tokens: int = 25_000, shuffle: bool = True) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        self.max_tokens, self.shuffle = max_tokens, shuffle

    def __call__(self, src_lengths: Sequence[int], tgt_lengths: Sequence[int], seed: str) -> list[Rows]:
        """The batches of a pool, each a list of positions in it.

        Args:
            src_lengths: Source length of each pair, in tokens.
            tgt_lengths: Target length of each pair, in tokens.
            seed: Decides the order of equals and of the batches.
        """
        random_source = random.Random(seed)
        rows = [row for row in range(len(src_lengths)) if self.fits(src_lengths[row], tgt_lengths[row])]
        if self.shuffle:
            random_source.shuffle(rows)
        rows = self.order(rows, src_lengths, tgt_lengths)
        batches = self.cut(rows, src_lengths, tgt_lengths)
        if self.shuffle:
            random_source.shuffle(batches)
        return batches

    def cost(self, num_pairs: int, longest_src: int, longest_tgt: int) -> int:
        """What a batch of this shape takes from the budget. Override this to count otherwise.

        Args:
            num_pairs: Sentence pairs in the batch.
            longest_src: Length of its longest source sentence, in tokens.
            longest_tgt: Length of its longest target sentence, in tokens.
        """
        return num_pairs * max(longest_src, longest_tgt)

    def fits(self, src_length: int, tgt_length: int) -> bool:
        """Whether a pair of these lengths fits into the budget at all."""
        return self.cost(1, src_length, tgt_length) <= self.max_tokens

    def order(self, rows: Rows, src_lengths: Sequence[int], tgt_lengths: Sequence[int]) -> Rows:
        """The rows sorted so that neighbours have similar lengths; equals keep their order."""
        chosen = np.asarray(rows, dtype=np.int64)
        src, tgt = np.asarray(src_lengths)[chosen], np.asarray(tgt_lengths)[chosen]
        ordered: Rows = chosen[np.lexsort((src, np.maximum(src, tgt)))].tolist()
        return ordered

    def cut(self, rows: Rows, src_lengths: Sequence[int], tgt_lengths: Sequence[int]) -> list[Rows]:
        """Neighbouring rows put together as far as the budget allows."""
        batches: list[Rows] = []
        batch: Rows = []
        src = tgt = 0
        for row in rows:
            wider_src, wider_tgt = max(src, src_lengths[row]), max(tgt, tgt_lengths[row])
            if batch and self.cost(len(batch) + 1, wider_src, wider_tgt) > self.max_tokens:
                batches.append(batch)
                batch, wider_src, wider_tgt = [], src_lengths[row], tgt_lengths[row]
            batch.append(row)
            src, tgt = wider_src, wider_tgt
        return [*batches, batch] if batch else batches


@dataclass
class LengthLimits:
    """Which sentence pairs are left out of training.

    Args:
        max_length: Longest sentence, in tokens with EOS.
        max_length_ratio: Largest ratio of the two lengths of a pair; None allows any.

    Raises:
        ValueError: If ``max_length`` is below 2 or ``max_length_ratio`` below 1.

    Example:
        >>> LengthLimits(max_length=9, max_length_ratio=2).verdict(3, 7)
        'ratio'
    """

    max_length: int = 256
    max_length_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2 to hold a token and EOS, got {self.max_length}")
        if self.max_length_ratio is not None and self.max_length_ratio < 1:
            raise ValueError(f"max_length_ratio must be at least 1, got {self.max_length_ratio}")

    def verdict(self, src_length: int, tgt_length: int) -> str | None:
        """Why a pair of these lengths is left out; None if it stays."""
        short, long = sorted((src_length, tgt_length))
        if long > self.max_length:
            return "overlong"
        if self.max_length_ratio is not None and long > self.max_length_ratio * short:
            return "ratio"
        return None


def reason_to_drop(limits: LengthLimits, batches: TokenBudgetBatches, src_length: int, tgt_length: int) -> str | None:
    """Why a pair of these lengths is left out of training; None if it stays."""
    reason = limits.verdict(src_length, tgt_length)
    return "overlong" if reason is None and not batches.fits(src_length, tgt_length) else reason


def deal(batches: list[Rows], parts: int) -> list[Rows]:
    """Splits a few batches into exactly ``parts``, halving the largest again and again; some may stay empty.

    A part is always cut out of one batch, so it keeps within the budget.

    Example:
        >>> deal([[1, 2, 3], [4]], 3)
        [[1, 2], [3], [4]]
    """
    dealt = list(batches)
    while len(dealt) < parts:
        index, largest = max(enumerate(dealt), key=lambda item: len(item[1]), default=(0, []))
        middle = (len(largest) + 1) // 2
        if len(largest) < 2:
            dealt.append([])
        else:
            dealt[index : index + 1] = [largest[:middle], largest[middle:]]
    return dealt


def collate(src: Sentences, tgt: Sentences, rows: Sequence[int]) -> TranslationBatch:
    """The chosen sentence pairs as one padded batch."""
    return TranslationBatch(src=src.pad(rows), tgt=tgt.pad(rows))


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of ids as one tensor, padded on the right to the longest of them."""
    return Ragged(rows).pad(range(len(rows)))


def shortened(row: list[T], longest: int) -> list[T]:
    """A row of at most ``longest`` tokens, or of what belongs to each of them: the last one, EOS, stays.

    Example:
        >>> shortened([7, 8, 9, 3], 3)
        [7, 8, 3]
    """
    return row if len(row) <= longest else [*row[: longest - 1], row[-1]]


def batches_by_length(lengths: dict[int, int], max_tokens: int, max_rows: int | None = None) -> Iterator[Rows]:
    """Cuts numbered sentences, longest first, into batches of at most ``max_tokens`` padded tokens.

    A sentence that is longer alone has a batch of its own: what is to be translated is not left out.

    Args:
        lengths: The length of each sentence in tokens, by its number.
        max_tokens: Largest number of positions in a batch.
        max_rows: Largest number of sentences in a batch.

    Example:
        >>> list(batches_by_length({0: 2, 3: 3, 5: 9, 6: 1}, max_tokens=6))
        [[5], [3, 0], [6]]
    """
    batch: Rows = []
    for number in sorted(lengths, key=lambda number: -lengths[number]):
        if batch and ((len(batch) + 1) * lengths[batch[0]] > max_tokens or len(batch) == max_rows):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def fill(src_lengths: Sequence[int], tgt_lengths: Sequence[int], batches: list[Rows]) -> float:
    """Share of real tokens in the area of the batches, both sides counted; 1 means no padding.

    Example:
        >>> fill([1, 3], [1, 3], [[0, 1]])
        0.6666666666666666
    """
    real = area = 0
    for rows in batches:
        for lengths in (src_lengths, tgt_lengths):
            taken = [lengths[row] for row in rows]
            real, area = real + sum(taken), area + len(taken) * max(taken)
    return real / area if area else 1.0
