"""How likely a network finds translations that are there already."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch

from lit_transformer.data.batching import batches_by_length, padded, shortened
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import TranslationNetwork
from lit_transformer.nn.evaluation import evaluating
from lit_transformer.vocabulary import PAD_ID

logger = logging.getLogger(__name__)

_WINDOW = 2048  # pairs sorted by length together; bounds the memory of a stream
_MAX_SCORES = 2**26  # of all words after all positions of a batch: 256 MiB in float32


class PairScore(NamedTuple):
    """How likely a translation is.

    Args:
        log_prob: Sum of the log probabilities of its tokens and of EOS, in nats.
        length: The number of these tokens, EOS included.
    """

    log_prob: float
    length: int


class PairScorer:
    """Scores sentence pairs by leading the network through the target, all positions at once.

    A network may tell good pairs of a noisy corpus from bad ones by this, or, as one of the other direction, choose
    among the n best translations of another.

    Args:
        network: Whose probabilities are asked for; its dropout rests meanwhile.
        tokenizer: The tokenizer that it was trained with.
        max_length: Longer sources are cut to this many tokens, EOS included, with a warning.
        max_tokens: Budget of a batch, in tokens of the longer side with padding.
        max_tgt_length: The same as ``max_length`` for targets; None for ``max_length``.
    """

    def __init__(
        self,
        network: TranslationNetwork,
        tokenizer: SubwordTokenizer,
        max_length: int = 512,
        max_tokens: int = 4096,
        max_tgt_length: int | None = None,
    ) -> None:
        self.network, self.tokenizer, self.max_length = network, tokenizer, max_length
        self.max_tgt_length = max_length if max_tgt_length is None else max_tgt_length
        self.max_tokens = max(1, min(max_tokens, _MAX_SCORES // network.vocab_size))

    def __call__(self, pairs: Iterable[tuple[str, str]]) -> Iterator[PairScore]:
        """Yields the score of each pair of source and target, in order and in constant memory.

        Of a source without text only the empty translation is possible, with log probability 0.
        """
        stream, start = iter(pairs), 0
        while window := list(islice(stream, _WINDOW)):
            yield from self._window(window, start)
            start += len(window)

    def _window(self, pairs: list[tuple[str, str]], start: int) -> list[PairScore]:
        is_blank = [self.tokenizer.is_blank(source) for source, _ in pairs]
        found = [PairScore(-float("inf") if target.strip() else 0.0, 1) for _, target in pairs]
        filled = [place for place, blank in enumerate(is_blank) if not blank]
        src = self.tokenizer.encode_src([pairs[place][0] for place in filled])
        tgt = self.tokenizer.encode_tgt([pairs[place][1] for place in filled])
        rows = {
            place: self._cut(source, target, start + place + 1)
            for place, source, target in zip(filled, src, tgt, strict=True)
        }
        lengths = {place: max(len(source), len(target)) for place, (source, target) in rows.items()}
        for batch in batches_by_length(lengths, self.max_tokens):
            for place, score in zip(batch, self._scores([rows[place] for place in batch]), strict=True):
                found[place] = score
        return found

    def _cut(self, source: list[int], target: list[int], number: int) -> tuple[list[int], list[int]]:
        """The ids of a pair without what is too long; BOS does not count."""
        src = _cut(source, self.max_length, "source", number)
        return src, [target[0], *_cut(target[1:], self.max_tgt_length, "target", number)]

    @torch.inference_mode()
    def _scores(self, rows: list[tuple[list[int], list[int]]]) -> list[PairScore]:
        device = next(self.network.parameters()).device
        src, tgt = (padded([row[side] for row in rows]).to(device) for side in (0, 1))
        labels = tgt[:, 1:]  # (B, T)
        with evaluating(self.network):
            logits = self.network(src, tgt[:, :-1])  # (B, T, V)
        log_probs = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        each = log_probs.gather(2, labels.unsqueeze(2)).squeeze(2).masked_fill(labels == PAD_ID, 0)
        lengths = (labels != PAD_ID).sum(1)
        return [PairScore(*both) for both in zip(each.sum(1).tolist(), lengths.tolist(), strict=True)]


def _cut(ids: list[int], longest: int, side: str, number: int) -> list[int]:
    """Ids without what is too long, which is told."""
    if len(ids) > longest:
        logger.warning("%s line %d has %d tokens and is cut to %d", side, number, len(ids), longest)
    return shortened(ids, longest)
