"""The console script: finds the command, runs it, and says in one sentence what the user can mend.

Heavy imports wait until a command needs them, so that ``lit-transformer --help`` answers at once.
"""

from __future__ import annotations

import ctypes
import difflib
import gc
import importlib
import logging
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

COMMANDS = {
    "quickstart": ("quickstart", "train on the embedded English-Korean text, score it, translate and draw"),
    "fit": ("training_cli", "train a network on a corpus"),
    "validate": ("training_cli", "score a checkpoint on the validation set"),
    "test": ("training_cli", "score a checkpoint on the test set"),
    "predict": ("training_cli", "translate a corpus into a file, on any number of devices"),
    "translate": ("translate_command", "translate sentences from the command line, a file or standard input"),
    "attention": ("attention_command", "draw what every head attends to, as pictures and as a page to explore"),
    "curves": ("curves", "draw loss, perplexity and scores of runs over their steps"),
    "export": ("exchange_commands", "write a model for use elsewhere: safetensors, transformers, CTranslate2, ONNX"),
    "import": ("exchange_commands", "read a Hugging Face folder (Marian, as OPUS-MT, or Pegasus)"),
    "push": ("exchange_commands", "write a model with a card to the Hub of Hugging Face"),
    "serve": ("serving.commands", "translate over HTTP: a web page and a JSON API"),
    "average": ("average_command", "average several checkpoints into one"),
    "ensemble": ("ensemble_command", "put several models into one that translates with all of them"),
    "score": ("score_command", "say how likely a model finds translations that are there already"),
    "compare": ("compare", "compare the translations of two or more systems: is one really better"),
}

WHOLE_HEAP = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"  # see start_with_a_whole_heap()
_STARTED_ANEW = "LIT_TRANSFORMER_STARTED_ANEW"

_EXAMPLES = """
examples:
  lit-transformer quickstart
  echo "I love cats" | lit-transformer translate runs/quickstart
  lit-transformer fit --config configs/tiny.yaml --config configs/data/own_files.yaml
  lit-transformer test --config runs/tiny/config.yaml
  lit-transformer COMMAND --help
"""

_UNKNOWN_OPTION = re.compile(r"(?:does not accept option|Option) '([\w.+-]+)'|unrecognized arguments: (-[\w.+-]+)")


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
    libc = _glibc()
    if libc is not None:
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 1 << 26)


def start_with_a_whole_heap() -> None:
    """Starts this program anew with glibc's caches of small pieces switched off, unless it was started like that.

    A small piece that waits in a cache for its next use keeps the free memory on both sides of it apart, and a large
    tensor no longer fits where another of its size was. So the heap of a training tears, and takes a quarter more
    memory (base, on a CPU). glibc reads the setting as a program starts, and never again; processes that this one
    starts have it, too. Whoever sets ``glibc.malloc.tcache_count`` in ``GLIBC_TUNABLES`` keeps what they chose, and
    nothing happens elsewhere than on glibc, under a debugger, or where the program came from standard input.
    """
    tunables, this_process = os.environ.get("GLIBC_TUNABLES", ""), str(os.getpid())
    if "glibc.malloc.tcache_count" in tunables or os.environ.get(_STARTED_ANEW) == this_process or _glibc() is None:
        return
    if not sys.executable or sys.gettrace() is not None or sys.argv[0] in ("", "-"):
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, WHOLE_HEAP)))
    os.environ[_STARTED_ANEW] = this_process  # once, even if somebody takes the setting away on the way
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):  # then it trains with more memory
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def remember_fewer_products() -> None:
    """Lets oneDNN keep the last 128 products that it compiled, unless the environment says how many.

    On CPUs it compiles one for each shape, and by itself keeps 1,024 of them in two places. Batches of sentences differ
    in shape all the time, so that training a small model or translating a long file would take gigabytes in the end.
    It must be called before the first product. A step needs few shapes over and over; nothing becomes slower.
    """
    older = os.environ.get("DNNL_PRIMITIVE_CACHE_CAPACITY", "128")  # which oneDNN reads where the new name is missing
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", older)
    os.environ.setdefault("LRU_CACHE_CAPACITY", "128")


