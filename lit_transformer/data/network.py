"""Reading over a network that fails now and then: wait, connect again, go on at the same row."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator
from socket import gaierror
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from lit_transformer.interfaces import InputError

logger = logging.getLogger(__name__)

STALL_SECONDS = 60.0  # a connection that says nothing for so long counts as lost
WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)  # seconds before each new attempt, two minutes in all
_BLOCK = 1 << 20  # bytes read at once
_CLIENTS = ("aiohttp", "requests", "urllib", "httpx", "httpcore", "huggingface_hub", "http")
_PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)

Item = TypeVar("Item")


def persistent(
    read: Callable[[Any], Iterator[tuple[Item, Any]]],
    state: Any,
    is_known: bool = True,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[Item, Any]]:
    """Items with the places that follow them; a lost connection is taken up again at the last place.

    Waits before each new attempt, longer every time; whatever is read in between starts that anew.

    Args:
        read: Opens the source at a place.
        state: The place to begin with.
        is_known: Whether the source has been read before; if not, a wrong name is likelier than a lost connection, and
            it is given up after seconds.
        sleep: Waits, given seconds.

    Raises:
        InputError: If the connection stays down, or for any error that waiting does not mend.

    Example:
        >>> list(persistent(lambda state: iter([("a", 1), ("b", 2)]), None))
        [('a', 1), ('b', 2)]
    """
    failures = 0
    while True:
        try:
            for item, after in read(state):
                yield item, after
                state, failures, is_known = after, 0, True
            return
        except InputError as error:
            if not is_passing(error):
                raise
            waits = WAITS if is_known else WAITS[:3]
            if failures == len(waits):
                raise type(error)(f"{error}; gave up after {failures + 1} attempts") from error
            logger.warning("%s; trying again in %.0f seconds", error, WAITS[failures])
            sleep(WAITS[failures])
            failures += 1


def is_address(path: str) -> bool:
    """Whether ``path`` names something on a network rather than a local file."""
    return "://" in path


def path_of(place: str) -> str:
    """The path in an address without what may follow it, as in ``.../train.en.gz?download=true``; files as they are."""
    return urlsplit(place).path if _is_http(place) else place


def open_address(path: str) -> BinaryIO:
    """The stored bytes of an address such as ``https://...`` or ``hf://...``.

    Raises:
        OSError: Here and when reading, whatever the client library calls what went wrong.
    """
    return _Remote(path)  # type: ignore[return-value]


class _Remote(io.RawIOBase):
    """A remote file that raises nothing but OSError, read from any place on even if its server only sends it whole."""

    def __init__(self, path: str) -> None:
        self.name, self._position = path, 0
        self._file = _as_os_error(self._open)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of an address is not known before it is read")
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = _as_os_error(lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _open(self, **options: Any) -> BinaryIO:
        import fsspec  # type: ignore[import-untyped]

        if _is_http(self.name):
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=30, sock_read=STALL_SECONDS)
            options["client_kwargs"] = {"timeout": timeout}
        file: BinaryIO = fsspec.open(self.name, "rb", **options).open()
        return file

    def _read(self, size: int) -> bytes:
        try:
            if self._file.tell() != self._position:
                self._file.seek(self._position)
            return self._file.read(size)
        except ValueError:  # with which fsspec says that the server does not send parts of files
            if not _is_http(self.name):
                raise
        self._file.close()
        self._file = self._open(block_size=0)  # all of it in one answer
        while (left := self._position - self._file.tell()) > 0 and self._file.read(min(left, _BLOCK)):
            pass
        return self._file.read(size)


def _is_http(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _as_os_error(call: Callable[[], Item]) -> Item:
    try:
        return call()
    except OSError:
        raise
    except Exception as error:  # each client library has its own
        raise OSError(str(error).strip().split("\n")[0] or type(error).__name__) from error


def is_passing(error: BaseException) -> bool:
    """Whether an error, or what caused it, comes from a connection and may be gone at the next attempt."""
    cause: BaseException | None = error
    while cause is not None and "OfflineModeIsEnabled" not in repr(cause):  # the user's wish, not an accident
        status = _status(cause)
        if status is not None:
            return status in _PASSING_STATUS
        library = type(cause).__module__.split(".")[0].rstrip("0123456789")  # httpx2 is httpx
        if isinstance(cause, (ConnectionError, TimeoutError, gaierror)) or library in _CLIENTS:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of any of the client libraries carries."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None
