"""Line-aligned text files, plain or compressed: found by name, read line by line, broken ones reported by line."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

from lit_transformer.data.network import is_address, open_address, path_of
from lit_transformer.interfaces import InputError

COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
_BLOCK = 1 << 20  # bytes read at once
_END = 64 * 1024  # bytes hashed at each end of a file

State = dict[str, Any]
Row = dict[str, Any]


class CorpusError(InputError):
    """A corpus cannot be read as asked; the message is one sentence made for the user."""


class TextFiles:
    r"""Two files whose lines are translations of each other, or one file of source lines.

    Lines end at ``\n`` or ``\r\n`` and nowhere else; a byte order mark at the start is dropped.

    Args:
        src: The column name and the file of the source lines.
        tgt: The same of the target lines, or None.
        lane: Read only every ``num_lanes``-th chunk of lines, beginning with number ``lane``, and step over the rest.
        num_lanes: Lanes that share the lines.

    Raises:
        CorpusError: If a file is a pipe, since corpora are read more than once; when reading, if one is missing, broken
            or not UTF-8, or their lines differ in number.
    """

    def __init__(
        self, src: tuple[str, str], tgt: tuple[str, str] | None = None, lane: int = 0, num_lanes: int = 1
    ) -> None:
        self.columns = [src] if tgt is None else [src, tgt]
        for _, path in self.columns:
            _refuse_pipe(path)
        self._lane = lane, num_lanes

    def lane(self, lane: int, num_lanes: int) -> TextFiles:
        """The same text, of which only a lane is decoded."""
        tgt = self.columns[1] if len(self.columns) > 1 else None
        return TextFiles(self.columns[0], tgt, lane, num_lanes)

    def chunks(self, state: State | None, size: int) -> Iterator[tuple[list[Row], State]]:
        """Rows ``{column: line}``, at most ``size`` at once, each time with the place that follows them."""
        at = state or {"line": 0, "bytes": [0] * len(self.columns)}
        names = [name for name, _ in self.columns]
        lane, num_lanes = self._lane
        between = lane if state is None else num_lanes - 1  # chunks of other lanes before the next of ours
        readers: list[LineReader] = []
        try:
            for (_, path), offset in zip(self.columns, at["bytes"], strict=True):
                readers.append(LineReader(path, at["line"], offset))
            while True:
                for reader in readers:
                    reader.skip(between * size)
                between = num_lanes - 1
                columns = [reader.take(size) for reader in readers]
                if len({reader.line for reader in readers}) > 1:
                    raise CorpusError(_unequal(readers))
                if not columns[0]:
                    return
                rows = [dict(zip(names, lines, strict=True)) for lines in zip(*columns, strict=True)]
                yield rows, {"line": readers[0].line, "bytes": [reader.bytes for reader in readers]}
        finally:
            for reader in readers:
                reader.close()

    def fingerprint(self) -> list[Any]:
        """What identifies the text: name, size and both ends of each file."""
        return [[name, *file_identity(path)] for name, path in self.columns]

    def approximate_rows(self) -> int | None:
        """The number of lines, estimated from the start of the first file; None if that is not on this machine."""
        return approximate_lines(self.columns[0][1])


class LineReader:
    """Reads a text file a few lines at a time and knows where it stands.

    Args:
        path: A plain or compressed text file, or its address.
        line: Lines already read.
        offset: Bytes already read, counted after decompression.
    """

    def __init__(self, path: str, line: int = 0, offset: int = 0) -> None:
        self.path, self.line, self.bytes = path, line, 0
        codec = _codec(path)
        try:
            self._raw = open_raw(path)
        except OSError as error:
            raise CorpusError(f"cannot open {path}: {error.strerror or error}") from error
        self._file: BinaryIO = self._raw if codec is None else io.BufferedReader(_Inflated(self._raw, codec), _BLOCK)
        self._skip(offset)

    def take(self, count: int) -> list[str]:
        """The next ``count`` lines without their ends, fewer at the end of the file."""
        lines = []
        try:
            for raw in islice(self._file, count):
                self.bytes += len(raw)
                lines.append(self._text(raw))
        except _BROKEN as error:
            raise self._broken(error) from error
        return lines

    def skip(self, count: int) -> None:
        """Steps over ``count`` lines, or to the end of the file."""
        try:
            for raw in islice(self._file, count):
                self.bytes += len(raw)
                self.line += 1
        except _BROKEN as error:
            raise self._broken(error) from error

    def count_rest(self) -> int:
        """Number of lines in the whole file; reads on to its end."""
        while self.take(100_000):
            pass
        return self.line

    def close(self) -> None:
        """Closes the file."""
        self._raw.close()

    def _text(self, raw: bytes) -> str:
        self.line += 1
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{self.path} line {self.line} is not UTF-8 at byte {error.start + 1} of the line; convert the file"
            ) from error
        if self.line == 1:
            text = text.removeprefix("\ufeff")
        return text.removesuffix("\n").removesuffix("\r")

    def _broken(self, error: Exception) -> CorpusError:
        what = "cannot be read" if is_address(self.path) else "is broken"
        return CorpusError(f"{self.path} {what} after line {self.line}: {error}")

    def _skip(self, offset: int) -> None:
        if self._file is self._raw and offset:
            try:
                self._file.seek(offset)
            except OSError:  # of what can only be read once
                message = f"{self.path} cannot be read again from the middle: write the text to a file"
                raise CorpusError(message) from None
            self.bytes = offset
        try:
            while self.bytes < offset and (block := self._file.read(min(_BLOCK, offset - self.bytes))):
                self.bytes += len(block)
        except _BROKEN as error:
            raise self._broken(error) from error


class _Inflated(io.RawIOBase):
    """The bytes inside a compressed file; unlike most readers it notices a cut-off end in every format."""

    def __init__(self, raw: BinaryIO, make_codec: Callable[[], Any]) -> None:
        self._blocks, self._ready = _inflate(raw, make_codec), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._ready = memoryview(block)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


class FilePair(NamedTuple):
    """The source and the target file that belong together."""

    src: str
    tgt: str | None


def find_aligned(prefix: str, src: str, tgt: str | None) -> FilePair | None:
    """The files ``prefix.src`` and ``prefix.tgt``, each plain or compressed; None if there is no source file.

    Raises:
        CorpusError: If only one of the two exists.
    """
    found = [_with_any_ending(f"{prefix}.{lang}") for lang in (src, tgt) if lang is not None]
    if not any(found):
        return None
    if None in found:
        there, missing = (src, tgt) if found[0] else (tgt, src)
        raise CorpusError(
            f"found {prefix}.{there} but not {prefix}.{missing} (nor with {', '.join(COMPRESSED)}); "
            "set src and tgt to the endings of the two files"
        )
    return FilePair(str(found[0]), str(found[1]) if tgt is not None else None)


def plain_or_compressed(path: str) -> str:
    """The path itself, or if there is no such file that of the same file compressed."""
    return (None if is_address(path) else _with_any_ending(path)) or path


def whole_lines(path: Path, name: str) -> int:
    """How many lines of a file end in a line feed, up to where it breaks off if it does.

    Args:
        path: The file.
        name: What it will be called, which says whether it is compressed.
    """
    codec, count = _codec(name), 0
    with path.open("rb") as raw:
        file = raw if codec is None else _Inflated(raw, codec)
        with suppress(*_BROKEN):
            while block := file.read(_BLOCK):
                count += block.count(b"\n")
    return count


@contextmanager
def compressing(path: Path, name: str) -> Iterator[IO[str]]:
    """A text file to write to, compressed if its name says so: the same text gives the same bytes.

    Args:
        path: The file.
        name: What it will be called: ``.gz``, ``.xz``, ``.bz2`` and ``.zst`` at its end are heard.

    Raises:
        CorpusError: If ``zstandard`` is needed and not installed.
    """
    ending = Path(name).suffix
    with ExitStack() as stack:
        openers: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".bz2": bz2.open}
        file: Any
        if ending == ".gz":
            raw = stack.enter_context(path.open("wb"))
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))  # neither name nor time in it
        elif ending == ".zst":
            file = stack.enter_context(_zstandard(f"writing {name}").open(path, "wb"))
        else:
            file = stack.enter_context(openers.get(ending, open)(path, "wb"))
        yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", newline="\n"))


def check_compression(name: str) -> None:
    """Checks that a file of this name can be written, before there is anything to write.

    Raises:
        CorpusError: If ``zstandard`` is needed and not installed.
    """
    if Path(name).suffix == ".zst":
        _zstandard(f"writing {name}")


def expand(path: str) -> str:
    """The path with ``~`` and ``$VARIABLES`` replaced.

    Raises:
        CorpusError: If a variable is not set.
    """
    full = os.path.expandvars(os.path.expanduser(path))
    if "$" in full and not os.path.exists(full):
        name = full[full.index("$") :].split("/")[0]
        raise CorpusError(f"the path {path!r} uses {name}, which is not set: export it or write the path in full")
    return full


def open_raw(path: str) -> BinaryIO:
    """The stored bytes of a file or of an address such as ``https://...`` or ``hf://...``."""
    return (
        cast(BinaryIO, io.BufferedReader(cast(Any, open_address(path)), _BLOCK))
        if is_address(path)
        else open(path, "rb")
    )


