"""One process at a time makes a file that many need."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock beside ``path``; the system lets go of it when a process dies, so it cannot be left behind.

    The file of the lock is removed by whoever held it. That is safe where a finished file appears at once, under its
    own name, and all who get the lock look for it first.

    Args:
        path: The file to be made. Its folder must be there.
    """
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("another process is making %s: waiting for it", path)
        lock.acquire()
    try:
        yield
    finally:
        let_go(lock)


def let_go(lock: BaseFileLock) -> None:
    """Removes the file of a lock that is held, and releases it."""
    with suppress(OSError):  # Windows removes no file that is open; release does it there
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
