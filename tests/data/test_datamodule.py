"""The data plug inside real, tiny Trainer runs."""

import json
import logging
import random
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_transformer.data.corpus import CorpusError, ParallelCorpus
from lit_transformer.data.datamodule import StreamPosition, TranslationDataModule
from lit_transformer.data.tokenizer import SubwordTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 on torch 2.13

WORDS = ["ein", "zwei", "drei", "vier", "Hund", "Katze", "Maus", "Vogel", "rot", "blau"]


def write_corpus(folder: Path, rows: int, name: str = "train") -> ParallelCorpus:
    """Every sentence is unique: its first word is its number."""
    chooser = random.Random(f"{name}/{rows}")
    sides: dict[str, list[str]] = {"en": [], "de": []}
    for number in range(rows):
        words = chooser.choices(WORDS, k=chooser.randint(1, 12))
        sides["en"].append(" ".join([f"{name}{number}", *words]))
        sides["de"].append(" ".join([f"{name}{number}", *reversed(words)]))
    for side, lines in sides.items():
        (folder / f"{name}.{side}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ParallelCorpus(str(folder / name))


class Tiny(L.LightningModule):
    """Guesses target tokens from the mean source embedding, with dropout; notes all it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dropout, self.out = nn.Embedding(400, 8, padding_idx=0), nn.Dropout(0.3), nn.Linear(8, 400)
        self.losses: list[float] = []
        self.seen: list[tuple[int, ...]] = []
        self.evaluated: list[int] = []

    def loss(self, batch):
        logits = self.out(self.dropout(self.embedding(batch.src).mean(1)))[:, None].expand(-1, batch.labels.size(1), -1)
        total = nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, ignore_index=0, reduction="sum")
        return total / batch.num_labels.clamp(min=1)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.seen += [tuple(row[row > 0].tolist()) for row in batch.tgt if row.any()]
        return loss

    def validation_step(self, batch, batch_idx):
        self.evaluated += batch.indices

    def test_step(self, batch, batch_idx):
        self.evaluated += batch.indices

    def predict_step(self, batch, batch_idx):
        return batch

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def make_data(folder: Path, rows: int = 230, **settings) -> TranslationDataModule:
    settings = {"vocab_size": 400, "max_tokens": 120, "pool_size": 64, "tokenizer_path": str(folder / "tok.json")} | settings
    return TranslationDataModule(settings.pop("train", None) or write_corpus(folder, rows), **settings)


def make_trainer(folder: Path, **settings) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {"num_sanity_val_steps": 0, "enable_checkpointing": "callbacks" in settings} | quiet | settings
    return L.Trainer(default_root_dir=folder, devices=1, **settings)


def run(folder: Path, ckpt_path=None, every: int = 1, data=None, data_settings=None, **settings):
    """One training; returns the module and its checkpoints by step."""
    saver = ModelCheckpoint(folder / "ckpt", "{step}", every_n_train_steps=every, save_top_k=-1)
    torch.manual_seed(0)
    module, data = Tiny(), data or make_data(folder, **(data_settings or {}))
    trainer = make_trainer(folder, callbacks=[saver], **settings)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module, data


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("workers", [(0, 0), (2, 2), (0, 2)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_endless_resume_is_exact(tmp_path, workers, accumulate):
    steps = dict(max_steps=24 if accumulate == 1 else 8, accumulate_grad_batches=accumulate)
    whole, _ = run(tmp_path, data_settings={"num_workers": workers[0]}, **steps)
    assert len(whole.losses) == 24
    stop = 7 if accumulate == 1 else 2
    resumed, _ = run(
        tmp_path, tmp_path / f"ckpt/step={stop}.ckpt", data_settings={"num_workers": workers[1]}, **steps
    )
    assert resumed.losses == whole.losses[stop * accumulate :]
    assert same_weights(whole, resumed)
