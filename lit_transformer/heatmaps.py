"""Heat maps of attention weights on one sheet: sizes in inches, panels on a grid, readable tokens along the edges."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_transformer.attention_page import AttentionGrid
from lit_transformer.bidi import pointing
from lit_transformer.fonts import Lettering

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

ACCENTS = {"encoder": "#0c7a75", "decoder": "#683ebe", "cross": "#c2410c"}
INK, MUTED, MASKED = "#1e1b29", "#5f5a6e", "#e4e1ea"
TOP, CAPTION, GAP = 0.42, 0.3, 0.18  # inches: heading of the sheet, caption of a panel, space between panels
WIDE_CAPTION, NARROW_CAPTION = 2.3, 1.15  # inches: what captions take, even above a tiny panel
MAX_SIDE = 60.0  # inches, so that no picture outgrows memory


def blank_figure() -> Figure:
    """An empty white figure.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ModuleNotFoundError(
            'pictures need matplotlib, which is not installed: pip install "lit-transformer[plot]"', name="matplotlib"
        ) from error
    return Figure(facecolor="white")


@dataclass(frozen=True)
class Sheet:
    """Where the panels of a figure stand, all measures in inches.

    Args:
        shape: Rows and columns of panels.
        tokens: Most queries and most keys that a panel shows.
        cell: Side of the square that shows one weight.
        label: Width of the query labels on the left, height of the key labels below.
        every_column: Whether each column of panels has query labels, or only the first.
        right: Space on the right, for the tokens that are written and the colour scale.
    """

    shape: tuple[int, int]
    tokens: tuple[int, int]
    cell: float
    label: tuple[float, float]
    every_column: bool
    right: float

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the whole figure."""
        (rows, columns), (_, tall) = self.shape, self._slot
        return self._left(columns) - (self.label[0] if self.every_column else 0.0) + self.right, TOP + rows * tall

    def axes(self, figure: Figure, place: tuple[int, int], weights: Tensor) -> Axes:
        """Empty axes for the weights ``(queries, keys)`` in a row and column of the grid."""
        width, height = self.size
        wide, tall = weights.size(1) * self.cell / width, weights.size(0) * self.cell / height
        top = height - TOP - place[0] * self._slot[1] - CAPTION
        return figure.add_axes((self._left(place[1]) / width, top / height - tall, wide, tall))

    @property
    def _slot(self) -> tuple[float, float]:
        """Room that one panel takes, from its left edge to that of the next, and from top to top."""
        queries, keys = self.tokens
        if self.every_column:
            wide = max(self.label[0] + keys * self.cell, WIDE_CAPTION) + GAP
        else:
            wide = max(keys * self.cell, NARROW_CAPTION) + GAP
        return wide, CAPTION + queries * self.cell + self.label[1] + GAP

    def _left(self, column: int) -> float:
        return 0.15 + self.label[0] + column * self._slot[0]


def fit_sheet(
    grids: Sequence[AttentionGrid], lettering: Lettering, shape: tuple[int, int], every_column: bool
) -> Sheet:
    """A sheet with cells as large as the number of tokens and panels allows, and room for the longest labels.

    Args:
        grids: The attentions that are to be shown on it.
        lettering: How their tokens are written.
        shape: Rows and columns of panels.
        every_column: Whether each column of panels has query labels, or only the first.
    """
    queries, keys = max(len(grid.queries) for grid in grids), max(len(grid.keys) for grid in grids)
    room = min(6.0, MAX_SIDE / max(shape))
    cell = min(0.36, max(0.15, 3.2 / max(queries, keys)), room / max(queries, keys))
    font = font_size(cell)
    left = text_width([lettering.label(token) for grid in grids for token in grid.queries], font) + 0.12
    below = text_width([lettering.label(token) for grid in grids for token in grid.keys], font) * _slant(cell) + 0.12
    right = text_width([f"→ {lettering.label(token)}" for grid in grids for token in grid.written], font)
    return Sheet(shape, (queries, keys), cell, (left, below), every_column, right + 0.2)


def draw_weights(axes: Axes, grid: AttentionGrid, weights: Tensor) -> AxesImage:
    """Draws weights ``(queries, keys)`` as a heat map, cells that the causal mask hides in grey."""
    import numpy as np
    from matplotlib.colors import PowerNorm

    values = np.ma.masked_array(weights.numpy(), mask=hidden_cells(grid).numpy())
    # an exponent below 1 keeps small weights visible; the colour scale shows it
    image = axes.imshow(values, cmap=_colours(grid.kind), norm=PowerNorm(0.65, vmin=0.0, vmax=1.0), aspect="auto")
    draw_cell_edges(axes, weights)
    return image


def draw_cell_edges(axes: Axes, weights: Tensor) -> None:
    """Draws thin white lines between the cells of a heat map ``(rows, columns)`` and a faint frame around it."""
    rows, columns = weights.shape
    axes.vlines([edge - 0.5 for edge in range(1, columns)], -0.5, rows - 0.5, color="white", linewidth=0.6)
    axes.hlines([edge - 0.5 for edge in range(1, rows)], -0.5, columns - 0.5, color="white", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_color(MASKED)


def hidden_cells(grid: AttentionGrid) -> Tensor:
    """Which cells ``(queries, keys)`` the causal mask hides: those ahead, if no head of any layer looks there."""
    ahead = torch.ones(len(grid.queries), len(grid.keys), dtype=torch.bool).triu(1)
    looks_back = grid.kind == "decoder" and all(not bool(layer[:, ahead].any()) for layer in grid.layers)
    return ahead if looks_back else torch.zeros_like(ahead)


def label_axes(axes: Axes, grid: AttentionGrid, lettering: Lettering, cell: float, queries: bool = True) -> None:
    """Writes the keys below a heat map and, if asked, the queries beside it."""
    style = text_style(lettering) | {"fontsize": font_size(cell), "color": INK}
    across, down = _shown(len(grid.keys), cell), _shown(len(grid.queries), cell)
    turn: dict[str, Any] = {"rotation": 90, "ha": "center"}
    if _slant(cell) < 1:
        turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(across, labels=[lettering.label(grid.keys[place]) for place in across], **style, **turn)
    if queries:
        axes.set_yticks(down, labels=[lettering.label(grid.queries[place]) for place in down], **style)
    else:
        axes.set_yticks([])
    axes.tick_params(pad=3)


def name_positions(axis: Axis, tokens: Sequence[str], lettering: Lettering, upright: bool) -> None:
    """Writes tokens along one axis of a heat map in place of numbers, every n-th if they are many; nothing if none."""
    if tokens:
        places = range(0, len(tokens), math.ceil(len(tokens) / 40))
        turn: dict[str, Any] = {"rotation": 90} if upright else {}
        style = text_style(lettering) | {"fontsize": 7 if len(tokens) > 16 else 8.5, "color": INK}
        axis.set_ticks(places, labels=[lettering.label(tokens[place]) for place in places], **style, **turn)


def write_percentages(axes: Axes, weights: Tensor, hidden: Tensor, cell: float) -> None:
    """Writes each weight ``(queries, keys)`` of 5 % and more into its cell, where cells are large enough."""
    if cell < 0.3:
        return
    for query, key in ((weights >= 0.05) & ~hidden).nonzero().tolist():
        weight = float(weights[query, key])
        colour = "white" if weight > 0.45 else INK
        axes.text(key, query, f"{weight:.0%}".rstrip("%"), ha="center", va="center", fontsize=7, color=colour)


def label_written(axes: Axes, grid: AttentionGrid, lettering: Lettering, cell: float) -> None:
    """Writes on the right of a heat map which token each query is about to write."""
    style = text_style(lettering) | {"fontsize": font_size(cell), "color": MUTED, "va": "center", "clip_on": False}
    for place in _shown(len(grid.written), cell):
        if grid.written[place]:
            axes.text(len(grid.keys) - 0.35, place, pointing("", lettering.label(grid.written[place])), **style)


def add_scale(figure: Figure, image: AxesImage) -> None:
    """Puts a small colour scale from 0 to 1 into the upper right corner."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((1 - 1.45 / width, 1 - 0.26 / height, 1.2 / width, 0.1 / height))
    axes.set_label("colour scale")
    bar = figure.colorbar(image, cax=axes, orientation="horizontal", ticks=[0, 0.1, 0.5, 1])
    bar.ax.set_xticklabels(["0", "10 %", "50 %", "100 %"])
    bar.ax.tick_params(labelsize=6, length=2, pad=1, colors=MUTED)
    bar.outline.set_visible(False)


