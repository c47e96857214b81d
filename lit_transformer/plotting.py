"""The mechanisms of the paper as pictures: the three attentions, positions, masks and the warm-up.

Every function returns a matplotlib ``Figure`` that belongs to nobody else: no window opens and no global setting
changes. Save it with ``figure.savefig("name.png")``, hand it to a logger, or let a notebook show it.
matplotlib comes with the extra ``plot``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lit_transformer import heatmaps
from lit_transformer.attention_page import (
    ATTENTION_NAMES,
    AttentionGrid,
    AttentionMaps,
    attention_grids,
    attention_page,
)
from lit_transformer.diagrams import plot_masks as plot_masks
from lit_transformer.diagrams import plot_positions as plot_positions
from lit_transformer.diagrams import plot_warmup as plot_warmup
from lit_transformer.errors import InputError
from lit_transformer.fonts import lettering_for
from lit_transformer.heatmaps import blank_figure as blank_figure

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 120
PICTURES = (".png", ".pdf", ".svg")  # the last two keep lines and letters sharp in print
_OTHER_PICTURES = (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".eps", ".ps", ".htm")


def plot_attention(
    maps: AttentionMaps, src_tokens: Sequence[str], tgt_tokens: Sequence[str], *, kind: str = "cross"
) -> Figure:
    """Heat maps of all heads of all layers of one of the three attentions.

    Rows of heat maps are layers, columns are heads. Within a heat map each row is a query, which asks, and each column
    a key, which answers; the weights of a row sum to 1. Grey cells are masked. What the decoder writes at each position
    stands on the right, behind an arrow.

    Source: Vaswani et al. 2017, section 3.2.3.

    Args:
        maps: Attention weights of a batch, as ``Transformer.attention_maps`` gives them. Sentence 0 is shown.
        src_tokens: The ``S`` source tokens as text.
        tgt_tokens: The target tokens as text, ``T`` from BOS or ``T + 1`` from BOS to EOS.
        kind: ``"encoder"``, ``"decoder"`` or ``"cross"``.

    Returns:
        The figure. Each axes is labelled ``"<attention> · layer <n> · head <n>"``, counted from 1.

    Raises:
        ValueError: If ``kind`` is another, or a map has another shape than the tokens ask for.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    blank = blank_figure()
    if kind not in ATTENTION_NAMES:
        raise ValueError(f"kind must be one of {', '.join(ATTENTION_NAMES)}; got {kind!r}")
    grid = attention_grids(maps, src_tokens, tgt_tokens)[kind]
    lettering = lettering_for([*grid.queries, *grid.keys, *grid.written])
    shape = len(grid.layers), max(len(layer) for layer in grid.layers)
    sheet = heatmaps.fit_sheet([grid], lettering, shape, every_column=False)
    blank.set_size_inches(sheet.size)
    for row, layer in enumerate(grid.layers):
        for column, weights in enumerate(layer):
            axes = sheet.axes(blank, (row, column), weights)
            axes.set_label(f"{grid.name} · layer {row + 1} · head {column + 1}")
            axes.set_title(f"layer {row + 1} · head {column + 1}", fontsize=8.5, color=heatmaps.INK, pad=4)
            image = heatmaps.draw_weights(axes, grid, weights)
            heatmaps.label_axes(axes, grid, lettering, sheet.cell, queries=column == 0)
        heatmaps.label_written(axes, grid, lettering, sheet.cell)
    _write_heading(blank, grid.name.capitalize(), heatmaps.ACCENTS[kind])
    heatmaps.add_scale(blank, image)
    return blank


