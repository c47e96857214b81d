"""Word alignments read off the encoder-decoder attention: which source word does each target word come from.

A link is written ``3-5``: source word 3 and target word 5, both counted from 0, words being what stands between white
space. One line for each sentence pair is the Pharaoh format of statistical machine translation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lit_transformer.data.batching import batches_by_length, padded, shortened
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import InputError, TranslationNetwork
from lit_transformer.nn.evaluation import evaluating

Link = tuple[int, int]
_WINDOW = 1024  # pairs sorted by length together; bounds the memory of a stream


def pharaoh(links: Iterable[Link]) -> str:
    """Links as one line of the Pharaoh format.

    Example:
        >>> pharaoh([(0, 0), (2, 1)])
        '0-0 2-1'
    """
    return " ".join(f"{source}-{target}" for source, target in links)


def hard_alignment(weights: Tensor, src_words: Sequence[int | None], tgt_words: Sequence[int | None]) -> list[Link]:
    """The links between words that attention weights between tokens speak for.

    Each target token is linked to the source token with the largest weight, and two words are linked if any of their
    tokens are. Tokens that belong to no word, such as EOS, tags and the full stop of ``cats.``, take no part.

    Source: Garg et al. 2019, "Jointly Learning to Align and Translate with Transformer Models", section 4; joining
    tokens to words as in Zenkel et al. 2019.

    Args:
        weights: Attention ``(T, S)`` of each target token, at the step that writes it, over the source tokens.
        src_words: Number of the word that each source token is part of, None if there is none.
        tgt_words: The same of each target token.

    Returns:
        The links, in order of source word and target word, each once.

    Raises:
        ValueError: If the weights have another shape than the words ask for.

    Example:
        >>> weights = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
        >>> hard_alignment(weights, [0, 1, None], [0, 1])
        [(0, 1), (1, 0)]
    """
    if tuple(weights.shape) != (len(tgt_words), len(src_words)):
        raise ValueError(
            f"weights must be ({len(tgt_words)}, {len(src_words)}), a row for each target token and a column for each "
            f"source token; got {tuple(weights.shape)}"
        )
    silent = torch.tensor([word is None for word in src_words], dtype=torch.bool)
    if bool(silent.all()) or not len(tgt_words):
        return []
    best = weights.float().cpu().masked_fill(silent, -torch.inf).argmax(dim=1).tolist()
    links = {(src_words[token], word) for token, word in zip(best, tgt_words, strict=True)}
    return sorted((source, target) for source, target in links if source is not None and target is not None)


class AttentionAligner:
    """Aligns sentence pairs by the encoder-decoder attention of one layer, averaged over its heads.

    The network reads the source and is led through the target; at each target token it is asked where in the source it
    looks while it writes that token.

    Source: Garg et al. 2019, section 4: of a Transformer trained for nothing but translation, the attention of the
    penultimate layer, averaged over the heads, is the one that aligns.

    Args:
        network: With a method ``cross_attention`` as ``Transformer`` has it; its dropout rests meanwhile.
        tokenizer: The tokenizer that it was trained with.
        layer: Decoder layer, counted from 1; None for the penultimate, or the only one.
        max_length: Longer sentences are cut to this many tokens; what is cut off stays without links.
        max_tokens: Budget of a batch, in tokens of the longer side with padding.
        max_tgt_length: The same as ``max_length`` for targets; None for ``max_length``.

    Raises:
        InputError: If the network has no ``cross_attention``, or no such layer.
    """

    def __init__(
        self,
        network: TranslationNetwork,
        tokenizer: SubwordTokenizer,
        layer: int | None = None,
        max_length: int = 512,
        max_tokens: int = 4096,
        max_tgt_length: int | None = None,
    ) -> None:
        attention: Any = getattr(network, "cross_attention", None)
        if attention is None:
            raise InputError(f"{type(network).__name__} has no cross_attention, so it cannot align words")
        num_layers: Any = getattr(network, "num_decoder_layers", layer)
        layer = max((num_layers or 1) - 1, 1) if layer is None else layer
        if not 1 <= layer <= (num_layers or layer):
            raise InputError(f"the alignment layer must be between 1 and {num_layers}, got {layer}")
        self.network, self.tokenizer, self.layer = network, tokenizer, layer
        self.max_length, self.max_tokens = max_length, max_tokens
        self.max_tgt_length = max_length if max_tgt_length is None else max_tgt_length
        self._attention = attention

    def __call__(self, pairs: Iterable[tuple[str, str]]) -> Iterator[list[Link]]:
        """Yields the links of each pair of source and target, in order and in constant memory."""
        stream = iter(pairs)
        while window := list(islice(stream, _WINDOW)):
            yield from self._window(window)

    def _window(self, pairs: list[tuple[str, str]]) -> list[list[Link]]:
        found: list[list[Link]] = [[] for _ in pairs]
        filled = [place for place, (source, target) in enumerate(pairs) if source.strip() and target.strip()]
        sources, targets = ([pairs[place][side] for place in filled] for side in (0, 1))
        src_words, tgt_words = self.tokenizer.words_src(sources), self.tokenizer.words_tgt(targets)
        src = {place: _cut(words, self.max_length) for place, words in zip(filled, src_words, strict=True)}
        tgt = {place: _cut(words, self.max_tgt_length) for place, words in zip(filled, tgt_words, strict=True)}
        length = {place: max(len(src[place][0]), len(tgt[place][0])) for place in filled}
        for batch in batches_by_length(length, self.max_tokens):
            weights = self._weights([src[one][0] for one in batch], [tgt[one][0] for one in batch])
            for row, one in enumerate(batch):
                words = tgt[one][1][1:]  # BOS is read, never written
                found[one] = hard_alignment(weights[row, : len(words), : len(src[one][1])], src[one][1], words)
        return found

    @torch.inference_mode()
    def _weights(self, src: list[list[int]], tgt: list[list[int]]) -> Tensor:
        """Attention ``(B, T, S)`` at the steps that write ``tgt`` after its BOS."""
        device = next(self.network.parameters()).device
        tensors = [padded(src).to(device), padded([row[:-1] for row in tgt]).to(device)]
        with evaluating(self.network):
            found: Tensor = self._attention(*tensors, layer=self.layer - 1)
        return found.float().mean(dim=1).cpu()


def _cut(sentence: tuple[list[int], list[int | None]], longest: int) -> tuple[list[int], list[int | None]]:
    """Ids and the words that they belong to, without what is too long."""
    ids, words = sentence
    return shortened(ids, longest), shortened(words, longest)
