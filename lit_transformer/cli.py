"""The console script: finds the command, runs it, and says in one sentence what the user can mend.

Heavy imports wait until a command needs them, so that ``lit-transformer --help`` answers at once.
"""

from __future__ import annotations

import ctypes
import difflib
import importlib
import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence

COMMANDS = {
    "quickstart": ("quickstart", "train on the embedded English-Korean text, score it, translate and draw"),
    "fit": ("training_cli", "train a network on a corpus"),
    "validate": ("training_cli", "score a checkpoint on the validation set"),
    "test": ("training_cli", "score a checkpoint on the test set"),
    "predict": ("training_cli", "translate a corpus into a file, on any number of devices"),
    "translate": ("commands", "translate sentences from the command line, a file or standard input"),
    "attention": ("commands", "draw what every head attends to, as pictures and as a page to explore"),
    "average": ("commands", "average several checkpoints into one"),
}

_EXAMPLES = """
examples:
  lit-transformer quickstart
  echo "I love cats" | lit-transformer translate runs/quickstart
  lit-transformer fit --config configs/tiny.yaml --config configs/data/own_files.yaml
  lit-transformer test --config runs/tiny/config.yaml
  lit-transformer COMMAND --help
"""


def usage() -> str:
    """The page that ``lit-transformer --help`` prints."""
    rows = "\n".join(f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items())
    title = "The Transformer of 'Attention Is All You Need' on PyTorch Lightning."
    return f"usage: lit-transformer COMMAND [options]\n\n{title}\n\ncommands:\n{rows}\n{_EXAMPLES}"


def keep_freed_memory() -> None:
    """Asks glibc to keep freed memory for the next step, where the C library is glibc.

    A training step allocates and frees the same large tensors over and over; handing the pages back to the
    system each time costs more than a third of the speed of small models on CPUs.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "gnu_get_libc_version"):
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 1 << 26)


def _fail(message: str) -> int:
    """Prints what went wrong, in one sentence; returns the exit status."""
    sys.stderr.write(textwrap.fill(f"lit-transformer: {message}", 100, break_long_words=False) + "\n")
    return 1


def _speak() -> None:
    """Lets the package's own messages appear on standard error, as plain sentences."""
    package = logging.getLogger("lit_transformer")
    package.setLevel(logging.INFO)
    package.propagate = False
    if not package.handlers:
        package.addHandler(logging.StreamHandler())


def did_you_mean(message: str, names: Iterable[str]) -> str:
    """A suggestion for the misspelt option that a parser's message names, or nothing."""
    unknown = re.search(r"(?:option|[Kk]ey|arguments:|argument) ['\"]?([\w.-]+)", message)
    key = unknown.group(1).lstrip("-").rsplit(".")[-1] if unknown else ""
    close = difflib.get_close_matches(key, {name.lstrip("-").rsplit(".")[-1] for name in names}, n=1)
    return f" Did you mean {close[0]!r}?" if close and close[0] != key else ""


def _unknown(command: str) -> int:
    close = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(COMMANDS)}"
    return _fail(f"there is no command {command!r}; {hint}") + 1


def _reason(error: BaseException) -> str:
    """The message of an error, also of one that came out of a data loader's worker process."""
    text = str(error)
    if text.startswith("Caught ") and "worker process" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``lit-transformer``; exits with 0 on success, 1 on bad input, 2 on a bad command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return
    if arguments[0] in ("-V", "--version"):
        from lit_transformer import __version__

        sys.stdout.write(f"lit-transformer {__version__}\n")
        return
    if arguments[0] not in COMMANDS:
        sys.exit(_unknown(arguments[0]))
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    """Runs a command; turns a mistake of the user into one sentence and an exit status."""
    from lit_transformer.interfaces import InputError

    _speak()
    keep_freed_memory()
    home = importlib.import_module(f"lit_transformer.{COMMANDS[arguments[0]][0]}")
    try:
        home.run(arguments)
    except InputError as error:
        return _fail(_reason(error))
    except KeyboardInterrupt:
        return _fail("stopped by the keyboard") + 129
    except BrokenPipeError:  # the reader of our output has gone; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
