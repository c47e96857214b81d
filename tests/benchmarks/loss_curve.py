"""The same training twice: LitTransformer under the Trainer, and Hugging Face Marian in a plain loop of torch.

    MULTI30K=folder python tests/benchmarks/loss_curve.py --output tests/results/marian

Both begin with the same weights (ours, exported), see the same batches of Multi30k in the same order, and have the
same loss, optimizer and schedule. Without dropout the losses of each step must agree up to rounding: see it in float32,
and with --precision float64, where only the last digit of our log, which is in float32, is left. With dropout both draw
other random numbers; then the differences must be like those between two of our own runs with different seeds.

Writes a table of all losses, a summary and a picture. MULTI30K is a folder with train.en, train.de, val.en and val.de,
plain or compressed.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from contestants import SIZES, Size
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lit_transformer import InverseSqrtWarmup, LitTransformer, ParallelCorpus, SubwordTokenizer, Transformer
from lit_transformer.curves import Curve, plot_curves, read_curves
from lit_transformer.data.batching import Ragged, TokenBudgetBatches, collate
from lit_transformer.exchange.marian import marian_config, to_marian
from lit_transformer.interfaces import SentencePair, TranslationBatch
from lit_transformer.vocabulary import PAD_ID

SMOOTHING = 0.1
Curves = dict[str, Curve]  # by the name that is logged


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--precision", choices=["float32", "float64"], default="float32")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--dropout", type=float, default=0.3, help="of the second pair of runs; 0 leaves it out")
    parser.add_argument("--max-tokens", type=int, default=1024, help="positions of a batch on each side")
    parser.add_argument("--lr", type=float, default=0.001, help="the peak of the schedule")
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=50, help="steps between two validations")
    parser.add_argument("--rows", type=int, default=29_000, help="training pairs that are read")
    parser.add_argument("--output", type=Path, default=Path("runs/loss_curve"), help="folder for table and picture")
    return parser.parse_args()


def read_batches(options: argparse.Namespace, vocab_size: int) -> tuple[list[TranslationBatch], list[TranslationBatch]]:
    """Training batches in the order of training, and validation batches; the same for everyone."""
    pairs = {
        part: list(islice(ParallelCorpus(f"$MULTI30K/{part}", src="en", tgt="de"), rows))
        for part, rows in (("train", options.rows), ("val", 1014))
    }
    tokenizer = SubwordTokenizer(vocab_size=vocab_size)
    tokenizer.train(pairs["train"])
    return tuple(cut(tokenizer, pairs[part], options.max_tokens) for part in ("train", "val"))  # type: ignore[return-value]


def cut(tokenizer: SubwordTokenizer, pairs: list[SentencePair], max_tokens: int) -> list[TranslationBatch]:
    src = tokenizer.encode_src([pair.src for pair in pairs])
    tgt = tokenizer.encode_tgt([pair.tgt for pair in pairs])
    sides = Ragged(src), Ragged(tgt)
    cuts = TokenBudgetBatches(max_tokens)([len(row) for row in src], [len(row) - 1 for row in tgt], seed="1")
    return [collate(*sides, rows) for rows in cuts]


class Batches(IterableDataset[TranslationBatch]):
    """The training batches, over and over."""

    def __init__(self, batches: list[TranslationBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[TranslationBatch]:
        return cycle(self.batches)


def build(size: Size, dropout: float, precision: str) -> Transformer:
    """A fresh network, always with the same weights."""
    torch.manual_seed(1)
    sizes = {name: getattr(size, name) for name in ("num_layers", "d_model", "d_ff", "num_heads")}
    network = Transformer(size.vocab_size, **sizes, dropout=dropout)
    return network.double() if precision == "float64" else network


def adam(parameters: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.98), eps=1e-9)


def train_ours(network: Transformer, options: argparse.Namespace, text: tuple[Any, Any], seed: int) -> Curves:
    """Everything as a user has it: module, callback, Trainer, CSV log."""
    module = LitTransformer(network, SMOOTHING, lambda parameters: adam(parameters, options.lr))
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            precision="64-true" if options.precision == "float64" else "32-true",
            max_steps=options.steps,
            max_epochs=-1,
            val_check_interval=options.every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            callbacks=[InverseSqrtWarmup(options.warmup_steps)],
            logger=CSVLogger(folder),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        train, val = (DataLoader(part, batch_size=None) for part in (Batches(text[0]), text[1]))
        torch.manual_seed(seed)
        trainer.fit(module, train, val)
        return read_curves(folder)


def train_marian(network: Transformer, options: argparse.Namespace, text: tuple[Any, Any], seed: int) -> Curves:
    """MarianMTModel with the weights of ``network``, in the loop that every tutorial of torch has."""
    from transformers import MarianConfig, MarianMTModel

    model = MarianMTModel(MarianConfig(**marian_config(network), attn_implementation="sdpa")).to(network_dtype(network))
    left_out = model.load_state_dict(to_marian(network), strict=False).missing_keys
    assert all("embed" in name or name == "lm_head.weight" for name in left_out), left_out  # tied, or computed
    optimizer = adam(model.parameters(), options.lr)
    curves: Curves = {"train/loss": {}, "val/loss": {}, "val/perplexity": {}}
    torch.manual_seed(seed)
    for step, batch in enumerate(islice(cycle(text[0]), options.steps), 1):
        for group in optimizer.param_groups:
            share = min(step / options.warmup_steps, math.sqrt(options.warmup_steps / step))
            group["lr"] = options.lr * share
        loss, _ = marian_loss(model.train(), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curves["train/loss"][step] = loss.item()
        if step % options.every == 0:
            curves["val/loss"][step], curves["val/perplexity"][step] = validate_marian(model.eval(), text[1])
    return curves


def network_dtype(network: Transformer) -> torch.dtype:
    return next(network.parameters()).dtype


def marian_loss(model: Any, batch: TranslationBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The smoothed loss and the one without smoothing, means over the real tokens."""
    mask, ids = (batch.src != PAD_ID).long(), batch.tgt_input
    logits = model(batch.src, attention_mask=mask, decoder_input_ids=ids, use_cache=False).logits.flatten(0, 1)
    labels = batch.labels.flatten()
    smoothed = F.cross_entropy(logits, labels, ignore_index=PAD_ID, label_smoothing=SMOOTHING)
    return smoothed, F.cross_entropy(logits.detach(), labels, ignore_index=PAD_ID)


