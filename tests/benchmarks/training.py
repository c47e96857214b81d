"""Training speed side by side: this package, torch.nn.Transformer and Hugging Face Marian on the same ids.

    MULTI30K=folder python tests/benchmarks/training.py --size tiny --precision float32 --json results.json

Each contestant lives in a process of its own. All are loaded, then make their rounds in turn, so that a machine whose
speed drifts drifts for all of them; compare numbers of one run only. MULTI30K is a folder with train.en and train.de
(plain or .gz); without it, random ids of like lengths are used. A name that ends in +heap asks glibc to keep freed
memory and does without its caches of small pieces, as `lit-transformer fit` does. `before` is `ours` of another copy of
the package, see --before; before+heap keeps those caches.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

CONTESTANTS = ["ours+heap", "trainer+heap", "ours", "torch", "torch+heap", "hf", "hf+heap", "hf-trainer"]
POOL = 8192  # sentence pairs sorted by length together


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "base", "big", "toy"], default="tiny")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--devices", type=int, default=1, help="processes that train together (DDP), each on a device")
    parser.add_argument("--before", type=Path, help="folder of another version of this project, for the name `before`")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each process (default: all)")
    parser.add_argument("--max-tokens", type=int, default=4096, help="positions of a batch on each side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps in a round")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first round")
    parser.add_argument("--contestants", nargs="+", default=CONTESTANTS, metavar="NAME", help=" ".join(CONTESTANTS))
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall", help="processor: for a busy machine")
    parser.add_argument("--peak-tflops", type=float, help="of the device's data sheet, for the column MFU")
    parser.add_argument("--json", type=Path, help="where to write all rounds")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--ids", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.devices > 1 and any(name.startswith("hf-trainer") for name in options.contestants):
        parser.error("hf-trainer is measured on one device; name other --contestants")
    if options.before is None and any(name.startswith("before") for name in options.contestants):
        parser.error("`before` needs --before FOLDER")
    return options


# The text


def read_ids() -> tuple[list[list[int]], list[list[int]]]:
    """Ids of source and target sentences: of Multi30k, or random ones of like lengths."""
    folder = os.environ.get("MULTI30K")
    if folder:
        from lit_transformer import SentencePair, SubwordTokenizer

        src, tgt = (_lines(Path(folder), f"train.{lang}") for lang in ("en", "de"))
        tokenizer = SubwordTokenizer(vocab_size=10_000)
        tokenizer.train(map(SentencePair, src, tgt))
        return tokenizer.encode_src(src[:POOL]), tokenizer.encode_tgt(tgt[:POOL])
    draw = random.Random(1)
    lengths = [max(4, round(draw.gauss(15, 5))) for _ in range(POOL)]
    src_ids = [[*(draw.randrange(4, 10_000) for _ in range(n)), 3] for n in lengths]
    return src_ids, [
        [2, *(draw.randrange(4, 10_000) for _ in range(max(3, n + draw.randint(-3, 3)))), 3] for n in lengths
    ]


def _lines(folder: Path, name: str) -> list[str]:
    plain = folder / name
    if plain.exists():
        return plain.read_text(encoding="utf-8").splitlines()
    with gzip.open(folder / f"{name}.gz", "rt", encoding="utf-8") as file:
        return file.read().splitlines()


def cut_batches(path: Path, max_tokens: int) -> list[Any]:
    """The same batches in the same order for everyone."""
    from lit_transformer.data.batching import Ragged, TokenBudgetBatches, collate

    src, tgt = pickle.loads(path.read_bytes())
    pool = Ragged(src), Ragged(tgt)
    cuts = TokenBudgetBatches(max_tokens)([len(row) for row in src], [len(row) - 1 for row in tgt], seed="1")
    return [collate(*pool, rows) for rows in cuts]


# A worker: one contestant in its own process


class Rounds:
    """Counts steps; tells the parent how long a round took, and waits for its word to begin the next one."""

    def __init__(self, options: argparse.Namespace, batches: list[Any]) -> None:
        from contestants import SIZES

        self.options, self.left, self.clock = options, options.warmup, _clock(options.clock)
        self.batches, self.size = batches, SIZES[options.size]
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes to standard error
        self.taken: list[Any] = []
        self.losses: list[Any] = []
        self.start = self.clock()

    def __iter__(self) -> Iterator[Any]:
        devices, rank = self.options.devices, local_rank()
        for start in cycle(range(0, len(self.batches) - devices + 1, devices)):
            together = self.batches[start : start + devices]  # one for each process
            self.taken.append(together)
            yield together[rank]

    def after_step(self, loss: Any) -> None:
        """Notes a step. At the end of a round: report, wait, go on."""
        if local_rank():
            return
        self.losses.append(loss.detach())
        self.left -= 1
        if self.left:
            return
        self._synchronize()
        print(json.dumps(self._report(self.clock() - self.start)), file=self.out, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # the parent is done with us
        self.losses, self.left = [], self.options.steps
        self.start = self.clock()

    def _report(self, seconds: float) -> dict[str, Any]:
        import torch

        steps, self.taken = self.taken[: len(self.losses)], self.taken[len(self.losses) :]
        done = [batch for together in steps for batch in together]
        tokens = sum(int((batch.src != 0).sum() + batch.num_labels) for batch in done)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self.options.device == "cuda":
            memory = torch.cuda.max_memory_allocated()
        flops = sum(map(self.size.flops, done))
        losses = [round(float(loss), 4) for loss in self.losses]
        return {"seconds": seconds, "tokens": tokens, "flops": flops, "bytes": memory, "losses": losses}

    def _synchronize(self) -> None:
        import torch

        if self.options.device == "cuda":
            torch.cuda.synchronize()


def local_rank() -> int:
    """Which of the processes that train together this one is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def join(options: argparse.Namespace) -> str:
    """Makes this process one of those that train together, and starts the others; returns its device."""
    import torch

    if options.devices == 1:
        return str(options.device)
    if not local_rank():
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()), WORLD_SIZE=str(options.devices))
        for rank in range(1, options.devices):
            environment = {**os.environ, "LOCAL_RANK": str(rank), "RANK": str(rank)}
            subprocess.Popen([sys.executable, *sys.argv], env=environment, stdin=subprocess.DEVNULL)
    os.environ.setdefault("RANK", "0")
    if options.device == "cuda":
        torch.cuda.set_device(local_rank())
    torch.distributed.init_process_group("nccl" if options.device == "cuda" else "gloo")
    return f"cuda:{local_rank()}" if options.device == "cuda" else "cpu"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _clock(kind: str) -> Callable[[], float]:
    return time.process_time if kind == "processor" else time.perf_counter


