"""Learning curves: what a run logged step by step, drawn as one picture, several runs beside each other."""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_transformer.command_options import command_parser
from lit_transformer.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = dict[int, float]  # optimizer step, counted from 1, and the value there

PANELS = {  # what stands in one diagram: title, and the names that are logged
    "loss per token": ("train/loss", "val/loss"),
    "perplexity, without smoothing": ("train/perplexity", "val/perplexity"),
    "scores of translations": ("val/bleu", "val/chrf"),
}
_COLOURS = ("#0c7a75", "#c2410c", "#683ebe", "#1e1b29", "#b45309", "#0369a1")
_FIRST_SHARE = 0.02  # of the steps, left out when the height of a diagram is chosen: a fresh network is far off


def read_curves(run: str | Path) -> dict[str, Curve]:
    """Everything that a run logged into CSV files, by name.

    A run that was resumed has a file for each start; where two of them speak of the same step, the later one counts.
    What ``validate`` and ``test`` logged into the folder is passed over.

    Args:
        run: The folder of the run, or of its logs, or one ``metrics.csv``.

    Returns:
        For each logged name its values by optimizer step, counted from 1, in order.

    Raises:
        InputError: If there is no such file, it holds no metrics, or the folder holds several runs.
    """
    path = Path(run)
    files = [path] if path.is_file() else sorted(path.rglob("metrics.csv"), key=_version)
    curves: dict[str, Curve] = {}
    runs = {file.parent.parent if file.parent.name.startswith("version_") else file.parent for file in files}
    if len(runs) > 1:
        names = ", ".join(sorted(str(run) for run in runs))
        raise InputError(f"{path} holds the logs of several runs ({names}): name the folder of each run")
    for file in files:
        try:
            _read(file, curves, is_given=file == path)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{file} is no table of metrics: {error}") from None
    if not curves and (files or next(path.rglob("version_*/hparams.yaml"), None)):
        raise InputError(
            f"{path} has a log that holds no figures of a training: nothing was logged yet, likely because the run is "
            "shorter than trainer.log_every_n_steps (50 unless it is set); fit with a lower one"
        )
    if not curves:
        raise InputError(
            f"{path} holds no metrics.csv of a training; name the folder of a run. fit writes one unless "
            "trainer.logger is another; then list lightning.pytorch.loggers.CSVLogger beside it"
        )
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def _read(file: Path, curves: dict[str, Curve], is_given: bool) -> None:
    with file.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines)
        names = table.fieldnames or ()
        if "step" not in names:
            raise InputError(f"{file} is no table of metrics: it has no column named step")
        rows = list(table)
        is_training = any(name.startswith("train/") for name in names) or any(
            row["step"] not in ("", "0") for row in rows
        )
        if is_given or is_training:  # scoring a run logs everything at step 0
            for row in rows:
                _add(curves, row, file)


def _add(curves: dict[str, Curve], row: dict[str, str], file: Path) -> None:
    try:
        step = int(row["step"]) + 1  # Lightning counts from 0
        for name, value in row.items():
            if value and name not in ("step", "epoch"):
                curves.setdefault(name, {})[step] = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{file} is damaged: {row} is no row of numbers") from None


def _version(path: Path) -> tuple[int, str]:
    number = path.parent.name.rpartition("_")[2]
    return (int(number) if number.isdigit() else -1, str(path))


