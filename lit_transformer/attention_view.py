"""What every head looked at while a network read one sentence and wrote another: to save, to explore, to draw."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_transformer.attention_page import AttentionMaps, attention_page
from lit_transformer.bidi import pointing
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.errors import NoAttentionError
from lit_transformer.interfaces import Translation, TranslationNetwork
from lit_transformer.nn.evaluation import evaluating
from lit_transformer.vocabulary import PAD_ID

_FRAME_HEIGHT = 780  # pixels of a notebook that the page takes; it scrolls inside


@dataclass(frozen=True)
class _Maps:
    """Attention weights of one sentence pair, layer by layer."""

    encoder: list[Tensor]
    decoder: list[Tensor]
    cross: list[Tensor]


@dataclass(frozen=True)
class AttentionView:
    """What there is to see of one sentence pair. A notebook shows it as the page to explore.

    Args:
        maps: The weights of every layer and head, as the network's ``attention_maps`` returns them.
        src_tokens: The source tokens, readable, ``S`` of them.
        tgt_tokens: The target tokens from BOS to EOS, readable: the decoder reads each and writes the next, so there
            is one more than the ``T`` that it reads.
        target: The target as text.
        beams: The best translations that the search found, best first; empty if a target was given.
        source: The source as text.
        others: Maps and target tokens of the second best translation, the third, and so on.
    """

    maps: Any = field(repr=False)
    src_tokens: list[str]
    tgt_tokens: list[str]
    target: str
    beams: list[Translation]
    source: str = ""
    others: list[tuple[Any, list[str]]] = field(default_factory=list, repr=False)

    @property
    def title(self) -> str:
        """Source and target in one line."""
        return pointing(self.source, self.target) if self.source else self.target

    def page(self, title: str = "") -> str:
        """The HTML page to explore it, as one text without outside parts.

        Args:
            title: Heading of the page; the default is source and target.
        """
        beams = [(beam.text, beam.score) for beam in self.beams]
        return attention_page(
            self.maps, self.src_tokens, self.tgt_tokens, title=title or self.title, beams=beams, others=self.others
        )

    def save(self, path: str | Path) -> Path:
        """Writes the page to an HTML file, which works offline; missing folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.page(), encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that neither it nor the notebook can disturb the other."""
        return (
            f'<iframe title="{html.escape(self.title)}" sandbox="allow-scripts" width="100%" height="{_FRAME_HEIGHT}" '
            f'style="border: 0; border-radius: 8px" srcdoc="{html.escape(self.page())}"></iframe>'
        )


def attention_of(
    network: TranslationNetwork,
    tokenizer: SubwordTokenizer,
    src: Sequence[int],
    targets: Sequence[Sequence[int]],
    source: str,
    texts: Sequence[str],
    beams: Sequence[Translation] = (),
) -> AttentionView:
    """Leads a network through one source and one or several targets, and keeps where its heads look.

    Args:
        network: With a method ``attention_maps`` as ``Transformer`` has it; its dropout rests meanwhile.
        tokenizer: The tokenizer that it was trained with.
        src: Source ids, closed by EOS.
        targets: Target ids from BOS to EOS, best first.
        source: The source as text.
        texts: The targets as text.
        beams: What the search found, if the targets are its own.

    Raises:
        NoAttentionError: If the network has no ``attention_maps``.
    """
    attention_maps: Any = getattr(network, "attention_maps", None)
    if attention_maps is None:
        raise NoAttentionError(f"{type(network).__name__} has no attention_maps, so there is nothing to draw")
    device, width = next(network.parameters()).device, max(map(len, targets)) - 1
    read = torch.tensor([[*tgt[:-1], *[PAD_ID] * (width + 1 - len(tgt))] for tgt in targets], device=device)
    with evaluating(network):
        maps = attention_maps(torch.tensor([list(src)] * len(targets), device=device), read)
    views = [(_row(maps, row, len(tgt) - 1), tokenizer.pieces_tgt(tgt)) for row, tgt in enumerate(targets)]
    own, tgt_tokens = views[0]
    return AttentionView(own, tokenizer.pieces_src(src), tgt_tokens, texts[0], list(beams), source, views[1:])


def _row(maps: AttentionMaps, row: int, length: int) -> _Maps:
    """The maps of one row of a batch, without the padding of its target."""
    here = slice(row, row + 1)
    return _Maps(
        [layer[here] for layer in maps.encoder],
        [layer[here, :, :length, :length] for layer in maps.decoder],
        [layer[here, :, :length] for layer in maps.cross],
    )
