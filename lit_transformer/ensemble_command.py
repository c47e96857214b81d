"""The command ensemble: several models that translate together, in one folder."""

from __future__ import annotations

import argparse
import sys

from lit_transformer.command_options import CHECKPOINT_HELP, command_parser, new_folder, writing
from lit_transformer.errors import InputError


def ensemble_parser() -> argparse.ArgumentParser:
    """The options of ``ensemble``."""
    parser = command_parser(
        "ensemble",
        "Puts several models into one folder, to translate together: each word's probability is the mean of theirs.",
        "The models must have the same tokens: train them with one tokenizer, by data.tokenizer_path. They may differ\n"
        "in size. The folder is a model like any other, as many times as slow; average makes one model of the size of\n"
        "each instead, which works for checkpoints of one run.\n\nexamples:\n"
        "  lit-transformer ensemble runs/seed1 runs/seed2 runs/seed3 --output together\n"
        "  lit-transformer translate together --input news.en --output news.de",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help=CHECKPOINT_HELP)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the folder to write; new, or empty")
    return parser


def ensemble(options: argparse.Namespace) -> None:
    """Writes an ensemble."""
    folder = new_folder(options.output)
    if len(options.models) < 2:
        raise InputError(f"an ensemble needs two models or more, got {options.models[0]} alone")
    from lit_transformer.model_files import read_model, write_model
    from lit_transformer.nn import Ensemble

    models = [read_model(path) for path in options.models]
    (first, tokenizer), first_path = models[0], options.models[0]
    for path, (network, other) in zip(options.models, models, strict=True):
        if other.fingerprint != tokenizer.fingerprint or network.vocab_size != first.vocab_size:
            raise InputError(
                f"{path} has other tokens than {first_path}, so they cannot translate together: train both with one "
                "tokenizer, by data.tokenizer_path"
            )
    with writing(options.output):
        write_model(Ensemble([network for network, _ in models]), tokenizer, folder)
    sys.stdout.write(f"{folder}: an ensemble of {', '.join(options.models)}\n")


def run(arguments: list[str]) -> None:
    """Runs the command."""
    ensemble(ensemble_parser().parse_intermixed_args(arguments[1:]))
