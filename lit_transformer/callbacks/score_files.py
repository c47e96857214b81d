"""What makes a score repeatable: the counts of every sentence, and a file that says where the figures come from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import distributed
from torchmetrics.utilities.distributed import gather_all_tensors

import lit_transformer
from lit_transformer.callbacks.averaging import CheckpointAveraging
from lit_transformer.checkpoints import CheckpointError, read_checkpoint, replacing, weights_norm
from lit_transformer.interfaces import TranslationNetwork
from lit_transformer.metrics import CorpusScore, Interval
from lit_transformer.sharding import is_sharded

LIBRARIES = ("lightning", "sacrebleu", "tokenizers")
Numbers = np.ndarray[Any, Any]


class SentenceCounts:
    """The counts of single sentences, from any number of processes, in the order of the corpus.

    Args:
        scores: The scores whose counts are kept, by name.
    """

    def __init__(self, scores: Mapping[str, CorpusScore]) -> None:
        self.scores = scores
        self._width = sum(len(score.counts) for score in scores.values())
        self._rows: list[list[int]] = []

    def add(self, numbers: list[int], counts: Mapping[str, list[list[int]]]) -> None:
        """Keeps the counts that each score made of some sentences, which have these numbers in the corpus."""
        for place, number in enumerate(numbers):
            self._rows.append([number, *(count for name in self.scores for count in counts[name][place])])

    def gather(self, device: torch.device) -> tuple[Numbers, dict[str, Numbers]]:
        """The sentences of all processes: their numbers, rising, and the counts for each score, one row a sentence.

        Every process has to call it.
        """
        rows = torch.tensor(self._rows, dtype=torch.int64).reshape(-1, 1 + self._width)
        if distributed.is_available() and distributed.is_initialized():
            rows = torch.cat(gather_all_tensors(rows.to(device))).cpu()
        table = rows[rows[:, 0].argsort(stable=True)].numpy()
        ends = np.cumsum([1, *(len(score.counts) for score in self.scores.values())])
        numbers, *parts = np.split(table, ends[:-1], axis=1)
        return numbers[:, 0], dict(zip(self.scores, parts, strict=True))


class ScoreFiles(NamedTuple):
    """The files that belong to the scores of one test.

    Args:
        hypotheses: The translations, one a line, in the order of the corpus.
        references: What people wrote, line by line the same sentences.
        scores: The figures, and all that a reader needs to trust them, as JSON.
    """

    hypotheses: Path
    references: Path
    scores: Path

    @classmethod
    def beside(cls, hypotheses: Path) -> ScoreFiles:
        """The files next to one for translations: ``test.ref.txt`` and ``test.scores.json`` for ``test.hyp.txt``."""
        stem = hypotheses.stem.removesuffix(".hyp")
        return cls(hypotheses, *(hypotheses.with_name(f"{stem}.{rest}") for rest in ("ref.txt", "scores.json")))

    def write(self, content: Mapping[str, Any]) -> None:
        """Writes the JSON file, with the names of the other two as seen from its folder."""
        names = {"hypotheses": self.hypotheses.name, "references": self.references.name}
        text = json.dumps({**content, **names}, indent=2, ensure_ascii=False, default=str)
        with replacing(self.scores) as partial:
            partial.write_text(text + "\n", encoding="utf-8", newline="\n")


def describe_score(value: float, metric: object, interval: Interval | None) -> dict[str, Any]:
    """A score as the file has it."""
    if not isinstance(metric, CorpusScore):
        return {"value": value}
    if interval is None:
        return {"value": value, "signature": metric.signature}
    around = {"level": 0.95, "low": interval.low, "high": interval.high, "mean": interval.mean}
    return {"value": value, "signature": metric.interval_signature(), "interval": around}


def describe_run(trainer: L.Trainer, pl_module: L.LightningModule, folder: str | None = None) -> dict[str, Any]:
    """What was scored, with what, when and where from: a checkpoint, or the exported weights in ``folder``."""
    seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning's seed_everything leaves it
    network = getattr(pl_module, "network", None)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": int(seed) if seed else None,
        "checkpoint": _checkpoint(trainer, folder),
        "network": network.spec if isinstance(network, TranslationNetwork) else type(pl_module).__name__,
        "num_parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
        "weights_norm": None if is_sharded(pl_module) else weights_norm(network or pl_module),
        "precision": trainer.precision,
        "device": f"{trainer.world_size} x {pl_module.device.type}",
        "versions": {
            "lit_transformer": lit_transformer.__version__,
            "torch": str(torch.__version__),  # with the kind of build, which its metadata may leave out
            **{name: version(name) for name in LIBRARIES},
            "python": platform.python_version(),
        },
        "git_commit": git_commit(),
    }


def _checkpoint(trainer: L.Trainer, folder: str | None) -> dict[str, Any]:
    """Where the weights come from: a file and its step, and the files that it or the callback averaged."""
    path = trainer.ckpt_path
    if path is None:
        step = trainer.global_step if folder is None else None
        return {"path": folder, "step": step, "averaged_from": {}}
    averaging = next((one for one in trainer.callbacks if isinstance(one, CheckpointAveraging)), None)  # type: ignore[attr-defined]
    try:
        content = read_checkpoint(path)
    except CheckpointError:  # a remote one, a folder of shards, or one with more than plain data: its step is not told
        content = {}
    averaged = averaging.averaged_from if averaging else {}
    return {
        "path": str(path),
        "step": content.get("global_step"),
        "averaged_from": averaged or content.get("averaged_from", {}),
    }


def git_commit() -> str | None:
    """The commit of the working directory, with ``-dirty`` behind it if tracked files were changed since; or None."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit, or one that takes too long
        return None
    return done.stdout.strip() or None