def work(options: argparse.Namespace) -> None:
    """Trains for ever as the contestant that the parent names."""
    import torch

    if local_rank():
        end_with_parent()
    name, _, heap = options.worker.partition("+")
    if heap:
        from lit_transformer.cli import keep_freed_memory, remember_fewer_products

        keep_freed_memory()
        remember_fewer_products()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    from contestants import SIZES, make, train_by_seq2seq_trainer, train_by_trainer

    size = SIZES[options.size]
    if name == "limit":
        print(json.dumps({"flops_per_second": product_rate(size, options)}), flush=True)
        return
    rounds = Rounds(options, cut_batches(options.ids, options.max_tokens))
    precision, device, devices = options.precision, options.device, options.devices
    if name == "trainer":
        train_by_trainer(size, precision, device, devices, iter(rounds), rounds.after_step)
    if name == "hf-trainer":
        train_by_seq2seq_trainer(size, precision, device, iter(rounds), rounds.after_step)
    step = make("ours" if name == "before" else name, size, precision, join(options), devices)
    for batch in rounds:
        rounds.after_step(step(batch))


def product_rate(size: Any, options: argparse.Namespace) -> float:
    """Floating-point operations per second of the products that training this size consists of, at their fastest."""
    import torch

    from lit_transformer.kernels import product

    d, clock = size.d_model, _clock(options.clock)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    rates = []
    for inner, outer in ((d, d), (d, size.d_ff), (size.d_ff, d), (d, size.vocab_size)):
        rows, weight = (torch.randn(n, inner, device=options.device, dtype=dtype) for n in (options.max_tokens, outer))
        result = rows @ weight.T
        for left, right in ((rows, weight.T), (result, weight), (result.T, rows)):  # forward, and both gradients
            seconds = []
            for multiply in (torch.matmul, lambda x, y: product(x, y.T)):  # on CPUs by MKL and by oneDNN
                for _ in range(5):
                    start = clock()
                    multiply(left, right)
                    if options.device == "cuda":
                        torch.cuda.synchronize()
                    seconds.append(clock() - start)
            rates.append(2 * options.max_tokens * inner * outer / min(seconds))
    return statistics.harmonic_mean(rates)


