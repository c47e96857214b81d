"""Parallel text without meaning, written in the forms that corpora have, and a loopback server that serves it."""

from __future__ import annotations

import gzip
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from pathlib import Path

BLOCK_ROWS = 50_000  # different rows; larger files repeat them
_CONSONANTS, _VOWELS = "bdfghklmnprstvz", "aeiou"


def sentences(count: int, seed: int, longest: int) -> list[str]:
    """Sentences of 1 to ``longest`` words out of 30,000 made-up ones, the frequent ones as frequent as in real text."""
    chooser = random.Random(seed)
    syllables = [first + vowel for first in _CONSONANTS for vowel in _VOWELS]
    words = ["".join(chooser.choices(syllables, k=chooser.randint(1, 4))) for _ in range(30_000)]
    weights = list(accumulate(1 / rank for rank in range(2, len(words) + 2)))
    return [" ".join(chooser.choices(words, cum_weights=weights, k=chooser.randint(1, longest))) for _ in range(count)]


def blocks(rows: int, longest: int) -> Iterator[tuple[list[str], list[str]]]:
    """The two sides of ``rows`` rows, block by block."""
    size = min(rows, BLOCK_ROWS)
    src, tgt = sentences(size, 1, longest), sentences(size, 2, longest)
    for start in range(0, rows, size):
        yield src[: rows - start], tgt[: rows - start]


def write_text(folder: Path, rows: int, longest: int = 25, compressed: bool = False) -> dict[str, str]:
    """Two line-aligned files, plain or compressed; returns the arguments of the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    ending = ".gz" if compressed else ""
    packed: dict[tuple[int, int], bytes] = {}
    with open(folder / f"text.en{ending}", "wb") as en, open(folder / f"text.de{ending}", "wb") as de:
        for sides in blocks(rows, longest):
            for number, (file, lines) in enumerate(zip((en, de), sides, strict=True)):
                key = number, len(lines)
                if key not in packed:
                    data = "".join(f"{line}\n" for line in lines).encode()
                    packed[key] = gzip.compress(data, 6) if compressed else data  # members may be joined end to end
                file.write(packed[key])
    return {"path": str(folder / "text")}


def write_parquet(folder: Path, rows: int, longest: int = 25, files: int = 8, group: int = 10_000) -> dict[str, str]:
    """Parquet files with row groups of ``group`` rows; returns the arguments of the corpus."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("en", pa.string()), ("de", pa.string())])
    writers = [ParquetWriter(folder / f"part{number}.parquet", schema) for number in range(files)]
    for number, (src, tgt) in enumerate(blocks(rows, longest)):
        table = pa.table({"en": src, "de": tgt}, schema=schema)
        writers[number % files].write_table(table, row_group_size=group)
    for writer in writers:
        writer.close()
    return {"path": str(folder / "part*.parquet")}


def write_jsonl(folder: Path, rows: int, longest: int = 25) -> dict[str, str]:
    """One compressed file of JSON lines; returns the arguments of the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "rows.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as file:
        for src, tgt in blocks(rows, longest):
            file.writelines(json.dumps({"en": en, "de": de}) + "\n" for en, de in zip(src, tgt, strict=True))
    return {"path": str(folder / "rows.jsonl.gz")}


class _Ranges(SimpleHTTPRequestHandler):
    """Serves files whole or the range that is asked for, and says nothing."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        asked = self.headers.get("Range")
        first, _, last = asked.removeprefix("bytes=").partition("-") if asked else ("", "", "")
        start, end = int(first or 0), min(int(last or len(data)) + 1, len(data))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with suppress(ConnectionError):  # the reader has enough
            self.wfile.write(data[start:end])

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A loopback server for the files of a folder; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranges, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
