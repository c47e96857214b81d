"""Decoding speed on CPUs, side by side: this package, Hugging Face MarianMTModel and CTranslate2.

Each system runs in a process of its own and gets the same weights (random), the same source ids and the same task:
hypotheses of a forced length. Rounds alternate between the systems; the table shows medians. A system is
NAME:PRECISION:ARRANGEMENT, where an arrangement of 2x1 is two workers of one thread and 1x2 one of two threads. Our
precisions are float32, bf16 and int8 of the prepared network, plain for the network as it is trained, and
compiled-float32 and compiled-int8, whose steps use one thread in any case. `limit` is no system: it does the
arithmetic of the task in a few large products.
Sources are the lines of test_2016_flickr.en in the folder that MULTI30K names, each word a number; without it,
random numbers. Sentences per CPU second count what a process uses of one core, so that they can be compared on a busy
machine; they are given for one worker only.

examples:
  MULTI30K=path/to/multi30k python tests/benchmarks/decoding.py --model tiny
  python tests/benchmarks/decoding.py --model base --systems ours:int8:2x1 ct2:int8:2x1 --json decoding.json
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "nn"))  # for the mapping of weights to Marian's names

VOCAB_SIZE, LENGTH = 10_000, 16
SIZES = {
    "base": {"num_layers": 6, "d_model": 512, "d_ff": 2048, "num_heads": 8},
    "tiny": {"num_layers": 4, "d_model": 128, "d_ff": 256, "num_heads": 4},
}
WORKLOADS = {  # beam, sentences in a batch, batches in a round
    "beam 4, batch 64": (4, 64, 2),
    "greedy, batch 64": (1, 64, 2),
    "beam 4, batch 1": (4, 1, 10),
    "greedy, batch 1": (1, 1, 10),
}
SYSTEMS = ["ours:float32", "ours:bf16", "ours:int8", "ours:compiled-int8", "hf:float32", "ct2:float32", "ct2:int8"]
Batch = list[list[int]]
Decoder = Callable[[list[Batch], int], list[Batch]]


def sources() -> Batch:
    """Source ids without EOS, sorted by length."""
    folder = Path(os.environ.get("MULTI30K", "."))
    plain, packed = folder / "test_2016_flickr.en", folder / "test_2016_flickr.en.gz"
    if plain.is_file() or packed.is_file():
        with gzip.open(packed, "rt", "utf-8") if packed.is_file() else plain.open(encoding="utf-8") as file:
            rows = [[4 + zlib.crc32(word.encode()) % (VOCAB_SIZE - 4) for word in line.split()] for line in file]
    else:
        draw = random.Random(1)
        rows = [[draw.randrange(4, VOCAB_SIZE) for _ in range(draw.randint(6, 24))] for _ in range(1000)]
    return sorted((row for row in rows if row), key=len)


def spread(rows: Batch, count: int, size: int) -> list[Batch]:
    """``count`` runs of ``size`` neighbours, evenly spaced over rows sorted by length."""
    firsts = [int(len(rows) / count * (number + 0.5)) - size // 2 for number in range(count)]
    return [rows[first : first + size] for first in firsts]


def our_network(size: str) -> Any:
    """The network, with the same random weights in every process."""
    import torch
    from test_marian import MarianTransformer

    torch.manual_seed(1)
    return MarianTransformer(VOCAB_SIZE, **SIZES[size]).eval().requires_grad_(False)


def marian(size: str) -> Any:
    """Hugging Face's model with those weights, and one more row for Marian's padding."""
    from test_marian import NAMES
    from transformers import MarianConfig, MarianMTModel

    shape, weights = SIZES[size], our_network(size).state_dict()
    config = MarianConfig(
        vocab_size=VOCAB_SIZE + 1, d_model=shape["d_model"], encoder_layers=shape["num_layers"],
        decoder_layers=shape["num_layers"], encoder_attention_heads=shape["num_heads"],
        decoder_attention_heads=shape["num_heads"], encoder_ffn_dim=shape["d_ff"], decoder_ffn_dim=shape["d_ff"],
        activation_function="relu", max_position_embeddings=256, scale_embedding=True, pad_token_id=VOCAB_SIZE,
        bos_token_id=2, eos_token_id=3, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    model = MarianMTModel(config).eval().requires_grad_(False)
    model.model.shared.weight[:VOCAB_SIZE] = weights["tgt_embedding.weight"]
    theirs = model.state_dict()
    for name, value in weights.items():
        if "layers" in name:
            side, _, index, inside = name.split(".", 3)
            inside, kind = inside.rsplit(".", 1)
            theirs[f"model.{side}.layers.{index}.{NAMES[inside]}.{kind}"].copy_(value)
    return model


def padded(rows: Batch, pad: int) -> Any:
    """Rows with EOS as a tensor, padded on the right."""
    import torch

    width = max(map(len, rows)) + 1
    return torch.tensor([[*row, 3] + [pad] * (width - len(row) - 1) for row in rows])


def ours(size: str, precision: str, workers: int, threads: int) -> Decoder:
    """This package: the searches and the prepared network, as ``Translator`` uses them."""
    import torch

    from lit_transformer.cli import keep_freed_memory
    from lit_transformer.decoding import BeamSearch, GreedySearch
    from lit_transformer.decoding.workers import SearchWorkers
    from lit_transformer.interfaces import TranslationNetwork
    from lit_transformer.nn import PreparedTransformer
    from lit_transformer.nn.compiled import CompiledTransformer

    class Forced(TranslationNetwork):
        """The prepared network, which ends where it must and not before."""

        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network, self.vocab_size, self.max_length = network, VOCAB_SIZE, LENGTH

        def forward(self, src: Any, tgt_input: Any) -> Any:
            return self.network(src, tgt_input)

        def start(self, src: Any) -> Any:
            return self.network.start(src)

        def step(self, tokens: Any, state: Any) -> Any:
            logits, state = self.network.step(tokens, state)
            logits[:, 3] = -1e9
            return logits, state

    keep_freed_memory()
    torch.set_num_threads(threads)
    network = our_network(size)
    kind = CompiledTransformer if precision.startswith("compiled-") else PreparedTransformer
    forced = Forced(network if precision == "plain" else kind(network, precision.removeprefix("compiled-")))
    searches = {1: GreedySearch(LENGTH), 4: BeamSearch(4, max_extra_length=LENGTH)}
    if workers > 1:
        pools = {beam: SearchWorkers(search, forced, workers) for beam, search in searches.items()}

    @torch.inference_mode()
    def decode(batches: list[Batch], beam: int) -> list[Batch]:
        if workers == 1:
            found = [searches[beam](forced, padded(batch, 0)) for batch in batches]
        else:
            found = [wait() for wait in [pools[beam].submit(padded(batch, 0)) for batch in batches]]
        return [[best[0].tokens for best in batch] for batch in found]

    return decode


def hf(size: str, precision: str, workers: int, threads: int) -> Decoder:
    """``MarianMTModel.generate``."""
    import torch

    torch.set_num_threads(threads)
    model = marian(size)
    forced = {"min_new_tokens": LENGTH, "max_new_tokens": LENGTH, "do_sample": False}

    @torch.inference_mode()
    def decode(batches: list[Batch], beam: int) -> list[Batch]:
        found = []
        for batch in batches:
            src = padded(batch, VOCAB_SIZE)
            mask = (src != VOCAB_SIZE).long()
            options = {**forced, "num_beams": beam} | ({"length_penalty": 0.0} if beam > 1 else {})
            found.append(model.generate(input_ids=src, attention_mask=mask, **options)[:, 1:].tolist())
        return found

    return decode


def convert(size: str, folder: str) -> None:
    """Writes the model as CTranslate2 reads it."""
    from ctranslate2.converters.transformers import MarianMTLoader

    spec = MarianMTLoader().get_model_spec(marian(size))
    tokens = [f"t{number}" for number in range(VOCAB_SIZE)]
    tokens[1], tokens[2], tokens[3] = "<unk>", "<s>", "</s>"
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.decoder.start_from_zero_embedding = False
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<unk>"
    spec.config.decoder_start_token, spec.config.add_source_eos = "<s>", True
    spec.validate()
    spec.optimize(quantization=None)
    spec.save(folder)


def ct2(size: str, precision: str, workers: int, threads: int) -> Decoder:
    """CTranslate2, with its weights from a child process, so that PyTorch does not count in its memory."""
    with tempfile.TemporaryDirectory() as folder:
        child = multiprocessing.get_context("spawn").Process(target=convert, args=(size, folder))
        child.start()
        child.join()
        import ctranslate2

        kind = {"bf16": "bfloat16"}.get(precision, precision)
        translator = ctranslate2.Translator(folder, compute_type=kind, inter_threads=workers, intra_threads=threads)

    def decode(batches: list[Batch], beam: int) -> list[Batch]:
        rows = [[f"t{token}" for token in row] for batch in batches for row in batch]
        options = {"min_decoding_length": LENGTH, "max_decoding_length": LENGTH, "length_penalty": 0}
        found = translator.translate_batch(rows, max_batch_size=len(batches[0]), beam_size=beam, **options)
        return [[[int(word[1:]) if word[0] == "t" else 1 for word in one.hypotheses[0]] for one in found]]

    return decode


def multiplications(size: str, num_source: int, num_target: int) -> int:
    """By weights, of a network that reads so many source tokens and takes so many target tokens into account."""
    layers, d, d_ff = (SIZES[size][name] for name in ("num_layers", "d_model", "d_ff"))
    per_source = layers * (4 * d * d + 2 * d * d_ff + 2 * d * d)  # the last: keys and values for the decoder
    per_target = layers * (6 * d * d + 2 * d * d_ff) + d * VOCAB_SIZE
    return num_source * per_source + num_target * per_target


def limit(size: str, precision: str, workers: int, threads: int) -> Decoder:
    """The multiplications by weights that the task needs, in a few large products, which suit the machine best."""
    import torch
    from torch import nn

    from lit_transformer.nn.products import Product, check_precision

    check_precision(precision)
    torch.set_num_threads(threads)
    width, rows_at_once = 1024, 1024
    product = Product([nn.Linear(width, width)], precision)  # type: ignore[arg-type]
    inputs = torch.ones(rows_at_once, width, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)

    @torch.inference_mode()
    def one(batch: Batch, beam: int) -> Batch:
        rows = -(-multiplications(size, sum(len(row) + 1 for row in batch), len(batch) * beam * LENGTH) // width**2)
        for start in range(0, rows, rows_at_once):
            product(inputs[: rows - start])
        return [[] for _ in batch]

    def decode(batches: list[Batch], beam: int) -> list[Batch]:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            return list(pool.map(one, batches, [beam] * len(batches)))

    return decode


def serve(system: str, size: str, pipe: Connection) -> None:
    """The life of one system's process: build, then a round for each request."""
    name, precision, arrangement = system.split(":")
    workers, threads = map(int, arrangement.split("x"))
    decode = {"ours": ours, "hf": hf, "ct2": ct2, "limit": limit}[name](size, precision, workers, threads)
    rows = sources()
    for beam in (1, 4):
        decode([rows[:8]], beam)
    pipe.send("ready")
    while (workload := pipe.recv()) is not None:
        beam, batch_size, count = WORKLOADS[workload]
        batches = spread(rows, count * workers, batch_size)  # a batch for every worker
        wall, cpu = time.perf_counter(), time.process_time()
        found = decode(batches, beam)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        hypotheses = [tokens for batch in found for tokens in batch]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        per_cpu = len(hypotheses) / cpu if workers == 1 else None
        pipe.send({"rate": len(hypotheses) / wall, "per_cpu": per_cpu, "rss": peak, "hypotheses": hypotheses[:64]})
    os._exit(0)  # workers of whatever kind go with it