# The parent


def measure(options: argparse.Namespace, ids: Path) -> dict[str, Any]:
    """Starts everyone, lets them take turns, and returns all rounds."""
    from lit_transformer.cli import WHOLE_HEAP

    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, *sys.argv[1:], "--ids", str(ids), "--worker", name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        own = dict(environment)
        if name.startswith("before"):
            own["PYTHONPATH"] = str(options.before.resolve())
        elif name.endswith("+heap"):
            own["GLIBC_TUNABLES"] = WHOLE_HEAP
        log = None if os.environ.get("BENCHMARK_DEBUG") else subprocess.DEVNULL
        return subprocess.Popen(command, env=own, text=True, stderr=log, **pipes)  # type: ignore[call-overload]

    limit = json.loads(start("limit").communicate()[0])["flops_per_second"]
    workers = {}
    for name in options.contestants:
        workers[name] = start(name)
        heard(name, workers[name])  # after warm-up: nothing runs beside it
    rounds: dict[str, list[Any]] = {name: [] for name in workers}
    for number in range(options.rounds):
        for name, worker in workers.items():
            worker.stdin.write("\n")
            worker.stdin.flush()
            rounds[name].append(heard(name, worker))
            rate = rounds[name][-1]["tokens"] / rounds[name][-1]["seconds"]
            print(f"round {number + 1} {name}: {rate:.0f} tokens/s", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return {"limit_flops_per_second": limit, "rounds": rounds}


def heard(name: str, worker: Any) -> dict[str, Any]:
    line = worker.stdout.readline()
    if not line:
        sys.exit(f"{name} stopped; set BENCHMARK_DEBUG=1 to see what it says")
    result: dict[str, Any] = json.loads(line)
    return result


def table(options: argparse.Namespace, result: dict[str, Any]) -> str:
    """Medians over the rounds; ratios are medians of the ratios within each round."""
    first = options.contestants[0]
    lines = [
        f"{options.size}, {options.precision}, {options.devices} x {options.device}, {options.threads} thread(s), "
        f"batches of at most {options.max_tokens} tokens, "
        f"{options.rounds} rounds of {options.steps} steps, {options.clock} seconds; "
        f"matrix products alone: {result['limit_flops_per_second'] / 1e9:.0f} GFLOP/s",
        "",
        f"| contestant | real tokens/s | {first} is faster by | share of the limit | MFU | peak memory, MiB | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rounds in result["rounds"].items():
        rate = statistics.median(row["tokens"] / row["seconds"] for row in rounds)
        ratio = statistics.median(
            row["seconds"] / own["seconds"] for row, own in zip(rounds, result["rounds"][first], strict=True)
        )
        speed = statistics.median(row["flops"] / row["seconds"] for row in rounds)
        share = speed / options.devices / result["limit_flops_per_second"]
        mfu = f"{speed / options.devices / options.peak_tflops / 1e12:.0%}" if options.peak_tflops else ""
        memory = max(row["bytes"] for row in rounds) / 2**20
        loss = rounds[-1]["losses"][-1]
        lines.append(f"| {name} | {rate:,.0f} | {ratio:.2f} | {share:.0%} | {mfu} | {memory:,.0f} | {loss:.2f} |")
    return "\n".join(lines)


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids.pkl"
        ids.write_bytes(pickle.dumps(read_ids()))
        result = measure(options, ids)
    print(table(options, result))
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items() if name not in ("worker", "ids", "json")}
        options.json.write_text(json.dumps({"settings": settings, **result}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
