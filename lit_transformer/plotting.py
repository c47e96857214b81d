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

import torch
from torch import Tensor, nn

from lit_transformer import heatmaps
from lit_transformer.attention_page import (
    ATTENTION_NAMES,
    AttentionGrid,
    AttentionMaps,
    attention_grids,
    attention_page,
)
from lit_transformer.fonts import lettering_for

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 120


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


def plot_positions(d_model: int = 128, length: int = 64, *, positions: nn.Module | None = None) -> Figure:
    """What is added to the embeddings to tell positions apart, as a table and as waves.

    Source: Vaswani et al. 2017, section 3.5.

    Args:
        d_model: Width of the token representations, in features. Must be even.
        length: How many positions to draw, in tokens.
        positions: The part of a network that adds them, such as ``network.src_positions``, learned ones too; None
            for the sines and cosines of the paper.

    Returns:
        The figure: all features of all positions, and four features over the positions.

    Raises:
        ValueError: If ``d_model`` is odd and the positions are the paper's.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    figure = blank_figure()
    from lit_transformer.nn.embedding import SinusoidalPositions

    positions = positions or SinusoidalPositions(d_model, max_length=length)
    with torch.inference_mode():
        device = next(positions.parameters(), torch.zeros(0)).device
        table = positions(torch.zeros(1, length, d_model, device=device))[0].float().cpu()
    is_wave = isinstance(positions, SinusoidalPositions)
    size = 1.0 if is_wave else float(table.abs().max())
    figure.set_size_inches(9, 4)
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2)
    image = left.imshow(table.numpy(), cmap="PuOr", vmin=-size, vmax=size, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=left, ticks=[-1, 0, 1] if is_wave else None)
    _describe(left, f"every position, all {d_model} features", "feature", "position, in tokens")
    for feature in sorted({2 * (d_model // 2 * part // 8) for part in (1, 2, 3, 4)}):
        right.plot(table[:, feature].numpy(), label=f"feature {feature}", linewidth=1.4)
    right.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, -0.32), frameon=False)
    caption = "sines of four features, from fast to slow" if is_wave else "four features, as they were learned"
    _describe(right, caption, "position, in tokens", "value added to the embedding")
    return figure


def plot_masks(
    src: Tensor, tgt_length: int, *, src_tokens: Sequence[str] = (), tgt_tokens: Sequence[str] = ()
) -> Figure:
    """What may be attended to: source tokens but not padding, and target tokens but none that come later.

    Source: Vaswani et al. 2017, section 3.2.3.

    Args:
        src: Source ids ``(B, S)``, padded on the right.
        tgt_length: Length of the target, in tokens.
        src_tokens: What to write at the ``S`` source positions, for a batch of one sentence; numbers if empty.
        tgt_tokens: What to write at the target positions; numbers if empty.

    Returns:
        The figure: the padding mask ``(B, S)`` and the causal mask ``(T, T)``.

    Raises:
        ValueError: If ``src`` is not a batch of rows, ``tgt_length`` is below 1, or there are not as many tokens.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    figure = blank_figure()
    if src.dim() != 2:
        raise ValueError(f"src must be a batch of ids (B, S), got the shape {tuple(src.shape)}")
    if tgt_length < 1:
        raise ValueError(f"tgt_length must be at least 1 token, got {tgt_length}")
    for name, tokens, length in (("src", src_tokens, src.size(1)), ("tgt", tgt_tokens, tgt_length)):
        if tokens and len(tokens) != length:
            raise ValueError(f"{name}_tokens must be {length}, one for each position; got {len(tokens)}")
    figure.set_size_inches(9, 4)
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2)
    from lit_transformer.nn.attention import causal_mask, padding_mask

    for axes, mask in ((left, padding_mask(src.cpu()).squeeze(1, 2)), (right, causal_mask(tgt_length))):
        axes.imshow(mask.numpy(), cmap=heatmaps.two_colours(), vmin=0, vmax=1)
        heatmaps.draw_cell_edges(axes, mask)
        axes.locator_params(integer=True)
    _describe(left, "padding mask: coloured may be attended to", "source position (key)", "sentence of the batch")
    _describe(right, "causal mask: no token sees a later one", "target position (key)", "target position (query)")
    lettering = lettering_for([*src_tokens, *tgt_tokens])
    heatmaps.name_positions(left.xaxis, src_tokens, lettering, upright=True)
    heatmaps.name_positions(right.xaxis, tgt_tokens, lettering, upright=True)
    heatmaps.name_positions(right.yaxis, tgt_tokens, lettering, upright=False)
    return figure