@contextmanager
def collecting_later() -> Iterator[None]:
    """Does without a search for garbage, of which imports leave next to none: it takes a tenth of their time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()  # both: what was made counts as old, so that it is not searched at once
        if was_enabled:
            gc.enable()


def fail(message: str) -> int:
    """Prints what went wrong, in one sentence on one line; returns the exit status."""
    sys.stderr.write(f"lit-transformer: {' '.join(message.split())}\n")
    return 1


def speak() -> None:
    """Lets the package's own messages appear on standard error, as plain sentences."""
    package = logging.getLogger("lit_transformer")
    package.setLevel(logging.INFO)
    package.propagate = False
    if not package.handlers:
        package.addHandler(logging.StreamHandler())


def did_you_mean(message: str, names: Iterable[str]) -> str:
    """A suggestion for the misspelt option that a parser's message names, or nothing.

    Args:
        message: What the parser says.
        names: All right names, in full.

    Example:
        >>> did_you_mean("Option 'dropuot' is not accepted", ["model.network.dropout", "data.seed"])
        " Did you mean 'model.network.dropout'?"
        >>> did_you_mean("Option 'class_path' is not accepted", ["data.cache_path"])  # spelled right
        ''
    """
    unknown = _UNKNOWN_OPTION.search(message)
    if unknown is None:
        return ""
    key = (unknown.group(1) or unknown.group(2)).strip("-+")
    if key.rpartition(".")[2] in ("class_path", "init_args"):
        return ""
    close = nearest(key, {name.lstrip("-") for name in names})
    return f" Did you mean {close!r}?" if close not in (None, key) else ""


def nearest(key: str, names: Collection[str]) -> str | None:
    """The name that a misspelt key with dots most likely means, in full if that is clear; None if there is none near.

    A word that exists elsewhere is not misspelt but misplaced: then its right place is named.
    """
    words = {word for name in names for word in name.split(".")}
    parts = key.split(".")
    wrong = next((place for place, word in enumerate(parts) if word not in words), None)
    if wrong is None:
        return _in_full(parts[-1], names)
    above = parts[:wrong]
    beside = {name.split(".")[wrong] for name in names if name.split(".")[:wrong] == above and name.count(".") >= wrong}
    for candidates in (beside, words):
        close = difflib.get_close_matches(parts[wrong], sorted(candidates), n=1)
        if close:
            return ".".join([*above, close[0]]) if close[0] in beside else _in_full(close[0], names)
    return None


def _in_full(word: str, names: Collection[str]) -> str:
    homes = [name for name in names if name.rsplit(".", 1)[-1] == word]
    return homes[0] if len(homes) == 1 else word


def _unknown(command: str) -> int:
    close = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(COMMANDS)}"
    return fail(f"there is no command {command!r}; {hint}") + 1


def _reason(error: BaseException) -> str:
    """The message of an error, also of one that came out of a data loader's worker process."""
    text = str(error)
    if text.startswith("Caught ") and "worker process" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``lit-transformer``; exits with 0 on success, 1 on bad input, 2 on a bad command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None and arguments[:1] == ["fit"]:
        start_with_a_whole_heap()
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
    from lit_transformer.errors import InputError

    speak()
    keep_freed_memory()
    remember_fewer_products()
    if os.getcwd() not in sys.path:  # so that a class_path may name what is in the folder one works in
        sys.path.append(os.getcwd())
    with collecting_later():
        home = importlib.import_module(f"lit_transformer.{COMMANDS[arguments[0]][0]}")
    try:
        home.run(arguments)
    except InputError as error:
        return fail(_reason(error))
    except BrokenPipeError:  # the reader of our output has gone; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.strerror is None:  # none of the system's
            raise
        return fail(": ".join(str(part) for part in (error.filename, error.strerror) if part is not None))
    except KeyboardInterrupt as error:
        return fail(str(error) or "stopped by the keyboard") + 129
    return 0
