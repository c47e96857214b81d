"""Measures the data pipeline on rows that it makes itself: speed, time to resume, memory, padding.

Run it from the root of the project, alone on the machine if the figures shall mean something:

    python tests/benchmarks/data_pipeline.py --help
    python tests/benchmarks/data_pipeline.py speed
    python tests/benchmarks/data_pipeline.py resume memory --rows 1000000
    MULTI30K=data/multi30k python tests/benchmarks/data_pipeline.py fill

``MULTI30K`` names a folder with ``train.en`` and ``train.de``, plain or compressed. The rows go into a temporary folder
(set ``TMPDIR`` if it is too small: 10 million rows are 2 GB of text) and are removed at the end. Everything is driven
through ``TranslationDataModule``, as ``trainer.fit`` would.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from synthetic_rows import served, write_jsonl, write_parquet, write_text

from lit_transformer import ParallelCorpus, TranslationDataModule
from lit_transformer.data.cursor import Cursor, lane_start, start_of
from lit_transformer.data.mixing import MixedRows
from lit_transformer.interfaces import TranslationBatch

MAX_TOKENS = 25_000
SOURCES = ["text", "text.gz", "parquet"]
SHORT = 3  # words in the longest sentence, where the number of rows matters and not their length
Result = dict[str, Any]


def open_batches(
    corpus: dict[str, str], folder: Path, cursor: Cursor | None = None, **settings: Any
) -> Iterator[TranslationBatch]:
    """The batches that ``trainer.fit`` would train on, from the cursor on."""
    settings = {"max_tokens": MAX_TOKENS, "vocab_size": 8000, "tokenizer_max_pairs": 50_000} | settings
    data = TranslationDataModule(ParallelCorpus(**corpus), tokenizer_path=str(folder / "tokenizer.json"), **settings)
    data.trainer = L.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, default_root_dir=folder, accelerator="cpu", devices=1,
        max_epochs=1, enable_progress_bar=False,
    )  # fmt: skip
    data.trainer.state.fn = TrainerFn.FITTING
    data.prepare_data()
    data.setup("fit")
    data.cursor = cursor or data.cursor
    return iter(data.train_dataloader())


def speed(folder: Path, rows: int, sources: list[str]) -> list[Result]:
    """Real tokens, both sides counted, that come out in one second, and in one second of all processors together."""
    rows = min(rows, 200_000)
    forms: dict[str, dict[str, Any]] = {
        "text": write_text(folder, rows),
        "text.gz": write_text(folder / "gz", rows, compressed=True),
        "parquet": write_parquet(folder, rows),
    }
    write_jsonl(folder, rows)
    write_parquet(folder / "one", rows, files=1)
    results = []
    with served(folder) as address:
        forms["HTTP jsonl.gz"] = {"path": f"{address}/rows.jsonl.gz"}
        forms["HTTP parquet"] = {"path": f"{address}/one/part0.parquet"}
        cached = {"cache_path": str(folder / "text.arrow")}
        next(open_batches(forms["text"], folder, **cached))  # makes tokenizer and cache
        for form, corpus, settings in [*((form, corpus, {}) for form, corpus in forms.items()),
                                       ("cache", forms["text"], cached)]:  # fmt: skip
            for workers in (0, 1, 2):
                tokens, processor, start = 0, sum(os.times()[:4]), time.perf_counter()
                for batch in open_batches(corpus, folder, num_workers=workers, **settings):
                    tokens += int(batch.src.count_nonzero() + batch.tgt.count_nonzero())
                rate = tokens / (time.perf_counter() - start)
                processor_rate = tokens / (sum(os.times()[:4]) - processor)
                results.append({"source": form, "workers": workers, "tokens": tokens, "tokens/s": round(rate),
                                "tokens/processor second": round(processor_rate)})  # fmt: skip
                print(results[-1], file=sys.stderr)
    return results


def resume(folder: Path, rows: int, sources: list[str]) -> list[Result]:
    """Seconds from building the loader with a saved cursor to its first batch, and what of them was computing."""
    results = []
    for form, corpus in _large_forms(folder, rows, 25, sources):
        next(open_batches(corpus, folder))  # makes the tokenizer
        for part, cursor in _cursors(corpus, rows, (0.0, 0.1, 0.9)):
            results.append({"source": form, "rows": rows, "resumed at": part, **_first_batch(corpus, folder, cursor)})
            print(results[-1], file=sys.stderr)
    return results


def cache(folder: Path, rows: int, sources: list[str]) -> list[Result]:
    """Seconds to write the token cache, and then to resume on it."""
    corpus, place = write_text(folder, rows, SHORT), folder / "text.arrow"
    settings = {"cache_path": str(place)}
    results = [{"step": "write", "rows": rows, **_first_batch(corpus, folder, start_of(0), **settings)}]
    for part in (0.0, 0.1, 0.9):
        cursor = {**start_of(0), "lanes": [{**lane_start(), "pool": int(part * rows) // 32_000}]}
        results.append({"step": f"resume at {part}", "rows": rows, **_first_batch(corpus, folder, cursor, **settings)})
        print(results[-1], file=sys.stderr)
    return [{**result, "file MB": place.stat().st_size >> 20} for result in results]


def memory(folder: Path, rows: int, sources: list[str]) -> list[Result]:
    """Peak resident memory of a process that goes through the stream, in MB; an eighth of it, and the whole."""
    results = []
    for form, corpus in _large_forms(folder, rows, SHORT, sources):
        for count in (rows // 8, rows):
            command = [sys.executable, __file__, "_stream", "--folder", str(folder), "--rows", str(count)]
            done = subprocess.run([*command, "--corpus", json.dumps(corpus)], check=True, stdout=subprocess.PIPE)
            results.append({"source": form, **json.loads(done.stdout)})
            print(results[-1], file=sys.stderr)
    return results


def fill(folder: Path, rows: int, sources: list[str]) -> list[Result]:
    """Real tokens over padded area on Multi30k, at 4,096 tokens a batch."""
    place = os.environ.get("MULTI30K")
    if not place:
        return [{"skipped": "set MULTI30K to a folder with train.en and train.de"}]
    corpus = {"path": str(Path(place) / "train"), "src": "en", "tgt": "de"}
    settings = {"max_tokens": 4096, "vocab_size": 10_000}
    real = area = 0
    for batch in open_batches(corpus, folder, **settings):
        for ids in (batch.src, batch.tgt):
            real, area = real + int(ids.count_nonzero()), area + ids.numel()
    return [{"corpus": "Multi30k en-de", **settings, "fill": round(real / area, 4)}]


def _first_batch(corpus: dict[str, str], folder: Path, cursor: Cursor, **settings: Any) -> Result:
    processor, start = time.process_time(), time.perf_counter()
    next(open_batches(corpus, folder, cursor, **settings))
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return {"seconds": round(seconds, 2), "processor seconds": round(processor, 2)}


def _large_forms(folder: Path, rows: int, longest: int, sources: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    makers: dict[str, Callable[[Path], dict[str, str]]] = {
        "text": lambda place: write_text(place, rows, longest),
        "text.gz": lambda place: write_text(place, rows, longest, compressed=True),
        "parquet": lambda place: write_parquet(place, rows, longest),
    }
    for form in sources:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            yield form, makers[form](Path(place))


def _cursors(corpus: dict[str, str], rows: int, parts: tuple[float, ...]) -> list[tuple[float, Cursor]]:
    """The cursors that a run would save after these parts of an epoch, found without making ids."""
    found, wanted, seen = [], list(parts), 0
    for place, parts_of_pool in MixedRows([ParallelCorpus(**corpus)], 32_000).pools(lane_start()):
        if seen >= wanted[0] * rows:
            found.append((wanted.pop(0), {**start_of(0), "lanes": [place]}))
        if not wanted:
            break
        seen += sum(len(part.rows) for part in parts_of_pool)
    return found


def _stream(folder: Path, rows: int, corpus: dict[str, str]) -> Result:
    """Goes through ``rows`` rows and tells the peak memory; runs in a process of its own."""
    settings: dict[str, Any] = {**corpus, "max_rows": rows}
    start, pairs = time.perf_counter(), 0
    for batch in open_batches(settings, folder):
        pairs += len(batch)
    return {"rows": pairs, "seconds": round(time.perf_counter() - start), "peak memory MB": round(_peak_memory_mb())}


def _peak_memory_mb() -> float:
    if sys.platform == "linux":  # where getrusage would also count what the parent process held before it forked
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def _table(rows: list[Result]) -> str:
    names = list(rows[0])
    cells = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def main() -> None:
    """Runs what the command line asks for; prints tables, and JSON where it is told to."""
    benchmarks = {function.__name__: function for function in (speed, resume, cache, memory, fill)}
    summary, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=usage,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("which", nargs="*", help=f"what to measure, among {', '.join(benchmarks)}; all if left out")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the streams of resume and memory")
    parser.add_argument("--sources", type=lambda names: names.split(","), default=SOURCES,
                        help=f"sources of resume and memory, by default {','.join(SOURCES)}")  # fmt: skip
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning|torch")
    if arguments.which == ["_stream"]:
        print(json.dumps(_stream(arguments.folder, arguments.rows, arguments.corpus)))
        return
    unknown = set(arguments.which) - set(benchmarks)
    if unknown:
        parser.error(f"cannot measure {', '.join(sorted(unknown))}; there are {', '.join(benchmarks)}")
    results = {}
    for name in arguments.which or benchmarks:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = benchmarks[name](Path(folder), arguments.rows, arguments.sources)
        print(f"\n{name}\n{_table(results[name])}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
