"""One self-contained HTML page to explore what each head attends to.

The page needs no network, no server and no library: layout, script and data are in one file. The same
data, checked once in ``attention_grids``, feeds the pictures of ``plotting``.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple, Protocol

from torch import Tensor

SCALE = 10_000  # weights are stored as whole numbers of ten-thousandths, a third of the size of decimals
ATTENTION_NAMES = {
    "encoder": "encoder self-attention",
    "decoder": "decoder self-attention",
    "cross": "encoder-decoder attention",
}


class AttentionMaps(Protocol):
    """What ``Transformer.attention_maps`` returns: weights ``(B, H, queries, keys)``, one tensor for each layer."""

    @property
    def encoder(self) -> Sequence[Tensor]:
        """Source tokens looking at source tokens, ``(B, H, S, S)`` for each layer."""

    @property
    def decoder(self) -> Sequence[Tensor]:
        """Target tokens looking at earlier target tokens, ``(B, H, T, T)`` for each layer."""

    @property
    def cross(self) -> Sequence[Tensor]:
        """Target tokens looking at source tokens, ``(B, H, T, S)`` for each layer."""


class AttentionGrid(NamedTuple):
    """One of the three attentions for one sentence, with the tokens of its rows and columns.

    ``layers`` has one tensor ``(H, queries, keys)`` for each layer. ``written`` is the token that the decoder predicts
    at each query, empty text where there is none.
    """

    kind: str
    layers: list[Tensor]
    queries: list[str]
    keys: list[str]
    written: list[str]

    @property
    def name(self) -> str:
        """The paper's name of this attention."""
        return ATTENTION_NAMES[self.kind]


def attention_grids(
    maps: AttentionMaps, src_tokens: Sequence[str], tgt_tokens: Sequence[str]
) -> dict[str, AttentionGrid]:
    """The three attentions of the first sentence of a batch, checked against its tokens.

    Args:
        maps: Attention weights of a batch, see ``AttentionMaps``. Only sentence 0 is used.
        src_tokens: The ``S`` source tokens of sentence 0 as text.
        tgt_tokens: Its target tokens as text: either the ``T`` that the decoder reads (BOS first), or all ``T + 1``
            from BOS to EOS. With the latter the last position, too, shows what it writes.

    Returns:
        The grids by kind: ``"encoder"``, ``"decoder"`` and ``"cross"``.

    Raises:
        ValueError: If a map has another shape than the tokens ask for, or is not finite.
    """
    src, tgt = list(src_tokens), list(tgt_tokens)
    read = tgt[: maps.decoder[0].size(-2)] if len(maps.decoder) else tgt
    written = [*tgt[1:], ""][: len(read)]
    none = [""] * len(src)
    grids = {
        "encoder": AttentionGrid("encoder", [m[0].detach().float().cpu() for m in maps.encoder], src, src, none),
        "decoder": AttentionGrid("decoder", [m[0].detach().float().cpu() for m in maps.decoder], read, read, written),
        "cross": AttentionGrid("cross", [m[0].detach().float().cpu() for m in maps.cross], read, src, written),
    }
    for grid in grids.values():
        _check(grid)
    if len(tgt) - len(read) not in (0, 1):
        raise ValueError(
            f"tgt_tokens must be the {len(read)} tokens that the decoder read, or these and EOS; got {len(tgt)} tokens"
        )
    return grids


def attention_page(
    maps: AttentionMaps,
    src_tokens: Sequence[str],
    tgt_tokens: Sequence[str],
    *,
    title: str = "What each head attends to",
    reference: str = "",
    beams: Sequence[tuple[str, float]] = (),
    others: Sequence[tuple[AttentionMaps, Sequence[str]]] = (),
) -> str:
    """An HTML page to explore the three attentions of every layer and head, as one text without outside parts.

    The reader chooses the attention, the layer and the head, and points at a token to see where it looks, or who looks
    at it; by pointer, touch or keyboard. The address can name a view:
    ``attention.html#kind=cross&layer=2&head=3&token=1`` (counted from 1; ``head=average`` for the mean, ``key=1`` for
    a token that is looked at, ``beam=2`` for the second hypothesis).

    Args:
        maps: Attention weights of a batch, as ``Transformer.attention_maps`` gives them. Sentence 0 is shown.
        src_tokens: The ``S`` source tokens as text.
        tgt_tokens: The target tokens as text, ``T`` from BOS or ``T + 1`` from BOS to EOS.
        title: Heading of the page, such as ``"I love cats → 나는 고양이를 좋아해"``.
        reference: A human translation to compare with; left out if empty.
        beams: The hypotheses of the search with their scores, best first.
        others: Maps and target tokens of the second hypothesis, the third, and so on; these can then be chosen, too.

    Returns:
        The page. Write it to a file in UTF-8.

    Raises:
        ValueError: If a map has another shape than the tokens ask for.
    """
    grids = attention_grids(maps, src_tokens, tgt_tokens)
    data = {
        "scale": SCALE,
        "reference": reference,
        "beams": [{"text": text, "score": round(score, 4)} for text, score in beams],
        "grids": [_grid_data(grid) for grid in grids.values()],
        "others": [_other_grids(src_tokens, *other) for other in others],
    }
    parts = {"title": html.escape(title), "data": _script_json(data), "style": _part("css"), "script": _part("js")}
    return re.sub(r"\{\{(title|data|style|script)\}\}", lambda match: parts[match[1]], _part("html"))


def _part(ending: str) -> str:
    """One of the files beside this one that the page is made of."""
    return files("lit_transformer").joinpath(f"attention_page.{ending}").read_text(encoding="utf-8")


def _check(grid: AttentionGrid) -> None:
    """Raises ValueError unless every layer has a row for each query and a column for each key."""
    expected = (len(grid.queries), len(grid.keys))
    if not grid.layers:
        raise ValueError(f"maps.{grid.kind} must have at least one layer, got none")
    for number, layer in enumerate(grid.layers, start=1):
        if tuple(layer.shape[1:]) != expected or layer.dim() != 3:
            raise ValueError(
                f"maps.{grid.kind} of layer {number} must be (B, H, {expected[0]}, {expected[1]}) to fit the tokens: "
                f"{expected[0]} queries and {expected[1]} keys; got (B, {', '.join(map(str, layer.shape))})"
            )
        if not bool(layer.isfinite().all()):
            raise ValueError(f"maps.{grid.kind} of layer {number} must be finite weights, got infinity or NaN")


def _grid_data(grid: AttentionGrid) -> dict[str, Any]:
    """The grid as plain data, weights as whole numbers out of ``SCALE``."""
    layers = [(layer * SCALE).round().int().tolist() for layer in grid.layers]
    tokens = {"queries": grid.queries, "keys": grid.keys, "written": grid.written}
    return {"kind": grid.kind, "name": grid.name, **tokens, "layers": layers}


def _other_grids(src_tokens: Sequence[str], maps: AttentionMaps, tgt_tokens: Sequence[str]) -> list[dict[str, Any]]:
    """The grids of a further hypothesis but for the encoder, which knows nothing of it."""
    grids = attention_grids(maps, src_tokens, tgt_tokens)
    return [_grid_data(grid) for kind, grid in grids.items() if kind != "encoder"]


def _script_json(data: Any) -> str:
    """JSON that no text inside can break out of a script element: no ``<``, no ``&``, nothing beyond ASCII."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
