"""What the commands share: parsers with their help pages, options, and the files that they write."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from lit_transformer.cli import did_you_mean, fail
from lit_transformer.errors import ROOM_FOR_A_MODEL, InputError, short_of_memory

CHECKPOINT_HELP = (
    "a .ckpt file, the folder of a run (its newest checkpoint is taken), an exported folder, or owner/name on the Hub"
)
_MOST_TOKENS = 10_000  # a search makes room for all of them before it begins


class CommandParser(argparse.ArgumentParser):
    """A parser that names the nearest right option when one is misspelt."""

    def error(self, message: str) -> NoReturn:
        """Prints one sentence and exits with status 2."""
        options = [option for action in self._actions for option in action.option_strings]
        self.exit(2, f"{self.prog}: {message}.{did_you_mean(message, options)}\n")


def command_parser(name: str, description: str, epilog: str) -> CommandParser:
    """A parser whose help page keeps its line breaks and ends in examples."""
    return CommandParser(
        prog=f"lit-transformer {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def positive(text: str) -> int:
    """A whole number above 0, from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return value


def finite(text: str) -> float:
    """A number that is neither infinite nor NaN, from the command line."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text}")
    return value


def number_of_tokens(text: str) -> int:
    """How many tokens of a translation are meant, from the command line; none is possible."""
    value = int(text)
    if not 0 <= value <= _MOST_TOKENS:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {_MOST_TOKENS}, got {text}")
    return value


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """The options of the search but its width, of all commands that search for translations."""
    add_penalty_options(parser)
    parser.add_argument(
        "--max_extra_length",
        type=number_of_tokens,
        default=50,
        metavar="N",
        help="tokens that a translation may have more than its source; a longer one is closed there (default: 50)",
    )
    parser.add_argument(
        "--stop_early",
        action="store_true",
        help="end a line's search once beam_size translations are finished, as fairseq does: faster, may miss better",
    )
    parser.add_argument(
        "--no_repeat_ngram_size",
        type=number_of_tokens,
        default=0,
        metavar="N",
        help="let no N tokens in a row occur twice in a translation; 0 allows all (default: 0)",
    )
    parser.add_argument("--no_unknown", action="store_true", help="never write the token for unknown words")


def search_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of ``add_search_options`` say, as arguments of ``BeamSearch``."""
    names = ("length_penalty", "penalty_kind", "max_extra_length", "stop_early", "no_repeat_ngram_size")
    return {**{name: getattr(options, name) for name in names}, "allow_unknown": not options.no_unknown}


def add_penalty_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how hypotheses of different lengths compete, of all commands that translate."""
    parser.add_argument(
        "--length_penalty",
        type=finite,
        default=0.6,
        help="alpha of ((5 + length) / 6) ** alpha; 0 is none (default: 0.6)",
    )
    parser.add_argument(
        "--penalty_kind",
        choices=("gnmt", "power"),
        default="gnmt",
        help="power divides by length ** alpha instead, as fairseq and Marian do (default: gnmt)",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """The option that says where to compute."""
    parser.add_argument(
        "--device",
        default=None,
        help="cpu, cuda, cuda:1, mps (default: cuda where there is one and it can be used, else cpu)",
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """The options that say where and how to compute, of all commands that translate."""
    add_device_option(parser)
    parser.add_argument(
        "--precision",
        choices=("float32", "bf16", "int8"),
        default="float32",
        help="of weights and arithmetic; the lower ones are faster and change a few words; int8 is for CPUs, but for "
        "ctranslate2 (default: float32)",
    )
    parser.add_argument(
        "--engine",
        choices=("torch", "ctranslate2"),
        default="torch",
        help="ctranslate2 may be faster for small models and single sentences, takes its exported folders too, has no "
        "attention, and needs the extra (default: torch)",
    )


def needs_cpu(options: argparse.Namespace) -> bool:
    """Whether the network is to be compiled, or to have a precision that torch computes with on CPUs alone."""
    is_compiled: bool = getattr(options, "compile", False)  # not every command has it
    return is_compiled or bool(options.precision == "int8" and options.engine == "torch")


def device_of(options: argparse.Namespace) -> str:
    """The device that the options name, or else the best one that can do what they ask for.

    Raises:
        InputError: If there is no such device here, or it is full.
    """
    import torch

    name = options.device
    if name is None:
        return "cuda" if torch.cuda.is_available() and not needs_cpu(options) else "cpu"
    try:
        device = torch.zeros(1, device=name)
        device.item()  # some devices hold shapes alone
        return str(device.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if isinstance(error, RuntimeError) and (short_of_memory(error) or "out of memory" in str(error)):
            raise InputError(f"--device {name} has no memory left: end what else runs there, or try another") from None
        raise InputError(f"--device {name} cannot be used here; try --device cpu") from None


def new_folder(name: str) -> Path:
    """The folder to write to, if nothing can be overwritten there.

    Raises:
        InputError: If it is a file, or a folder that holds something.
    """
    folder = Path(name)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} exists already and is not an empty folder; name a new one")
    return folder


@contextmanager
def writing(name: str, option: str = "--output") -> Iterator[None]:
    """Says in one sentence that a file cannot be written."""
    try:
        yield
    except BrokenPipeError:  # of standard output, whose reader has gone
        raise
    except OSError as error:
        raise InputError(f"{option} {name} cannot be written: {error.strerror or error}") from None


@contextmanager
def sparing_memory(remedy: str, need: str = "this") -> Iterator[None]:
    """Says in one sentence that there is too little memory for what is needed, and what needs less."""
    try:
        yield
    except RuntimeError as error:
        device = short_of_memory(error)
        if device is None:
            raise
        raise InputError(f"{device} has too little memory for {need}: {remedy}") from None


def loading_a_model() -> AbstractContextManager[None]:
    """Says in one sentence that there is too little memory for the model itself, wherever it is loaded to."""
    return sparing_memory(ROOM_FOR_A_MODEL, "the model")


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """Lets SIGTERM end a command as Ctrl-C does, with files closed on the way; the exit status is 143."""
    if threading.current_thread() is not threading.main_thread():  # which alone may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except _Stopped:
        sys.exit(fail("stopped by SIGTERM") + 127 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class _Stopped(BaseException):
    """SIGTERM has come."""


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one should not come between what is being closed
    raise _Stopped
