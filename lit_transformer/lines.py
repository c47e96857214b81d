"""Lines of text into and out of the commands that translate and score."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

from lit_transformer.command_options import writing
from lit_transformer.errors import InputError

logger = logging.getLogger(__name__)


def has_several_lines(text: str) -> bool:
    """Whether a text has a line break that is not at its ends: models read single lines, and have never seen one."""
    return re.search("[\r\n]", text.strip("\r\n")) is not None


def has_half_a_character(text: str) -> bool:
    """Whether a text holds a lone surrogate: what was no UTF-8, or JSON that says so."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def given_lines(texts: list[str]) -> list[str]:
    """Sentences of the command line, if they are text."""
    for number, text in enumerate(texts, 1):
        if has_half_a_character(text):  # bytes that Python could not decode
            raise InputError(f"sentence {number} of the command line is not valid UTF-8; convert it to UTF-8 first")
        if has_several_lines(text):
            raise InputError(f"sentence {number} of the command line has several lines; give each as a sentence")
    return [text.strip("\r\n") for text in texts]


def comes_from_the_keyboard(name: str) -> bool:
    """Whether what a command reads by this name is typed by a person."""
    return name == "-" and sys.stdin is not None and sys.stdin.isatty()


def read_lines(stack: ExitStack, name: str, option: str = "--input") -> Iterator[str]:
    """The lines of a file, plain or compressed, or of standard input, cut at line feeds only."""
    if name == "-":
        if sys.stdin is None:
            raise InputError(f"standard input is closed; name a file by {option}, or give sentences")
        if comes_from_the_keyboard(name):
            logger.info("reading sentences from the keyboard, one in a line; end with Ctrl-D")
        return _decoded(sys.stdin.buffer, "standard input")
    from lit_transformer.data.network import is_address
    from lit_transformer.data.textfiles import COMPRESSED, LineReader, plain_or_compressed

    if is_address(name):
        raise InputError(f"{option} {name} is no file of this machine: download it first, or pipe it in")
    name = plain_or_compressed(name)
    if name.endswith(COMPRESSED):
        reader = LineReader(name)
        stack.callback(reader.close)
        return chain.from_iterable(iter(partial(reader.take, 100), []))
    try:
        return _decoded(stack.enter_context(open(name, "rb")), name)
    except OSError as error:
        raise InputError(f"{option} {name} cannot be read: {error.strerror}") from None


def _decoded(stream: IO[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(_told(stream, name), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # drops a byte order mark
        except UnicodeDecodeError:
            is_packed = number == 1 and line.startswith(b"\x1f\x8b")
            hint = "it is compressed, so pipe it through zcat" if is_packed else "convert the text to UTF-8 first"
            raise InputError(f"line {number} of {name} is not valid UTF-8; {hint}") from None
        yield text.removesuffix("\n").removesuffix("\r")


def _told(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """The lines; an error while they are read names the file that they come from."""
    try:
        yield from stream
    except OSError as error:
        raise InputError(f"{name} cannot be read to its end: {error.strerror or error}") from None


@contextmanager
def written_to(name: str, option: str = "--output") -> Iterator[IO[str]]:
    """Standard output, or a file that appears only when it is complete; what an error cuts short is kept beside it."""
    from lit_transformer.checkpoints import replacing
    from lit_transformer.data.textfiles import compressing

    if name == "-":
        if sys.stdout is None:
            raise InputError(f"standard output is closed; name a file by {option}")
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        yield sys.stdout
        sys.stdout.flush()  # a reader that has gone should be noticed here, not when the interpreter ends
        return
    with ExitStack() as stack:
        stack.enter_context(writing(name, option))
        unfinished = stack.enter_context(replacing(Path(name)))
        stack.enter_context(_keeping_lines(unfinished, Path(name)))
        yield stack.enter_context(compressing(unfinished, name))


@contextmanager
def _keeping_lines(unfinished: Path, path: Path) -> Iterator[None]:
    """Keeps the lines of a file that an error or a signal leaves unfinished, as ``news.de.partial`` for ``news.de``.

    A compressed one is ``news.de.partial.gz``, so that it is read as such.
    """
    from lit_transformer.data.textfiles import COMPRESSED, whole_lines

    try:
        yield
    except BaseException:
        if unfinished != path and unfinished.exists() and (count := whole_lines(unfinished, path.name)):
            whole = path.resolve()
            ending = path.suffix if path.suffix in COMPRESSED else ""
            kept = whole.with_name(f"{whole.name.removesuffix(ending)}.partial{ending}")
            with suppress(OSError):  # what went wrong before is what must be told
                unfinished.replace(kept)
                logger.warning("finished lines, kept in %s: %d", kept, count)
        raise


def lacks_tag(line: str, tags: Sequence[str]) -> bool:
    """Whether a line has a text, and none of the tags before it."""
    text = line.lstrip()
    return bool(text) and not text.startswith(tuple(tags))


def check_tag(tag: str, known: Sequence[str], name: str) -> None:
    """Refuses a tag that the model does not know.

    Raises:
        InputError: If it does not.
    """
    if tag not in known:
        raise InputError(f"{name} {tag} is none of the tags that the model knows: {', '.join(known) or 'it has none'}")


def tagged(lines: Iterable[str], tag: str | None, known: list[str]) -> Iterable[str]:
    """The lines with the tag before each that is not empty; without a tag as they are, with a word on what may lack."""
    if tag is None:
        return _warning_of_untagged(lines, known) if known else lines
    check_tag(tag, known, "--src_tag")
    return _with_tag(lines, tag, known)


def _with_tag(lines: Iterable[str], tag: str, known: list[str]) -> Iterator[str]:
    is_silent = True
    for number, line in enumerate(lines, 1):
        own = next((one for one in known if line.lstrip().startswith(one)), None)
        if own not in (None, tag) and is_silent:
            logger.warning("line %d begins with %s, and has %s before that now", number, own, tag)
            is_silent = False
        yield line if own == tag or not line.strip() else f"{tag} {line}"


def _warning_of_untagged(lines: Iterable[str], known: list[str]) -> Iterator[str]:
    is_silent = True
    for number, line in enumerate(lines, 1):
        if is_silent and lacks_tag(line, known):
            message = "line %d has no tag, but the model was trained with tags (%s): set --src_tag to one of them"
            logger.warning(message, number, ", ".join(known))
            is_silent = False
        yield line
