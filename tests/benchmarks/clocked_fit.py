"""``lit-transformer fit`` with a clock on its parts, for program.py: how long to the first step, and where time goes.

    python tests/benchmarks/clocked_fit.py OUT.json --config configs/tiny.yaml ...

Wall clock begins at the seconds since 1970 in the variable STARTED, processor time with the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from functools import wraps
from pathlib import Path
from typing import Any

STARTED = float(os.environ.get("STARTED", time.time()))
marks: dict[str, tuple[float, float]] = {}  # seconds since the start, wall and processor, when something was reached
spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])  # wall and processor seconds, and how many times


def now() -> tuple[float, float]:
    """Seconds since the start, wall and processor."""
    return time.time() - STARTED, time.process_time()


def mark(key: str) -> None:
    """Notes when something was reached first."""
    marks.setdefault(key, now())


def add(key: str, begin: tuple[float, float]) -> None:
    """Adds what has passed since ``begin``."""
    end, sums = now(), spent[key]
    sums[:] = [sums[0] + end[0] - begin[0], sums[1] + end[1] - begin[1], sums[2] + 1]


def marked(owner: type, name: str, key: str, at_end: bool = False) -> None:
    """Lets a method note when it was called first, or was done."""
    method = getattr(owner, name)

    @wraps(method)
    def noting(*args: Any, **options: Any) -> Any:
        if not at_end:
            mark(key)
        result = method(*args, **options)
        if at_end:
            mark(key)
        return result

    setattr(owner, name, noting)


def clocked(owner: type, name: str, key: str) -> None:
    """Lets a method add the time that it takes, but for the sanity check."""
    method = getattr(owner, name)

    @wraps(method)
    def timing(self: Any, *args: Any, **options: Any) -> Any:
        begin = now()
        try:
            return method(self, *args, **options)
        finally:
            if "first step" in marks:
                add(key, begin)

    setattr(owner, name, timing)


def clock_validation(module: Any) -> None:
    """Adds the time between the start and the end of each validation but the sanity check."""
    start, end, begin = module.on_validation_start, module.on_validation_end, [now()]

    def on_start(self: Any) -> None:
        begin[0] = now()
        start(self)

    def on_end(self: Any) -> None:
        end(self)
        if not self.trainer.sanity_checking:
            add("validation", begin[0])

    module.on_validation_start, module.on_validation_end = on_start, on_end


def main() -> None:
    """Trains, and writes what the clock showed."""
    from lit_transformer.cli import main as command

    mark("python runs")
    from lightning.pytorch import Trainer

    from lit_transformer import training_cli
    from lit_transformer.callbacks import BLEUEvaluation
    from lit_transformer.module import LitTransformer

    mark("everything is imported")
    marked(training_cli.TranslationCLI, "before_fit", "configuration is read, network is built")
    marked(LitTransformer, "on_validation_start", "sanity check begins (after the tokenizer)")
    marked(LitTransformer, "on_train_start", "training begins")
    marked(LitTransformer, "on_train_batch_start", "first batch is there")
    marked(LitTransformer, "on_train_batch_end", "first step", at_end=True)
    clock_validation(LitTransformer)
    clocked(LitTransformer, "training_step", "forward passes of training")  # tells the number of steps, too
    for name in ("on_validation_batch_end", "on_validation_epoch_end"):
        clocked(BLEUEvaluation, name, "translating and scoring")
    clocked(LitTransformer, "generate", "searching")
    clocked(Trainer, "save_checkpoint", "checkpoints")
    try:
        command(["fit", *sys.argv[2:]])
    finally:
        mark("end")
        Path(sys.argv[1]).write_text(json.dumps({"marks": marks, "spent": spent}))


if __name__ == "__main__":
    main()
