"""The command score: how likely a model finds translations that are there already."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import zip_longest

from lit_transformer.cli import collecting_later
from lit_transformer.command_options import (
    CHECKPOINT_HELP,
    add_device_option,
    add_penalty_options,
    command_parser,
    device_of,
    heeding_sigterm,
    loading_a_model,
    positive,
    sparing_memory,
)
from lit_transformer.errors import InputError
from lit_transformer.lines import read_lines, tagged, written_to


def score_parser() -> argparse.ArgumentParser:
    """The options of ``score``."""
    parser = command_parser(
        "score",
        "Says how likely a model finds translations: one number out for each pair of lines, in the same order.",
        "The number is that of translate --scores: the log probability of the translation over the length penalty.\n"
        "With --length_penalty 0 it is the log probability, with --penalty_kind power --length_penalty 1 its mean by\n"
        "token. A source of more than --max_length tokens is cut there, and a target 50 tokens later, since translate\n"
        "may write as many; a warning on standard error names the line. Where a search wrote other tokens than the\n"
        "tokenizer cuts the same text into, as with rare words and <unk>, the score differs from that of translate.\n"
        "Compressed files are read and written too. If an error, Ctrl-C or SIGTERM comes before the end, finished\n"
        "lines are kept beside --output, in NAME.partial.\n\n"
        "examples:\n"
        "  lit-transformer score runs/tiny --input noisy.en --target noisy.de --output noisy.scores\n"
        "  lit-transformer score runs/de_en --input candidates.de --target sources.en --length_penalty 0",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="file of source lines, UTF-8, or - for standard input"
    )
    parser.add_argument(
        "--target", required=True, metavar="FILE", help="file of their translations, line by line, or -"
    )
    parser.add_argument("--output", default="-", metavar="FILE", help="file to write (default: standard output)")
    add_penalty_options(parser)
    parser.add_argument("--src_tag", metavar="TAG", help="put before each source line, as for translate")
    parser.add_argument("--max_length", type=positive, default=512, help="longest source in tokens (default: 512)")
    parser.add_argument("--max_tokens", type=positive, default=4096, help="tokens in a batch (default: 4096)")
    add_device_option(parser)
    parser.set_defaults(precision="float32", engine="torch")
    return parser


def score(options: argparse.Namespace) -> None:
    """Scores pairs of lines."""
    if options.input == options.target == "-":
        raise InputError("only one of --input and --target can be standard input; name a file for the other")
    with collecting_later():
        from lit_transformer.decoding import BeamSearch
        from lit_transformer.translator import Translator
    rule = BeamSearch(length_penalty=options.length_penalty, penalty_kind=options.penalty_kind)
    limits = {"max_length": options.max_length, "max_tokens": options.max_tokens}
    with loading_a_model():
        translator = Translator.from_pretrained(options.checkpoint, **limits).to(device_of(options))
    with heeding_sigterm(), sparing_memory("use a smaller --max_tokens or --max_length"), ExitStack() as stack:
        sources = tagged(read_lines(stack, options.input), options.src_tag, translator.tokenizer.tags)
        targets = read_lines(stack, options.target, "--target")
        out = stack.enter_context(written_to(options.output))
        for found in translator.score(_pairs(iter(sources), targets, options)):
            out.write(f"{found.log_prob / rule.penalty(found.length):.4f}\n")


def _pairs(sources: Iterator[str], targets: Iterator[str], options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for number, (source, target) in enumerate(zip_longest(sources, targets), 1):
        if source is None or target is None:
            short = options.input if source is None else options.target
            raise InputError(
                f"{options.input} and {options.target} should have as many lines, but {short} ends before line {number}"
            )
        yield source, target


def run(arguments: list[str]) -> None:
    """Runs the command."""
    score(score_parser().parse_args(arguments[1:]))
