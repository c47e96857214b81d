"""Time of whole programs: start-up, one sentence, the first training step, validation, checkpoints, a long file.

Every figure is of fresh processes, started by turns; the table shows medians. Before them comes one start of each that
does not count: it fills the disk's cache, compiles the decoding step and converts the checkpoint for CTranslate2.
Processor seconds count what a process used, so that they can be compared on a busy machine.

CHECKPOINT is anything that ``translate`` takes. ``first_step`` and ``training`` train configs/tiny.yaml on the folder
that MULTI30K names, the latter for as many steps as its interval of validations; unknown options are handed on to fit.
A model that has learned nothing yet writes translations of the greatest length, so the cost of a validation is best
taken of a run that goes on: --steps 7850 --ckpt_path runs/tiny/checkpoints/step=7750.ckpt and shorter intervals.

examples:
  MULTI30K=path/to/multi30k python tests/benchmarks/program.py runs/tiny --json program.json
  python tests/benchmarks/program.py runs/tiny --parts help sentence --starts 7
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
LIT = [sys.executable, "-m", "lit_transformer"]
SENTENCE = "A man in a red shirt is riding a bike down the street."
PARTS = ("help", "imports", "sentence", "first_step", "training", "stream")
IMPORTS = {  # what is imported, and what is compared with
    "nothing": ("pass", None),
    "torch": ("import torch", None),
    "torch, lightning": ("import torch, lightning", None),
    "lit_transformer": ("import lit_transformer", "nothing"),
    "lit_transformer.Translator": ("from lit_transformer import Translator", "torch"),
    "lit_transformer.LitTransformer": ("from lit_transformer import LitTransformer", "torch, lightning"),
    "lit_transformer.training_cli": ("import lit_transformer.training_cli", "torch, lightning"),
}
TRANSFORMERS = """
import json, sys, torch, transformers
folder, sentence = sys.argv[1:]
kind = getattr(transformers, json.load(open(folder + "/config.json"))["architectures"][0])
tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
model = kind.from_pretrained(folder).eval()
with torch.inference_mode():
    ids = model.generate(**tokenizer([sentence], return_tensors="pt", return_token_type_ids=False), num_beams=4)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