def plot_warmup(d_model: int | Sequence[int] = 512, warmup_steps: int = 4000, *, num_steps: int = 20_000) -> Figure:
    """The learning rate of the paper over training: it rises linearly, then falls with the root of the step.

    Source: Vaswani et al. 2017, section 5.3, equation 3.

    Args:
        d_model: Width of the model in features, or several widths to compare.
        warmup_steps: Optimizer steps until the peak.
        num_steps: How many optimizer steps to draw.

    Returns:
        The figure, one curve for each width.

    Raises:
        ValueError: If a number is below 1.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    figure = blank_figure()
    widths = [d_model] if isinstance(d_model, int) else list(d_model)
    if min(*widths, warmup_steps, num_steps, 1) < 1 or not widths:
        raise ValueError(
            f"d_model, warmup_steps and num_steps must be at least 1, got {widths}, {warmup_steps}, {num_steps}"
        )
    figure.set_size_inches(7, 4)
    axes = figure.subplots()
    steps = range(1, num_steps + 1)
    for width in widths:
        rates = [width**-0.5 * min(step**-0.5, step * warmup_steps**-1.5) for step in steps]
        axes.plot(steps, rates, label=f"d_model {width}, peak {(width * warmup_steps) ** -0.5:.2g}")
    if warmup_steps <= num_steps:
        axes.axvline(warmup_steps, color=heatmaps.MUTED, linewidth=0.8, linestyle=":")
    axes.legend(fontsize=8)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _describe(axes, f"warm-up over {warmup_steps:,} steps", "optimizer step", "learning rate")
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
        output_stem: Where to write, such as ``"pictures/cats"``. With the ending ``.png`` only pictures are written,
            with ``.html`` only the page, which needs no matplotlib. Missing folders are made.
        title: Heading, such as ``"I love cats → 나는 고양이를 좋아해"``.
        reference: A human translation to compare with, for the page.
        beams: The hypotheses of the search with their scores, best first, for the page.
        others: Maps and target tokens of the second hypothesis, the third, and so on, for the page.

    Returns:
        The files: ``<stem>.png`` (overview of the last layer), ``<stem>-encoder.png``, ``<stem>-decoder.png``,
        ``<stem>-cross.png`` and ``<stem>.html``.

    Raises:
        ValueError: If a map has another shape than the tokens ask for.
        ModuleNotFoundError: If pictures are asked for and matplotlib is not installed.
    """
    stem = Path(output_stem)
    ending = stem.suffix if stem.suffix in (".png", ".html") else ""
    stem = stem.with_suffix("") if ending else stem
    title = title or "What each head attends to"
    page = attention_page(maps, src_tokens, tgt_tokens, title=title, reference=reference, beams=beams, others=others)
    figures = {}
    if ending != ".html":
        figures[""] = plot_overview(maps, src_tokens, tgt_tokens, title=title)
        for kind in ATTENTION_NAMES:
            figures[f"-{kind}"] = plot_attention(maps, src_tokens, tgt_tokens, kind=kind)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}{name}.png") for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=PIXELS_PER_INCH)
    if ending != ".png":
        paths.append(stem.with_name(f"{stem.name}.html"))
        paths[-1].write_text(page, encoding="utf-8")
    return paths


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


def _describe(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Names a diagram and its two directions."""
    axes.set_title(title, fontsize=10, color=heatmaps.INK)
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