def file_identity(path: str) -> list[Any]:
    """Name, size and a hash of both ends: stays the same when a file is copied, changes when lines are added or lost.

    An edit in the middle of a large file that keeps its size is not seen: to see it, all would have to be read.
    """
    if is_address(path):
        return [path]
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read(_END))
            file.seek(max(size - _END, 0))
            digest.update(file.read(_END))
    except OSError as error:
        raise CorpusError(f"cannot open {path}: {error.strerror or error}") from error
    return [Path(path).name, size, digest.hexdigest()]


def approximate_lines(path: str) -> int | None:
    """Number of lines, estimated from the first block; exact for a small file. None for an address."""
    if is_address(path):
        return None
    text, times = first_block(path)
    return max(1, int(text.count(b"\n") * times))


def first_block(path: str) -> tuple[bytes, float]:
    """The start of the text in a file, and how many times as large the whole file is.

    Raises:
        CorpusError: If the file cannot be read.
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as raw:
            start = raw.read(_BLOCK)
        make_codec = _codec(path)
        text = start if make_codec is None else b"".join(_inflate(io.BytesIO(start), make_codec, is_whole=False))
    except _BROKEN as error:
        raise CorpusError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return text, size / max(len(start), 1)


def _codec(path: str) -> Callable[[], Any] | None:
    ending = Path(path_of(path)).suffix
    if ending == ".gz":
        return lambda: zlib.decompressobj(wbits=31)  # 31: with gzip's header and checksum
    if ending == ".xz":
        return lzma.LZMADecompressor
    if ending == ".bz2":
        return bz2.BZ2Decompressor
    return _zstd(path) if ending == ".zst" else None


def _zstd(path: str) -> Callable[[], Any]:
    zstandard = _zstandard(f"reading {path}")

    def make() -> Any:
        codec = zstandard.ZstdDecompressor().decompressobj()
        return _ZstdAsValueError(codec, zstandard.ZstdError)

    return make


def _zstandard(purpose: str) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise CorpusError(f"{purpose} needs the extra 'zstd': pip install 'lit-transformer[zstd]'") from error
    return zstandard


class _ZstdAsValueError:
    """A zstd decompressor whose errors are ordinary ones, so that readers need not know the package."""

    def __init__(self, codec: Any, error: type[Exception]) -> None:
        self._codec, self._error = codec, error

    def decompress(self, data: bytes) -> bytes:
        try:
            result: bytes = self._codec.decompress(data)
        except self._error as error:
            raise OSError(str(error)) from error
        return result

    @property
    def eof(self) -> bool:
        return bool(self._codec.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._codec.unused_data)


def _inflate(raw: BinaryIO, make_codec: Callable[[], Any], is_whole: bool = True) -> Iterator[bytes]:
    codec, padding, is_empty = None, b"", True
    while chunk := raw.read(_BLOCK):
        is_empty = False
        while chunk := chunk if codec else chunk.lstrip(padding):
            codec = codec or make_codec()
            yield codec.decompress(chunk)
            chunk = b""
            if codec.eof:  # compressed files may be joined end to end, and padded with zeros
                chunk, codec, padding = codec.unused_data, None, b"\0"
    if not is_whole:
        return
    if is_empty:  # which no program writes, but a download that failed leaves behind
        raise EOFError("it has 0 bytes, where even an empty text has some once it is compressed: fetch it again")
    if codec is not None:
        raise EOFError("the compressed data end too early, the file is cut off")


def _refuse_pipe(path: str) -> None:
    """Refuses what would go on behind the lines read before, where a file begins again each time it is opened."""
    if is_address(path) or not os.path.exists(path) or os.path.isfile(path) or os.path.isdir(path):
        return  # what cannot be opened at all is reported where it is read
    if not os.path.samefile(path, os.devnull):
        kind = "a device" if stat.S_ISCHR(os.stat(path).st_mode) else "a pipe"
        raise CorpusError(f"{path} is {kind}, which can be read only once: write the text to a file")


def _with_any_ending(path: str) -> str | None:
    return next((path + ending for ending in ("", *COMPRESSED) if os.path.isfile(path + ending)), None)


def _unequal(readers: list[LineReader]) -> str:
    counts = " and ".join(f"{reader.path} has {reader.count_rest()} lines" for reader in readers)
    return f"{counts}, but line-aligned files must have as many: check that no line was lost or split"


_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)
