"""The command average: one checkpoint from several."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lit_transformer.command_options import command_parser, positive, writing


def average_parser() -> argparse.ArgumentParser:
    """The options of ``average``."""
    parser = command_parser(
        "average",
        "Averages the weights of several checkpoints into one (paper, section 6.1: the last 5; for big, the last 20).",
        "The result is for translating and scoring: it holds no optimizer.\n\nexamples:\n"
        "  lit-transformer average runs/base --last 5 --output averaged.ckpt\n"
        "  lit-transformer average a.ckpt b.ckpt c.ckpt --output averaged.ckpt",
    )
    parser.add_argument("checkpoints", nargs="+", help="checkpoint files, or the folder of a run")
    parser.add_argument("--last", type=positive, default=5, help="how many of a folder's newest (default: 5)")
    parser.add_argument("--output", required=True, metavar="FILE", help="the checkpoint to write")
    return parser


def average(options: argparse.Namespace) -> None:
    """Averages checkpoints into one."""
    from lit_transformer.callbacks.averaging import last_checkpoints, write_averaged_checkpoint

    paths = [Path(name) for name in options.checkpoints]
    if len(paths) == 1 and paths[0].is_dir():
        paths = last_checkpoints(paths[0], options.last)
    with writing(options.output):
        write_averaged_checkpoint(paths, Path(options.output))
    sys.stdout.write(f"{options.output}: the mean of {', '.join(str(path) for path in paths)}\n")


def run(arguments: list[str]) -> None:
    """Runs the command."""
    average(average_parser().parse_intermixed_args(arguments[1:]))