"""
CTRANSLATE2 = """
import sys, ctranslate2, tokenizers
folder, sentence = sys.argv[1:]
tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
tokens = tokenizer.encode(sentence).tokens
best = ctranslate2.Translator(folder).translate_batch([tokens], beam_size=4)[0].hypotheses[0]
ids = [tokenizer.token_to_id(token) for token in best]
print(tokenizer.decode([number for number in ids if number is not None]))  # an untrained model knows unused tokens
"""
Figures = dict[str, float]
Programs = dict[str, list[str]]


def timed(command: list[str], **variables: str) -> Figures:
    """Runs a program; its seconds, its processor seconds and the peak memory (MiB) of its largest process."""
    with tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        environment = {**os.environ, **variables}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read()}")
    return {"seconds": wall, "processor": usage.ru_utime + usage.ru_stime, "rss": usage.ru_maxrss / 1024}


def by_turns(programs: Programs, starts: int, warm: bool = True) -> dict[str, list[Figures]]:
    """The figures of so many starts of each program."""
    found: dict[str, list[Figures]] = {name: [] for name in programs}
    for number in range(starts + warm):
        for name, command in programs.items():
            figures = timed(command)
            if number >= warm:
                found[name].append(figures)
                print(f"{name}: {figures['seconds']:.2f} s, processor {figures['processor']:.2f} s", file=sys.stderr)
    return found


def medians(found: dict[str, list[Figures]]) -> dict[str, Figures]:
    """The median of each figure."""
    return {
        name: {key: statistics.median(one[key] for one in starts) for key in starts[0]}
        for name, starts in found.items()
    }


def show(title: str, rows: dict[str, Figures], beyond: dict[str, str | None] | None = None) -> None:
    """Prints a table of programs; ``beyond`` names the row that is subtracted in the last column."""
    print(f"\n| {title} | seconds | processor seconds | peak RSS MiB |{' processor, beyond |' if beyond else ''}")
    print("|---|---|---|---|" + ("---|" if beyond else ""))
    for name, row in rows.items():
        floor = (beyond or {}).get(name)
        more = f" {row['processor'] - rows[floor]['processor']:.2f} ({floor}) |" if floor else " |" if beyond else ""
        print(f"| {name} | {row['seconds']:.2f} | {row['processor']:.2f} | {row['rss']:.0f} |{more}")


def start_ups(options: argparse.Namespace) -> dict[str, Figures]:
    """Help pages."""
    from lit_transformer.cli import COMMANDS

    chosen = options.commands or COMMANDS
    programs = {"--help": [*LIT, "--help"], **{f"{name} --help": [*LIT, name, "--help"] for name in chosen}}
    rows = medians(by_turns(programs, options.starts))
    show("help page", rows)
    return rows


def imports(options: argparse.Namespace) -> dict[str, Figures]:
    """What it takes to import the package and its parts."""
    programs = {name: [sys.executable, "-c", code] for name, (code, _) in IMPORTS.items()}
    rows = medians(by_turns(programs, options.starts))
    show("import of", rows, {name: floor for name, (_, floor) in IMPORTS.items()})
    return rows


def sentence(options: argparse.Namespace) -> dict[str, Figures]:
    """One sentence, from the start of the process to its end, beside others."""
    translate = [*LIT, "translate", options.checkpoint, SENTENCE]
    programs: Programs = {
        "import torch": [sys.executable, "-c", "import torch"],
        "translate": translate,
        "translate --beam_size 1": [*translate, "--beam_size", "1"],
        "translate --compile": [*translate, "--compile"],
    }
    with tempfile.TemporaryDirectory() as folder:
        if find_spec("ctranslate2"):
            programs["translate --engine ctranslate2"] = [*translate, "--engine", "ctranslate2"]
            programs["CTranslate2 alone, no torch"] = [sys.executable, "-c", CTRANSLATE2, f"{folder}/ct2", SENTENCE]
            timed([*LIT, "export", options.checkpoint, f"{folder}/ct2", "--format", "ctranslate2"])
        if find_spec("transformers"):
            programs["transformers, the same model"] = [sys.executable, "-c", TRANSFORMERS, f"{folder}/hf", SENTENCE]
            timed([*LIT, "export", options.checkpoint, f"{folder}/hf", "--format", "huggingface"])
        rows = medians(by_turns(programs, options.starts))
    show("one sentence", rows, dict.fromkeys(rows.keys() - {"import torch"}, "import torch"))
    return rows


def fit(options: argparse.Namespace, folder: Path, *more: str) -> dict[str, Any]:
    """Trains, and returns what the clock in the process showed."""
    out = folder / "clock.json"
    configs = [f"--config={ROOT / 'configs' / name}" for name in ("tiny.yaml", "data/multi30k_en_de_files.yaml")]
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={folder / 'run'}", "--overwrite=true"]
    command = [sys.executable, str(Path(__file__).with_name("clocked_fit.py")), str(out), *configs, *quiet]
    timed([*command, *more, *options.fit], STARTED=str(time.time()))
    return dict(json.loads(out.read_text()))


def first_step(options: argparse.Namespace) -> dict[str, Any]:
    """From the start of ``fit`` to the end of its first step, the tokenizer trained on the way or read from a file."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit(options, folder, "--trainer.max_steps=1")
        ready = folder / "tokenizer.json"
        ready.write_bytes((folder / "run/tokenizer.json").read_bytes())
        for title, more in {"tokenizer trained": [], "tokenizer read": [f"--data.tokenizer_path={ready}"]}.items():
            runs = []
            for _ in range(options.starts):
                (folder / "run/tokenizer.json").unlink(missing_ok=True)
                runs.append(fit(options, folder, "--trainer.max_steps=1", *more)["marks"])
            rows[title] = {
                key: [statistics.median(run[key][place] for run in runs) for place in (0, 1)] for key in runs[0]
            }
    for title, marks in rows.items():
        print(f"\n| fit, {title}: until | seconds | processor seconds |\n|---|---|---|")
        for key, (wall, processor) in marks.items():
            print(f"| {key} | {wall:.2f} | {processor:.2f} |")
    return rows