def text_style(lettering: Lettering) -> dict[str, Any]:
    """How tokens and sentences are written: in fonts that have them, and never read as a formula."""
    return {"fontfamily": list(lettering.families), "parse_math": False}


def font_size(cell: float) -> float:
    """Size of labels, in points, that suits cells of this side in inches."""
    return min(9.5, max(5.5, cell * 72 * 0.6))


def text_width(texts: Iterable[str], font: float) -> float:
    """Inches that the widest of these texts is likely to take; Korean and Chinese characters count double."""
    units = (sum(1.85 if unicodedata.east_asian_width(it) in "WF" else 1.0 for it in text) for text in texts)
    return max(units, default=0.0) * font * 0.6 / 72


def _shown(count: int, cell: float) -> range:
    """Places whose labels fit without touching: all of them, or every n-th in a long sentence."""
    return range(0, count, math.ceil(font_size(cell) * 1.1 / 72 / cell))


def _slant(cell: float) -> float:
    """Share of its length that a key label takes in height: slanted where there is room, else upright."""
    return 0.75 if cell >= 0.26 else 1.0


def _colours(kind: str) -> Colormap:
    """From white to the colour of the attention; hidden cells are grey."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(kind, ["#ffffff", ACCENTS[kind]]).with_extremes(bad=MASKED)


def two_colours() -> Colormap:
    """Grey for masked, a colour for what may be attended to."""
    from matplotlib.colors import ListedColormap

    return ListedColormap([MASKED, ACCENTS["encoder"]])