def plot_overview(
    maps: AttentionMaps, src_tokens: Sequence[str], tgt_tokens: Sequence[str], *, layer: int = -1, title: str = ""
) -> Figure:
    """One layer at a glance: both self-attentions, averaged over their heads, beside each head that reads the source.

    Args:
        maps: Attention weights of a batch, as ``Transformer.attention_maps`` gives them. Sentence 0 is shown.
        src_tokens: The ``S`` source tokens as text.
        tgt_tokens: The target tokens as text, ``T`` from BOS or ``T + 1`` from BOS to EOS.
        layer: Which layer to show, from 0, or from the end if negative.
        title: Heading, such as ``"I love cats → 나는 고양이를 좋아해"``.

    Returns:
        The figure: encoder self-attention, decoder self-attention, then the heads of the encoder-decoder attention.

    Raises:
        ValueError: If a map has another shape than the tokens ask for, or ``layer`` does not exist.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    figure = blank_figure()
    grids = attention_grids(maps, src_tokens, tgt_tokens)
    depth = min(len(grid.layers) for grid in grids.values())
    if not -depth <= layer < depth:
        raise ValueError(
            f"layer must be between {-depth} and {depth - 1} for these maps of {depth} layers, got {layer}"
        )
    panels = _overview_panels(grids, layer)
    columns = 1 + math.ceil((len(panels) - 2) / 2)
    lettering = lettering_for([*src_tokens, *tgt_tokens, title])
    sheet = heatmaps.fit_sheet(list(grids.values()), lettering, (2, columns), every_column=True)
    figure.set_size_inches(sheet.size)
    for number, (grid, weights, caption) in enumerate(panels):
        row, column = (number, 0) if number < 2 else (divmod(number - 2, columns - 1))
        column += number >= 2
        axes = sheet.axes(figure, (row, column), weights)
        axes.set_label(f"{grid.name} · layer {range(len(grid.layers))[layer] + 1} · {caption}")
        heading = f"{grid.name} · average" if number < 2 else f"{grid.name.split()[0]} · {caption}"
        axes.set_title(heading, fontsize=8, color=heatmaps.ACCENTS[grid.kind], loc="left")
        image = heatmaps.draw_weights(axes, grid, weights)
        heatmaps.label_axes(axes, grid, lettering, sheet.cell)
        heatmaps.write_percentages(axes, weights, heatmaps.hidden_cells(grid), sheet.cell)
        if column == columns - 1:
            heatmaps.label_written(axes, grid, lettering, sheet.cell)
    _write_heading(figure, lettering.sentence(title), heatmaps.INK, lettering.families)
    heatmaps.add_scale(figure, image)
    return figure


def draw_attention(
    maps: AttentionMaps,
    src_tokens: Sequence[str],
    tgt_tokens: Sequence[str],
    output_stem: str | Path,
    *,
    title: str = "",
    reference: str = "",
    beams: Sequence[tuple[str, float]] = (),
    others: Sequence[tuple[AttentionMaps, Sequence[str]]] = (),
) -> list[Path]:
    """Writes all attention of one sentence pair to files: four pictures, and a page to explore.

    Args:
        maps: Attention weights of a batch, as ``Transformer.attention_maps`` gives them. Sentence 0 is shown.
        src_tokens: The ``S`` source tokens as text.
        tgt_tokens: The target tokens as text, ``T`` from BOS or ``T + 1`` from BOS to EOS.
        output_stem: Where to write, such as ``"pictures/cats"``. With the ending ``.png``, ``.pdf`` or ``.svg`` only
            pictures are written, of that kind, with ``.html`` only the page, which needs no matplotlib. Missing
            folders are made.
        title: Heading, such as ``"I love cats → 나는 고양이를 좋아해"``.
        reference: A human translation to compare with, for the page.
        beams: The hypotheses of the search with their scores, best first, for the page.
        others: Maps and target tokens of the second hypothesis, the third, and so on, for the page.

    Returns:
        The files: ``<stem>.png`` (overview of the last layer), ``<stem>-encoder.png``, ``<stem>-decoder.png``,
        ``<stem>-cross.png`` and ``<stem>.html``.

    Raises:
        ValueError: If a map has another shape than the tokens ask for.
        InputError: If ``output_stem`` is no name of a file, or ends as pictures of other kinds do.
        ModuleNotFoundError: If pictures are asked for and matplotlib is not installed.
    """
    stem, ending, picture = split_ending(output_stem)
    title = title or "What each head attends to"
    page = attention_page(maps, src_tokens, tgt_tokens, title=title, reference=reference, beams=beams, others=others)
    figures = {}
    if ending != ".html":
        figures[""] = plot_overview(maps, src_tokens, tgt_tokens, title=title)
        for kind in ATTENTION_NAMES:
            figures[f"-{kind}"] = plot_attention(maps, src_tokens, tgt_tokens, kind=kind)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}{name}{picture}") for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=PIXELS_PER_INCH)
    if ending in ("", ".html"):
        paths.append(stem.with_name(f"{stem.name}.html"))
        paths[-1].write_text(page, encoding="utf-8")
    return paths


def split_ending(output: str | Path) -> tuple[Path, str, str]:
    """What files are named after, the ending that says which of them to write, if one was given, and that of pictures.

    Example:
        >>> [(str(stem), *endings) for stem, *endings in map(split_ending, ("cats.svg", "cats.v2"))]
        [('cats', '.svg', '.svg'), ('cats.v2', '', '.png')]

    Raises:
        InputError: If it is a folder's name, such as ``.``, or ends as pictures of other kinds do.
    """
    path = Path(output)
    if path.name in ("", ".."):
        raise InputError(f"files cannot be named after {str(output)!r}: give a name such as {path / 'attention'}")
    ending = path.suffix.lower() if path.suffix.lower() in (*PICTURES, ".html") else ""
    if path.suffix.lower() in _OTHER_PICTURES:
        known = ", ".join(PICTURES)
        raise InputError(
            f"{output} cannot be written: pictures are {known}, the page is .html, and {path.with_suffix('')} alone "
            "writes both"
        )
    return path.with_suffix("") if ending else path, ending, ending if ending in PICTURES else PICTURES[0]


def pixels_of(figure: Figure) -> npt.NDArray[np.uint8]:
    """The picture as red, green and blue ``(height, width, 3)``, for loggers and widgets that take pixels."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(PIXELS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: npt.NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    return pixels.copy()


def _overview_panels(grids: dict[str, AttentionGrid], layer: int) -> list[tuple[AttentionGrid, Tensor, str]]:
    """Grid, weights and caption of each panel of the overview."""
    averages = [
        (grids[kind], grids[kind].layers[layer].mean(0), "average of all heads") for kind in ("encoder", "decoder")
    ]
    heads = grids["cross"].layers[layer]
    return averages + [(grids["cross"], weights, f"head {number}") for number, weights in enumerate(heads, start=1)]


def _write_heading(figure: Figure, text: str, colour: str, families: Sequence[str] = ("DejaVu Sans",)) -> None:
    """Writes a heading into the upper left corner, smaller and at last cut where it would not fit."""
    width, height = figure.get_size_inches()
    room = width - 1.8  # the colour scale stands on the right
    size = min(13.0, max(7.0, 13.0 * room / max(heatmaps.text_width([text], 13.0), 0.1)))
    while len(text) > 1 and heatmaps.text_width([text], size) > room:
        text = text[:-2] + "…"
    place = {"x": 0.15 / width, "y": 1 - 0.14 / height}
    figure.text(**place, s=text, va="top", fontsize=size, color=colour, fontfamily=list(families), parse_math=False)
