"""The command that compares the outputs of several systems: is the difference more than chance?"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_transformer.command_options import command_parser, positive
from lit_transformer.errors import InputError

if TYPE_CHECKING:
    from lit_transformer.metrics import Compared, PairedScores


_EXPLANATION = """\
{num_sentences:,} sentences. p: how often chance alone would make so large a difference from the first system, in either
direction, if the two were equally good; * stands for less than 0.05."""

_BYTES = 80  # that sacrebleu needs at once for each line of each test set: 18 numbers of chrF, and a place


class System(NamedTuple):
    """The output of one system.

    Args:
        name: As it was given on the command line.
        lines: Its translations.
        references: What people wrote, if its file of scores tells where that is.
        settings: How BLEU was counted, if its file of scores tells.
    """

    name: str
    lines: list[str]
    references: list[str] | None
    settings: tuple[str, str] | None


def compare_parser() -> argparse.ArgumentParser:
    """The options of ``compare``."""
    parser = command_parser(
        "compare",
        "Compares translations of the same text by two or more systems, in BLEU and chrF: how sure is it that one\n"
        "is better than the first? By sacrebleu's paired bootstrap test, with its seed.",
        "A system is a file of translations, one a line, or a file *.scores.json that test wrote, which tells where\n"
        "the translations and references are, and how BLEU was counted.\n\nexamples:\n"
        "  lit-transformer compare base.txt better.txt --reference test.de\n"
        "  lit-transformer compare runs/base/test.scores.json runs/better/test.scores.json",
    )
    parser.add_argument("systems", nargs="+", metavar="SYSTEM", help="at least two; the others against the first")
    parser.add_argument("--reference", metavar="FILE", help="what people wrote, one a line (*.scores.json tells it)")
    parser.add_argument("--tokenize", help="sacrebleu's name of BLEU's words (default: as in *.scores.json, or 13a)")
    parser.add_argument(
        "--lowercase",
        action=argparse.BooleanOptionalAction,
        help="ignore case, or respect it (default: as in *.scores.json, or respect it)",
    )
    parser.add_argument("--num_resamples", type=positive, default=1000, help="test sets drawn (default: 1000)")
    return parser


def run(arguments: list[str]) -> None:
    """Runs ``compare``."""
    parser = compare_parser()
    options = parser.parse_intermixed_args(arguments[1:])
    if len(options.systems) < 2:
        parser.error("a comparison needs at least two systems")
    from lit_transformer.metrics import paired_bootstrap

    systems = [read_system(name) for name in options.systems]
    references = _references(systems, options.reference)
    for system in systems:
        if len(system.lines) != len(references):
            raise InputError(
                f"{system.name} has {len(system.lines)} lines, but there are {len(references)} references; each line "
                "must be the translation of the same sentence"
            )
    needed = _BYTES * len(references) * options.num_resamples
    if needed > _memory():
        raise InputError(
            f"--num_resamples {options.num_resamples} of {len(references)} lines would take {needed / 1e9:.0f} GB of "
            "memory, more than there is; give fewer"
        )
    lines = {system.name: system.lines for system in systems}
    if len(lines) < len(systems):
        raise InputError("a system is given twice; compare different files")
    try:
        found = paired_bootstrap(lines, references, *_settings(systems, options), options.num_resamples)
    except ValueError as error:
        raise InputError(str(error)) from error
    sys.stdout.write(table(found, len(references)))


def read_system(name: str) -> System:
    """Reads the translations of a system, and what its file of scores tells.

    Raises:
        InputError: If a file cannot be read, or a file of scores is none.
    """
    if not name.endswith(".json"):
        return System(name, read_lines(name), None, None)
    try:
        content: dict[str, Any] = json.loads("\n".join(read_lines(name)))
        files = [str(Path(name).parent / content[key]) for key in ("hypotheses", "references")]
        settings = _read_settings(name, content["scores"]["bleu"]["signature"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is not a file of scores that test wrote; give one, or a file of lines") from error
    hypotheses, references = map(read_lines, files)
    return System(name, hypotheses, references, settings)


def read_lines(name: str) -> list[str]:
    """The lines of a text file, plain or compressed, at least one.

    Raises:
        InputError: If it cannot be read, is not UTF-8, or is empty.
    """
    from lit_transformer.data.textfiles import LineReader

    reader = LineReader(name)
    try:
        lines = reader.take(sys.maxsize)
    finally:
        reader.close()
    if not lines:
        raise InputError(f"{name} is empty; give a file with a line for each sentence")
    return lines


def _references(systems: list[System], given: str | None) -> list[str]:
    if given is not None:
        return read_lines(given)
    known = [system for system in systems if system.references is not None]
    if not known:
        raise InputError("what the translations are compared with is not known; give --reference FILE")
    for other in known[1:]:
        if other.references != known[0].references:
            raise InputError(
                f"{known[0].name} and {other.name} were scored against different references; give --reference FILE "
                "if their translations are of the same text"
            )
    return known[0].references or []


def _settings(systems: list[System], options: argparse.Namespace) -> tuple[str, bool]:
    """How BLEU splits words and whether it ignores case: as the options say, or else as the files of scores do."""
    stored = [system.settings for system in systems if system.settings]
    tokens = options.tokenize or _agreed("tok", {tokens for tokens, _ in stored} or {"13a"}, "--tokenize")
    if options.lowercase is not None:
        return tokens, options.lowercase
    case = _agreed("case", {case for _, case in stored} or {"mixed"}, "--lowercase or --no-lowercase")
    return tokens, case == "lc"


def _memory() -> float:
    """Bytes of memory that this machine has, if it tells."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def _agreed(key: str, values: set[str], option: str) -> str:
    if len(values) > 1:
        kinds = " and ".join(f"{key}:{value}" for value in sorted(values))
        raise InputError(f"BLEU was not counted in the same way ({kinds}); choose with {option}")
    return values.pop()


def _tokenization(signed: str) -> str:
    """The name by which sacrebleu knows what stands in a signature, where some name their dictionary too."""
    return "ko-mecab" if signed.startswith("ko-mecab") else "ja-mecab" if signed.startswith("ja-mecab") else signed


def _read_settings(name: str, signature: str) -> tuple[str, str]:
    """How BLEU was counted, by its signature, if it can be counted so again."""
    parts = dict(part.split(":", 1) for part in signature.split("|"))
    if "sacremoses" in parts or parts.get("smooth", "exp") != "exp":
        raise InputError(
            f"{name} has a BLEU of another kind than sacrebleu's usual one ({signature}); compare the files of "
            "translations, with --reference"
        )
    return _tokenization(parts["tok"]), parts["case"]


def table(found: dict[str, PairedScores], num_sentences: int) -> str:
    """The figures as lines to read: scores with their intervals, and p-values for all systems but the first."""
    rows = [("system", *(column for name in found for column in (f"{name} (μ ± 95 %)", "p")))]
    for number, system in enumerate(next(iter(found.values())).systems):
        results = [scores.systems[system] for scores in found.values()]
        title = system if number else f"{system} (first)"
        rows.append((title, *(column for result in results for column in _columns(result))))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    signatures = [f"{name} {scores.signature}" for name, scores in found.items()]
    return "\n".join([*lines, "", _EXPLANATION.format(num_sentences=num_sentences), *signatures]) + "\n"


def _columns(result: Compared) -> tuple[str, str]:
    score = f"{result.score:.2f} ({result.mean:.2f} ± {result.half_width:.2f})"
    if result.p_value is None:
        return score, ""
    return score, f"{result.p_value:.4f}{' *' if result.p_value < 0.05 else ''}"
