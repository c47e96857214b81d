"""What belongs to the network rather than to a sentence, as pictures: positions, masks and the warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_transformer import heatmaps
from lit_transformer.fonts import lettering_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    figure = heatmaps.blank_figure()
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
    figure = heatmaps.blank_figure()
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
    if src_tokens:  # one sentence, so there is nothing to tell apart
        left.set_yticks([])
        left.set_ylabel("")
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
    figure = heatmaps.blank_figure()
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


def _describe(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Names a diagram and its two directions."""
    axes.set_title(title, fontsize=10, color=heatmaps.INK)
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
