"""Batches for validation, test and prediction: every sentence once, with its text and its place."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from lit_transformer.data.batching import Ragged, Rows, TokenBudgetBatches, collate, deal, shortened
from lit_transformer.data.corpus import CorpusError, ParallelCorpus
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import SentencePair, TranslationBatch

logger = logging.getLogger(__name__)


class EvaluationBatches:
    """The batches of one process for validation, test or prediction: every sentence once, none left out.

    Sentences of similar length stand together; ``indices`` tell their places in the corpora, one after another.
    Processes take every ``world_size``-th batch, so their numbers of batches may differ by one. ``sections`` holds the
    short name of each corpus that has been read so far and the number of its first sentence.

    Args:
        corpora: What to read, one after another.
        tokenizer: Makes the ids.
        batches: Cuts a pool.
        max_length: Longer sentences are cut to this, in tokens with EOS.
        pool_size: Rows sorted together; corpora that fit into one pool are kept in memory.
        rank: Number of this process.
        world_size: Number of processes.
        with_targets: Whether targets are encoded; prediction does without.
    """

    def __init__(
        self,
        corpora: Sequence[ParallelCorpus],
        tokenizer: SubwordTokenizer,
        batches: TokenBudgetBatches,
        max_length: int = 256,
        pool_size: int = 32_000,
        rank: int = 0,
        world_size: int = 1,
        with_targets: bool = True,
    ) -> None:
        self.corpora, self.tokenizer, self.batches, self.max_length = list(corpora), tokenizer, batches, max_length
        self.pool_size, self.rank, self.world_size, self.with_targets = pool_size, rank, world_size, with_targets
        self.sections: list[tuple[str, int]] = []
        self._kept: list[TranslationBatch] | None = None
        self._is_small: bool | None = None
        self._has_for_all = True

    def __len__(self) -> int:
        """Number of batches of this process, if the corpora fit into one pool.

        Raises:
            TypeError: If they do not, as Lightning expects it; or if there is none for some process, since Lightning
                would leave out the evaluation there, and the others would wait for it.
        """
        self._look()
        if self._kept is None or not self._has_for_all:
            raise TypeError("the length is told only of corpora that fit into a pool and have a batch for each process")
        return len(self._kept)

    def __iter__(self) -> Iterator[TranslationBatch]:
        """The batches of this process."""
        self._look()
        return iter(self._kept) if self._kept is not None else self._stream()

    def _look(self) -> None:
        if self._is_small is None:
            pools = self._pools()
            first = next(pools)
            self._is_small = next(pools, None) is None
            if self._is_small:
                batches = self._cut(*first)
                self._kept, self._has_for_all = self._mine(batches, 0), len(batches) >= self.world_size

    def _stream(self) -> Iterator[TranslationBatch]:
        turn = 0
        for first, pairs in self._pools():
            batches = self._cut(first, pairs)
            yield from self._mine(batches, turn)
            turn += len(batches)

    def _mine(self, batches: list[Callable[[], TranslationBatch]], turn: int) -> list[TranslationBatch]:
        return [make() for number, make in enumerate(batches, turn) if number % self.world_size == self.rank]

    def _pools(self) -> Iterator[tuple[int, list[SentencePair]]]:
        first = 0
        pairs: list[SentencePair] = []
        self.sections = []
        for label, corpus in zip(_labels(self.corpora), self.corpora, strict=True):
            self.sections.append((label, first + len(pairs)))
            for pair in corpus:
                pairs.append(pair)
                if len(pairs) == self.pool_size:
                    yield first, pairs
                    first, pairs = first + len(pairs), []
        if pairs:
            yield first, pairs
        elif first == 0:
            raise CorpusError(f"there is no sentence pair in {', '.join(map(repr, self.corpora))}")

    def _cut(self, first: int, pairs: list[SentencePair]) -> list[Callable[[], TranslationBatch]]:
        src = Ragged(self._shortened(self.tokenizer.encode_src([pair.src for pair in pairs]), first, "source", 0))
        texts = [pair.tgt for pair in pairs] if self.with_targets else []
        tgt = Ragged(self._shortened(self.tokenizer.encode_tgt(texts), first, "target", 1) or [[]] * len(pairs))
        lengths = src.lengths.tolist(), (tgt.lengths - 1).clip(0).tolist()
        batches = self.batches(*lengths, seed=f"{first}")
        batches += [[row] for row, both in enumerate(zip(*lengths, strict=True)) if not self.batches.fits(*both)]
        if len(batches) < self.world_size and first == 0:
            batches = deal(batches, self.world_size)
        return [lambda rows=rows: _with_text(collate(src, tgt, rows), pairs, rows, first) for rows in batches if rows]

    def _shortened(self, sentences: list[list[int]], first: int, side: str, extra: int) -> list[list[int]]:
        longest = self.max_length + extra  # BOS is not counted
        long = [number for number, ids in enumerate(sentences) if len(ids) > longest]
        if long:
            message = "%d %s sentences cut to max_length=%d tokens; the first is number %d"
            logger.warning(message, len(long), side, self.max_length, first + long[0])
        return [shortened(ids, longest) for ids in sentences]


def _labels(corpora: Sequence[ParallelCorpus]) -> list[str]:
    """The short names of the corpora; what several share is numbered."""
    labels = [corpus.label for corpus in corpora]
    shared = {label for label, count in Counter(labels).items() if count > 1}
    return [f"{label} ({number})" if label in shared else label for number, label in enumerate(labels, 1)]


def _with_text(batch: TranslationBatch, pairs: list[SentencePair], rows: Rows, first: int) -> TranslationBatch:
    batch.sources = [pairs[row].src for row in rows]
    batch.references = [pairs[row].tgt for row in rows]
    batch.indices = [first + row for row in rows]
    return batch