@torch.no_grad()
def validate_marian(model: Any, batches: list[TranslationBatch]) -> tuple[float, float]:
    found = [(int(batch.num_labels), *(float(loss) for loss in marian_loss(model, batch))) for batch in batches]
    total = sum(count for count, *_ in found)
    loss, nll = (sum(row[0] * row[place] for row in found) / total for place in (1, 2))
    return loss, math.exp(nll)


def differences(one: Curves, other: Curves, name: str = "train/loss") -> list[float]:
    """Absolute differences at the steps of both, in order."""
    return [abs(one[name][step] - other[name][step]) for step in sorted(one[name].keys() & other[name].keys())]


def describe(gaps: list[float]) -> dict[str, float]:
    """What the summary says of the differences of each step."""
    return {
        "largest of the first 10": max(gaps[:10]),
        "largest of the first 50": max(gaps[:50]),
        "largest": max(gaps),
        "median": statistics.median(gaps),
    }


def write_table(path: Path, runs: dict[str, Curves]) -> None:
    """One row for each step, one column for each run."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        names = [(run, name) for run, curves in runs.items() for name in ("train/loss", "val/loss")]
        table.writerow(["step", *(f"{run}: {name}" for run, name in names)])
        for step in sorted(next(iter(runs.values()))["train/loss"]):
            values = (runs[run][name].get(step) for run, name in names)
            table.writerow([step, *("" if value is None else f"{value:.9g}" for value in values)])


def main() -> None:
    options = parse()
    if "MULTI30K" not in os.environ:
        sys.exit("set MULTI30K to a folder with train.en, train.de, val.en and val.de")
    size = SIZES[options.size]
    text = read_batches(options, size.vocab_size)
    runs: dict[str, Curves] = {}
    summary: dict[str, Any] = {"settings": {name: value for name, value in vars(options).items() if name != "output"}}
    trainers = {"LitTransformer": train_ours, "Marian": train_marian}
    for dropout in dict.fromkeys((0.0, options.dropout)):
        pair = [f"{name}, dropout {dropout:g}" for name in trainers]
        for name, train in zip(pair, trainers.values(), strict=True):
            runs[name] = train(build(size, dropout, options.precision), options, text, seed=2)
        found = {"train/loss, Marian against ours": describe(differences(*(runs[name] for name in pair)))}
        found["val/loss, Marian against ours"] = describe(differences(*(runs[name] for name in pair), "val/loss"))
        if dropout:  # how far apart two seeds of our own are
            again = train_ours(build(size, dropout, options.precision), options, text, seed=3)
            found["train/loss, ours against ours with another seed"] = describe(differences(runs[pair[0]], again))
            found["val/loss, ours against ours with another seed"] = describe(
                differences(runs[pair[0]], again, "val/loss")
            )
        summary[f"dropout {dropout:g}"] = found
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"loss_curve_{options.precision}"
    write_table(stem.with_suffix(".csv"), runs)
    stem.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    plot_curves(runs).savefig(stem.with_suffix(".png"), dpi=120)
    print_summary(runs, summary)


def print_summary(runs: dict[str, Curves], summary: dict[str, Any]) -> None:
    steps = sorted(next(iter(runs.values()))["train/loss"])
    shown = sorted({1, 2, 5, 10, *steps[49::50], steps[-1]} & set(steps))
    print("| step |", " | ".join(runs), "|")
    print("|---|", "---|" * len(runs), sep="")
    for step in shown:
        print(f"| {step} |", " | ".join(f"{curves['train/loss'][step]:.6f}" for curves in runs.values()), "|")
    for setting, found in summary.items():
        for what, figures in found.items() if setting != "settings" else ():
            print(f"{setting}, {what}:", ", ".join(f"{name} {value:.2g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
