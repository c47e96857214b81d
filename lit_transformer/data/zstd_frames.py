"""Whether a Zstandard file is whole, told from its block headers without decompressing it (RFC 8878)."""

from __future__ import annotations

import os
from typing import BinaryIO

_MAGIC = 0xFD2FB528
_SKIPPABLE_MAGIC = 0x184D2A5  # without its last four bits, which may be anything
_RLE = 1  # a block of one byte, repeated


def check_whole(file: BinaryIO) -> None:
    """Steps from header to header to the end of a file of Zstandard frames; reads a few bytes of each block.

    Args:
        file: The file, at its start; one that can be sought in.

    Raises:
        EOFError: If it ends within a frame, as a download that broke off does.
        ValueError: If there is no frame where one should begin.
    """
    size = file.seek(0, os.SEEK_END)
    position = file.seek(0)
    while position < size:
        magic = _number(file, 4)
        if magic >> 4 == _SKIPPABLE_MAGIC:
            length = _number(file, 4)
            position = file.seek(length, os.SEEK_CUR)
        elif magic == _MAGIC:
            position = _step_over_frame(file)
        else:
            raise ValueError("it is not Zstandard data")
        if position > size:
            raise EOFError("the compressed data end too early, the file is cut off")


def _step_over_frame(file: BinaryIO) -> int:
    descriptor = _number(file, 1)
    is_single_segment = bool(descriptor & 0b100000)
    content_size = (int(is_single_segment), 2, 4, 8)[descriptor >> 6]
    dictionary_id = (0, 1, 2, 4)[descriptor & 0b11]
    file.seek(content_size + dictionary_id + (not is_single_segment), os.SEEK_CUR)  # the last is the window's size
    is_last = False
    while not is_last:
        header = _number(file, 3)
        is_last, kind, size = bool(header & 1), header >> 1 & 0b11, header >> 3
        file.seek(1 if kind == _RLE else size, os.SEEK_CUR)
    return file.seek(4 if descriptor & 0b100 else 0, os.SEEK_CUR)  # the checksum


def _number(file: BinaryIO, size: int) -> int:
    data = file.read(size)
    if len(data) < size:
        raise EOFError("the compressed data end too early, the file is cut off")
    return int.from_bytes(data, "little")
