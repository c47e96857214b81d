"""A run of ``fit`` on a tiny made-up language, made once for all tests that need a trained model."""

import json
import random
from pathlib import Path

import pytest
from command_line import lit

WORDS = {
    "one": "eins", "two": "zwei", "three": "drei", "four": "vier", "red": "rot", "blue": "blau",
    "cat": "Katze", "dog": "Hund", "sees": "sieht", "and": "und", "big": "groß", "house": "Haus",
}  # fmt: skip
_RUNS: list[Path] = []


def sentences(count: int, seed: int, longest: int = 4) -> list[str]:
    """Made-up sentences of the source language."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(list(WORDS), k=draw.randint(1, longest))) for _ in range(count)]


def translated(sentence: str) -> str:
    """What a sentence means in the target language, word by word."""
    return " ".join(WORDS[word] for word in sentence.split())


def write_pairs(stem: Path, lines: list[str]) -> Path:
    """Two line-aligned files, ``stem.en`` and ``stem.de``."""
    stem.with_suffix(".en").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    stem.with_suffix(".de").write_text("".join(f"{translated(line)}\n" for line in lines), encoding="utf-8")
    return stem


def train(folder: Path) -> Path:
    """The folder of the run, with the checkpoints of steps 50, 100 and 150."""
    train, val = (write_pairs(folder / name, sentences(count, seed)) for name, count, seed in
                  (("train", 400, 1), ("val", 10, 2)))  # fmt: skip
    config = {
        "seed_everything": 1,
        "model": {
            "network": {"num_layers": 1, "d_model": 32, "d_ff": 64, "num_heads": 2, "dropout": 0.0, "max_length": 64},
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.008}},
        },
        "data": {
            "train": {"path": str(train), "src": "en", "tgt": "de"},
            "val": {"path": str(val), "src": "en", "tgt": "de"},
            "tokenizer": {"class_path": "lit_transformer.SubwordTokenizer", "init_args": {"vocab_size": 400}},
            "vocab_size": 400, "max_tokens": 512, "eval_max_tokens": 256, "max_length": 64,
        },
        "warmup": {"warmup_steps": 30},
        "bleu": {"beam_size": 1},
        "checkpoint": {"every_n_train_steps": 50, "save_top_k": 3},
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": 150, "val_check_interval": 150,
            "enable_progress_bar": False, "default_root_dir": str(folder / "run"),
        },
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(json.dumps(config), encoding="utf-8")
    finished = lit("fit", "--config", folder / "tiny.yaml")
    assert finished.status == 0, finished.err
    return folder / "run"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the command line that has learned the tiny language; not to be written to."""
    if not _RUNS:  # the fixture of each test file that imports it comes here
        _RUNS.append(train(tmp_path_factory.mktemp("tiny")))
    return _RUNS[0]