def training(options: argparse.Namespace) -> dict[str, Any]:
    """Shares of validation and checkpoints in the time of a training, without its start and its first step."""
    with tempfile.TemporaryDirectory() as name:
        found = fit(options, Path(name), f"--trainer.max_steps={options.steps}")
        size = max(Path(name).glob("run/checkpoints/*.ckpt")).stat().st_size / 2**20
    marks, spent = found["marks"], found["spent"]
    total = [marks["end"][place] - marks["first step"][place] for place in (0, 1)]
    steps = spent["forward passes of training"][2]
    print(f"\n| {steps} steps | seconds | share | processor seconds | share | times |\n|---|---|---|---|---|---|")
    for key, (wall, processor, times) in {"all": [*total, 1], **spent}.items():
        shares = f"{wall / total[0]:.1%} | {processor:.2f} | {processor / total[1]:.1%}"
        print(f"| {key} | {wall:.2f} | {shares} | {times} |")
    shares = shipped_shares(total[1], steps, spent)
    print(f"\nIn the rhythm of configs/tiny.yaml, by processor time: validation {shares['validation']:.1%}, of it")
    print(f"translating and scoring {shares['translating and scoring']:.1%}; checkpoints of {size:.1f} MiB", end=" ")
    print(f"{shares['checkpoints']:.2%}.")
    return {"all": total, "steps": steps, **spent, "checkpoint_mib": size, "shares in the shipped rhythm": shares}


def shipped_shares(total: float, steps: int, spent: dict[str, list[float]]) -> Figures:
    """Shares of the processor time that configs/tiny.yaml gives, whatever the rhythm of the run that was measured."""
    config = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text(encoding="utf-8"))
    validations, checkpoints = spent["validation"][2], spent["checkpoints"][2]
    step = (total - spent["validation"][1] - spent["checkpoints"][1]) / steps
    costs = {
        "validation": spent["validation"][1] / validations / config["trainer"]["val_check_interval"],
        "checkpoints": spent["checkpoints"][1] / checkpoints / config["checkpoint"]["every_n_train_steps"],
    }
    costs["translating and scoring"] = (
        costs["validation"] * spent["translating and scoring"][1] / spent["validation"][1]
    )
    return {name: cost / (step + costs["validation"] + costs["checkpoints"]) for name, cost in costs.items()}


def stream(options: argparse.Namespace) -> dict[str, Figures]:
    """Files of two lengths: what the longer one needs beyond the memory of the shorter one should be little."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.txt", Path(folder) / "out.txt"
        for count in options.lines:
            with source.open("w", encoding="utf-8") as file:
                file.writelines(endless(options.text, count))
            files = ["--input", str(source), "--output", str(target), "--beam_size", str(options.stream_beam)]
            rows[f"{count:,} lines"] = timed([*LIT, "translate", options.checkpoint, *files])
            print(f"{count:,} lines: peak RSS {rows[f'{count:,} lines']['rss']:.0f} MiB", file=sys.stderr)
            with target.open(encoding="utf-8") as file:
                assert sum(1 for _ in file) == count
    show(f"translate, beam {options.stream_beam}", rows)
    return rows


def endless(text: Path | None, count: int) -> Iterator[str]:
    """So many lines of a text, which begins anew at its end."""
    lines = [SENTENCE]
    if text is not None:
        with gzip.open(text, "rt", encoding="utf-8") if text.suffix == ".gz" else text.open(encoding="utf-8") as file:
            lines = file.read().split("\n")[:-1]
    return (f"{lines[number % len(lines)]}\n" for number in range(count))


def default_text() -> Path | None:
    """The English test sentences of Multi30k, where they are known."""
    folder = Path(os.environ.get("MULTI30K", "."))
    names = ("test_2016_flickr.en", "test_2016_flickr.en.gz")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="what to translate with")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--commands", nargs="+", metavar="COMMAND", help="whose help pages to ask for (default: all)")
    parser.add_argument("--starts", type=int, default=5, help="starts of each program (default: 5)")
    parser.add_argument("--steps", type=int, default=1000, help="steps of training (default: 1000)")
    parser.add_argument("--text", type=Path, default=default_text(), help="lines to make files of (default: Multi30k)")
    parser.add_argument("--lines", type=int, nargs="+", default=[1000, 100_000], help="default: 1000 100000")
    parser.add_argument("--stream_beam", type=int, default=4, help="beam size for the files (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    options, options.fit = parser.parse_known_args()
    measures = dict(zip(PARTS, (start_ups, imports, sentence, first_step, training, stream), strict=True))
    results = {part: measures[part](options) for part in PARTS if part in options.parts}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