def plot_curves(runs: dict[str, dict[str, Curve]]) -> Figure:
    """Loss, perplexity and scores over the optimizer steps, each run in its colour.

    Training is a pale line, since a single batch may be an easy one, with its running mean over it; validation has
    dots. The best value of each score is written beside it.

    Args:
        runs: For each run, by the name in the legend, what ``read_curves`` gives. What is no finite number, as after a
            divergence, leaves a gap.

    Returns:
        The figure; diagrams for which nothing was logged are left out.

    Raises:
        InputError: If none of the runs logged anything that can be drawn.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    from lit_transformer.plotting import blank_figure

    figure = blank_figure()
    runs = {run: {name: _finite(curve) for name, curve in curves.items()} for run, curves in runs.items()}
    drawn = {
        title: names
        for title, names in PANELS.items()
        if any(name in curves for curves in runs.values() for name in names)
    }
    if not drawn:
        raise InputError(f"nothing to draw: {', '.join(runs)} logged no loss, perplexity or score")
    figure.set_size_inches(4.6 * len(drawn), 3.8)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axes, (title, names) in zip(panels, drawn.items(), strict=True):
        _draw_panel(axes, title, names, runs)
    return figure


def _draw_panel(axes: Axes, title: str, names: Sequence[str], runs: dict[str, dict[str, Curve]]) -> None:
    seen: list[float] = []
    for number, (run, curves) in enumerate(runs.items()):
        for name in (name for name in names if name in curves):
            colour = _COLOURS[number % len(_COLOURS)]
            label = name if len(runs) == 1 else f"{run} · {name}"
            is_training = name.startswith("train/")
            if len(runs) == 1 and not is_training:  # one run alone has a colour for each line
                colour = _COLOURS[1 + names.index(name)]
            _draw_curve(axes, curves[name], label, colour, is_training)
            seen += _settled(curves[name])
    if title.startswith("perplexity"):
        axes.set_yscale("log")
    elif title.startswith("loss"):
        axes.set_ylim(min(seen, default=0) - 0.2, max(seen, default=1) + 0.2)
    else:
        axes.margins(y=0.1)  # room for the best values
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("optimizer step", fontsize=9)
    axes.grid(color="#e4e1ea", linewidth=0.6)
    axes.legend(fontsize=7, frameon=False)


def _draw_curve(axes: Axes, curve: Curve, label: str, colour: str, is_training: bool) -> None:
    steps, values = list(curve), list(curve.values())
    if is_training:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
        axes.plot(steps, running_mean(values), label=label, color=colour, linewidth=1.2)
        return
    axes.plot(steps, values, label=label, color=colour, linewidth=1.8, marker="o", markersize=2.5)
    if label.endswith(("bleu", "chrf")) and (known := _numbers(curve)):
        best = max(known, key=lambda step: curve[step])
        axes.annotate(
            f"{curve[best]:.1f}",
            (best, curve[best]),
            xytext=(0, -9 if label.endswith("bleu") else 4),  # apart from each other where both scores are high
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=colour,
        )


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and those around it, a sixtieth of all on either side; fewer at both ends.

    Example:
        >>> running_mean([1.0, 2.0, 6.0])
        [1.5, 3.0, 4.0]
    """
    reach = max(1, len(values) // 60)
    windows = (values[max(0, place - reach) : place + reach + 1] for place in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _finite(curve: Curve) -> Curve:
    """The curve with NaN, which is drawn as a gap, for whatever is not finite."""
    return {step: value if math.isfinite(value) else math.nan for step, value in curve.items()}


def _numbers(curve: Curve) -> Curve:
    return {step: value for step, value in curve.items() if math.isfinite(value)}


def _settled(curve: Curve) -> list[float]:
    known = _numbers(curve)
    last = max(known, default=0)
    return [value for step, value in known.items() if step > _FIRST_SHARE * last] or list(known.values())


def curves_parser() -> argparse.ArgumentParser:
    """The options of ``curves``."""
    parser = command_parser(
        "curves",
        "Draws the learning curves of runs: loss, perplexity and scores over the optimizer steps.",
        "The numbers come from the metrics.csv that fit writes; a run that still goes on can be drawn too.\n\n"
        "examples:\n"
        "  lit-transformer curves runs/tiny\n"
        "  lit-transformer curves runs/tiny runs/base --output both.png",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or a metrics.csv")
    parser.add_argument("--output", metavar="FILE", help="picture to write (default: curves.png in the first folder)")
    return parser


def run(arguments: list[str]) -> None:
    """Runs ``lit-transformer curves``."""
    options = curves_parser().parse_args(arguments[1:])
    first = Path(options.runs[0])
    output = Path(options.output or (first.parent if first.is_file() else first) / "curves.png")
    if output.is_dir():
        raise InputError(f"--output {output} is a folder; give the name of a picture in it")
    if not output.suffix:
        output = output.with_name(f"{output.name}.png")  # as matplotlib would call it
    runs = {str(run): read_curves(run) for run in options.runs}
    try:
        figure = plot_curves(runs)
    except ModuleNotFoundError as error:  # the extra is missing, which the message names
        raise InputError(str(error)) from None
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(output, dpi=120)
    except (OSError, ValueError) as error:  # matplotlib's word for an unknown ending is ValueError
        raise InputError(f"--output {output} cannot be written: {error}") from None
    sys.stdout.write(f"{output}\n")
