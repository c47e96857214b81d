"""A Zstandard file counts as whole exactly if the reference decoder comes to the end of a frame."""

import io
import random

import pytest
import zstandard

from lit_transformer.data.zstd_frames import check_whole

RANDOM = random.Random(1)
NOISE = RANDOM.randbytes(300)
TEXT = b"".join(b"a line of text number %d\n" % n for n in range(40))


def streamed(data, **options):
    """In blocks of a few bytes, and without the size of the content in the header."""
    codec = zstandard.ZstdCompressor(**options).compressobj()
    blocks = [codec.compress(data[at : at + 50]) + codec.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for at in (0, 50)]
    return b"".join([*blocks, codec.compress(data[100:]), codec.flush()])


def skippable(content):
    return (0x184D2A53).to_bytes(4, "little") + len(content).to_bytes(4, "little") + content


FILES = {
    "one": zstandard.compress(TEXT),
    "incompressible": zstandard.compress(NOISE),
    "one byte repeated": zstandard.compress(b"a" * 1000),
    "nothing inside": zstandard.compress(b""),
    "without checksum": zstandard.ZstdCompressor(write_checksum=False).compress(TEXT),
    "with checksum": zstandard.ZstdCompressor(write_checksum=True).compress(TEXT),
    "streamed": streamed(TEXT),
    "streamed with checksum": streamed(NOISE, write_checksum=True),
    "several": zstandard.compress(TEXT) + skippable(b"an index") + streamed(NOISE) + zstandard.compress(b"a" * 1000),
    "size in four bytes": zstandard.compress(bytes(200_000)),
}


def whole_by_decoding(data):
    """What the reference decoder says; skippable frames it passes over without a word."""
    while data:
        if data[1:4] == b"\x2a\x4d\x18":
            end = 8 + int.from_bytes(data[4:8], "little")
            if len(data) < max(8, end):
                return False
            data = data[end:]
            continue
        codec = zstandard.ZstdDecompressor().decompressobj()
        codec.decompress(data)
        if not codec.eof:
            return False
        data = codec.unused_data
    return True


@pytest.mark.parametrize("name", FILES)
def test_cut_off_anywhere(name):
    data = FILES[name]
    check_whole(io.BytesIO(data))
    cut = 0
    for size in range(len(data)):
        if whole_by_decoding(data[:size]):
            check_whole(io.BytesIO(data[:size]))
        else:
            cut += 1
            with pytest.raises(EOFError, match="cut off"):
                check_whole(io.BytesIO(data[:size]))
    assert cut >= len(data) - 4  # between frames a file may end


def test_something_else():
    for data in (b"this is not compressed", FILES["one"] + b"and more"):
        with pytest.raises(ValueError, match="not Zstandard"):
            check_whole(io.BytesIO(data))
