"""The command translate: sentences from the command line, a file or standard input, of any number."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lit_transformer.cli import collecting_later
from lit_transformer.command_options import (
    CHECKPOINT_HELP,
    add_engine_options,
    add_search_options,
    command_parser,
    device_of,
    finite,
    heeding_sigterm,
    loading_a_model,
    positive,
    search_settings,
    sparing_memory,
)
from lit_transformer.errors import InputError
from lit_transformer.lines import comes_from_the_keyboard, given_lines, read_lines, tagged, written_to

logger = logging.getLogger(__name__)

_OF_SAMPLING = ("temperature", "top_k", "top_p", "seed")

if TYPE_CHECKING:
    from rich.progress import Task

    from lit_transformer.decoding import BeamSearch, SamplingSearch
    from lit_transformer.interfaces import Translation
    from lit_transformer.translator import Translator


def translate_parser() -> argparse.ArgumentParser:
    """The options of ``translate``."""
    parser = command_parser(
        "translate",
        "Translates sentences: one line out for each line in, in the same order; an empty line stays empty.",
        "A line of more than --max_length tokens is cut there, and a warning on standard error names it; one whose\n"
        "translation is as long as --max_extra_length allows, and so may lack its end, is named too.\n"
        "With --n_best above 1 each line out is NUMBER<tab>SCORE<tab>TEXT, NUMBER being the line in, from 1, where\n"
        "predict counts from 0; with --scores alone it is SCORE<tab>TEXT. A score is the log probability over the\n"
        "length penalty, or with --sample the log probability.\n"
        "--output appears when all is done. If an error, Ctrl-C or SIGTERM comes before, an old file stays as it is,\n"
        "and finished lines are kept in NAME.partial beside it, or NAME.partial.gz for NAME.gz.\n"
        "--alignment writes a line for each line out: 2-3 says that word 3 of the translation comes from word 2 of\n"
        "the source, words counted from 0 between white space, tags left out (Pharaoh format).\n"
        "Files whose names end in .gz, .xz, .bz2 or .zst are read and written compressed; --input finds them without\n"
        "that ending too.\n\n"
        "examples:\n  echo 'I love cats' | lit-transformer translate runs/quickstart\n"
        "  lit-transformer translate runs/quickstart 'I love cats' 'The dog sleeps'\n"
        "  lit-transformer translate model.ckpt --input news.en --output news.de --beam_size 1\n"
        "  lit-transformer translate model.ckpt --input news.en --output drawn.de --sample --top_k 10\n"
        "  lit-transformer translate model.ckpt --input news.en --engine ctranslate2 --precision int8",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("text", nargs="*", help="sentences; without any, lines are read from --input")
    parser.add_argument("--input", default="-", metavar="FILE", help="file of lines, UTF-8 (default: standard input)")
    parser.add_argument("--output", default="-", metavar="FILE", help="file to write (default: standard output)")
    parser.add_argument(
        "--prefix",
        metavar="FILE",
        help="file of what each translation must begin with, a line for each; it may be empty",
    )
    parser.add_argument(
        "--beam_size", type=positive, help="hypotheses kept; 1 is greedy (default: 4, or n_best if that is more)"
    )
    add_search_options(parser)
    parser.add_argument(
        "--src_tag",
        metavar="TAG",
        help="put before each line, such as '<2de>', for a model trained with src_tag; it may also stand in the lines",
    )
    _add_sampling_options(parser)
    parser.add_argument("--n_best", type=positive, default=1, help="translations for each line (default: 1)")
    parser.add_argument("--scores", action="store_true", help="write the score before the text")
    parser.add_argument(
        "--alignment", metavar="FILE", help="file for word alignments, read off the encoder-decoder attention"
    )
    parser.add_argument(
        "--alignment_layer",
        type=positive,
        help="decoder layer that they are read off, from 1, as the mean of its heads (default: the last but one)",
    )
    parser.add_argument("--max_length", type=positive, default=512, help="longest source line in tokens (default: 512)")
    parser.add_argument("--max_tokens", type=positive, default=4096, help="source tokens in a batch (default: 4096)")
    parser.add_argument(
        "--buffer_size",
        type=positive,
        metavar="N",
        help="lines that are read before they are translated; 1 answers each at once, for a program or a person that "
        "waits (default: 2048, which is faster; from the keyboard 1)",
    )
    add_engine_options(parser)
    parser.add_argument(
        "--num_workers",
        type=positive,
        help="processes that search side by side on the CPU (default: one for each core, up to 16, if there "
        "are many lines)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile decoding steps with the C compiler of this machine, for the CPU"
    )
    return parser


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sample",
        action="store_true",
        help="draw translations at random instead of searching the likeliest, as for back-translation",
    )
    parser.add_argument("--temperature", type=finite, help="of --sample: divides the scores (default: 1.0)")
    parser.add_argument("--top_k", type=int, help="of --sample: draw among the likeliest so many tokens (default: all)")
    parser.add_argument("--top_p", type=finite, help="of --sample: draw among those with this share (default: 1.0)")
    parser.add_argument("--seed", type=int, help="of --sample: another draw (default: 0)")


def translate(options: argparse.Namespace) -> None:
    """Translates sentences from the command line, a file or standard input."""
    if options.text and options.input != "-":
        raise InputError(f"sentences come from the command line or from --input {options.input}; give one of the two")
    if options.prefix == "-" == options.input and not options.text:
        raise InputError("--prefix and --input are both standard input; give one of them a file")
    for name in ("compile", "alignment", "sample", "prefix"):
        if options.engine != "torch" and getattr(options, name):
            raise InputError(f"--{name} is not possible with --engine {options.engine}: leave one of the two out")
    if options.alignment_layer and not options.alignment:
        raise InputError(f"--alignment_layer {options.alignment_layer} needs --alignment FILE to write to")
    _check_files(options)
    if options.buffer_size is None and not options.text and comes_from_the_keyboard(options.input):
        options.buffer_size = 1
    with collecting_later(), loading_a_model():
        translator = _load(options)
    remedy = f"use a smaller --max_tokens, --{'n_best' if options.sample else 'beam_size'} or --max_length"
    with heeding_sigterm(), sparing_memory(remedy), ExitStack() as stack:
        given = given_lines(options.text) if options.text else read_lines(stack, options.input)
        _warn_of_files(options.text)
        lines = tagged(given, options.src_tag, translator.tokenizer.tags)
        out = stack.enter_context(written_to(options.output))
        quiet, total = bool(options.text) or out.isatty(), partial(_number_of_lines, options)
        sources: deque[str] = deque()
        prefixes = read_lines(stack, options.prefix, "--prefix") if options.prefix is not None else None
        translated = translator.translate(_remembering(lines, sources), prefixes, options.buffer_size)
        found = _with_progress(stack, translated, quiet, total)
        pairs = _written(found, sources, out, options)
        if options.alignment is None:
            deque(pairs, maxlen=0)
            return
        from lit_transformer.alignment import pharaoh

        alignment = stack.enter_context(written_to(options.alignment, "--alignment"))
        alignment.writelines(f"{pharaoh(links)}\n" for links in translator.align(pairs, options.alignment_layer))


def _warn_of_files(texts: list[str]) -> None:
    """Says that the name of a file was translated as a text, where its lines may have been meant."""
    for text in texts:
        if os.path.isfile(text):
            message = "%s is taken as a text, and there is a file of this name: its lines are translated by --input %s"
            logger.warning(message, text, text)


def _check_files(options: argparse.Namespace) -> None:
    """Refuses alignments that would take the place of the source or of the translations."""
    if options.alignment is None:
        return
    if _are_one_file(options.alignment, options.output):
        raise InputError(f"--alignment and --output are both {options.output}; give one of them another file")
    from lit_transformer.data.textfiles import plain_or_compressed

    for option, name in (("--input", options.input), ("--prefix", options.prefix or "-")):
        if name != "-" and _are_one_file(options.alignment, plain_or_compressed(name)):
            raise InputError(f"--alignment would replace {option} {name}; give it another file")


def _are_one_file(name: str, other: str) -> bool:
    """Whether what is written to one name takes the place of the other; a terminal or a pipe takes both."""
    if name == other or "-" in (name, other):
        return name == other
    path = Path(name).resolve()
    return path == Path(other).resolve() and (path.is_file() or not path.exists())


def _load(options: argparse.Namespace) -> Translator:
    from lit_transformer.exchange.engine import load_translator

    translator = load_translator(
        options.checkpoint,
        options.engine,
        search=_search(options),
        max_tokens=options.max_tokens,
        max_length=options.max_length,
        precision=options.precision,
        num_workers=options.num_workers,
        **({"compile": True} if options.compile else {}),
    )
    has_workers = options.engine == "torch" and (options.num_workers or 1) > 1  # which search on the CPU
    return translator.to("cpu" if has_workers and options.device is None else device_of(options))


def _remembering(lines: Iterable[str], seen: deque[str]) -> Iterator[str]:
    """The lines, each also kept in a queue until its translation is written."""
    for line in lines:
        seen.append(line)
        yield line


def _written(
    found: Iterable[list[Translation]], sources: deque[str], out: IO[str], options: argparse.Namespace
) -> Iterator[tuple[str, str]]:
    """Writes translations as they come, and hands on each with its source."""
    for number, translations in enumerate(found, 1):
        source = sources.popleft()
        for one in translations:
            out.write(_line(number, one, options))
            if options.buffer_size is not None:  # someone waits for it
                out.flush()
            yield source, one.text


def _search(options: argparse.Namespace) -> BeamSearch | SamplingSearch:
    from lit_transformer.decoding import BeamSearch, SamplingSearch

    given = {name: getattr(options, name) for name in _OF_SAMPLING if getattr(options, name) is not None}
    settings = search_settings(options)
    if options.sample:
        usual = translate_parser().get_default
        for name in ("beam_size", "length_penalty", "penalty_kind", "stop_early"):
            if getattr(options, name) != usual(name):
                raise InputError(f"--sample draws each translation by its probability: leave --{name} out")
        limits = {name: settings[name] for name in ("max_extra_length", "no_repeat_ngram_size", "allow_unknown")}
        try:
            return SamplingSearch(n_best=options.n_best, **limits, **given)
        except ValueError as error:
            raise InputError(f"--{error}") from None
    if given:
        raise InputError(f"--{next(iter(given))} is for --sample: add that, or leave it out")
    beam_size = options.beam_size or max(4, options.n_best)
    if beam_size < options.n_best:
        raise InputError(f"--n_best {options.n_best} needs --beam_size {options.n_best} or more, got {beam_size}")
    return BeamSearch(beam_size, n_best=options.n_best, **settings)


def _line(number: int, translation: Translation, options: argparse.Namespace) -> str:
    fields = [str(number)] if options.n_best > 1 else []
    fields += [f"{translation.score:.4f}"] if options.scores or options.n_best > 1 else []
    return "\t".join([*fields, translation.text]) + "\n"


def _with_progress(
    stack: ExitStack, items: Iterable[list[Translation]], quiet: bool, total: Callable[[], int | None]
) -> Iterable[list[Translation]]:
    """Shows on standard error how many lines of how many are done and how fast, if a person is watching it."""
    if quiet or not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:.1f} lines/s")

    number = total()
    columns = [TextColumn("{task.completed:,} lines translated"), Speed(), TimeElapsedColumn()]
    if number is not None:
        columns = [TextColumn("{task.completed:,} of {task.total:,} lines translated"), BarColumn(), *columns[1:]]
        columns.append(TimeRemainingColumn())
    progress = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
    return progress.track(items, description="", total=number)


def _number_of_lines(options: argparse.Namespace) -> int | None:
    """How many lines the input file has, read once from front to end; None if it is no file."""
    from lit_transformer.data.textfiles import LineReader, plain_or_compressed

    path = plain_or_compressed(options.input)
    if options.text or options.input == "-" or not Path(path).is_file():
        return None
    reader = LineReader(path)
    try:
        reader.skip(sys.maxsize)
        return reader.line
    finally:
        reader.close()


def run(arguments: list[str]) -> None:
    """Runs the command."""
    translate(translate_parser().parse_intermixed_args(arguments[1:]))  # options may stand between the sentences