def measure(options: argparse.Namespace) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """All rounds: by workload and system."""
    context, running = multiprocessing.get_context("spawn"), {}
    for system in options.systems:
        name = system.split(":")[0]
        needed = {"hf": "transformers", "ct2": "ctranslate2"}.get(name, "lit_transformer")
        if find_spec(needed) is None:
            print(f"{system} is left out: {needed} is not installed", file=sys.stderr)
            continue
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(system, options.model, there))
        process.start()
        there.close()
        here.recv()
        running[system] = here
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for number in range(options.rounds):
        for workload in options.workloads:
            for system, pipe in running.items():
                pipe.send(workload)
                result = pipe.recv()
                results.setdefault(workload, {}).setdefault(system, []).append(result)
                rates = f"{result['rate']:.4g}/s, per CPU second {result['per_cpu'] or float('nan'):.4g}"
                print(f"round {number + 1}, {workload}, {system}: {rates}", file=sys.stderr, flush=True)
    for pipe in running.values():
        pipe.send(None)
    return results


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Prints medians and ratios to the first system; returns them as rows."""
    rows = []
    for workload, systems in results.items():
        print(f"\n| {workload} | sentences/s | min-max | / first | per CPU second | / first | peak RSS MiB |")
        print("|---|---|---|---|---|---|---|")
        first: dict[str, Any] = {}
        for system, rounds in systems.items():
            rates = [one["rate"] for one in rounds]
            cpus = [one["per_cpu"] for one in rounds if one["per_cpu"]]
            row = {
                "workload": workload, "system": system, "rate": statistics.median(rates), "rates": rates,
                "per_cpu": statistics.median(cpus) if cpus else None, "rss": max(one["rss"] for one in rounds),
            }  # fmt: skip
            first = first or row
            per_cpu = f"{row['per_cpu']:.4g}" if cpus else ""
            ratio = f"{row['per_cpu'] / first['per_cpu']:.2f}" if cpus and first["per_cpu"] else ""
            print(
                f"| {system} | {row['rate']:.4g} | {min(rates):.4g}-{max(rates):.4g} "
                f"| {row['rate'] / first['rate']:.2f} | {per_cpu} | {ratio} | {row['rss']:.0f} |"
            )
            rows.append(row)
    return rows


def main() -> None:
    """Measures and prints."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="tiny")
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, metavar="NAME:PRECISION[:WORKERSxTHREADS]")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="also write the medians and all rounds here")
    options = parser.parse_args()
    options.systems = [one if one.count(":") == 2 else f"{one}:1x{cores}" for one in options.systems]
    rows = table(measure(options))
    if options.json:
        Path(options.json).write_text(json.dumps({"model": options.model, "results": rows}, indent=1))


if __name__ == "__main__":
    main()
