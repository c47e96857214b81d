"""Runs ``lit-transformer`` inside the test process, as a user would see it: exit status, output, messages."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lit_transformer import cli

LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")


class Finished(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


def lit(*arguments: object, stdin: str | bytes = "") -> Finished:
    """Runs a command in this process. Warnings stay errors, as in every test."""
    out, err = _stream(), _stream()
    status: object = 0
    with _own_logging(err), _own_environment(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        old_stdin, sys.stdin = sys.stdin, _stream(stdin if isinstance(stdin, bytes) else stdin.encode())
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            status = leaving.code or 0
        finally:
            sys.stdin = old_stdin
    assert isinstance(status, int), f"the exit status should be a number, got {status!r}"
    return Finished(status, _text(out), _text(err))


def _stream(content: bytes = b"") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8")  # type: ignore[attr-defined]


@contextlib.contextmanager
def _own_logging(err: io.TextIOWrapper) -> Iterator[None]:
    """Sends Lightning's messages to ``err``, and puts all loggers back as they were."""
    package = logging.getLogger("lit_transformer")
    state = package.level, package.propagate, list(package.handlers)
    package.handlers = []
    handlers = [handler for name in LOGGERS for handler in logging.getLogger(name).handlers]
    filters = [list(handler.filters) for handler in handlers]
    streams = [(handler, handler.setStream(err)) for handler in handlers if isinstance(handler, logging.StreamHandler)]
    try:
        yield
    finally:
        package.level, package.propagate, package.handlers = state
        package.manager._clear_cache()  # type: ignore[attr-defined]
        for handler, old in streams:
            handler.setStream(old or sys.__stderr__)
        for handler, kept in zip(handlers, filters, strict=True):
            handler.filters = kept


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Puts the environment back as it was: Lightning notes seeds in it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def write_digits(folder: Path, train: int = 60, held_out: int = 8) -> None:
    """Writes ``train``, ``val`` and ``test``, each ``.en`` and ``.de``: letters, and the same letters backwards."""
    draw = random.Random(7)
    for name, count in (("train", train), ("val", held_out), ("test", held_out)):
        rows = [[draw.choice("abcdefgh") for _ in range(draw.randint(2, 5))] for _ in range(count)]
        (folder / f"{name}.en").write_text("".join(" ".join(row) + "\n" for row in rows))
        (folder / f"{name}.de").write_text("".join(" ".join(reversed(row)) + "\n" for row in rows))


TINY = """\
seed_everything: 3
model:
  network: {num_layers: 1, d_model: 16, d_ff: 32, num_heads: 2, dropout: 0.1}
  search: {class_path: lit_transformer.BeamSearch, init_args: {beam_size: 1, max_extra_length: 2}}
data:
  train: {path: train, src: en, tgt: de}
  val: {path: val, src: en, tgt: de}
  test: {path: test, src: en, tgt: de}
  predict: {path: test, src: en, tgt: null}
  vocab_size: 300
  max_tokens: 128
warmup: {warmup_steps: 4}
bleu: {beam_size: 1, num_samples: 1, max_extra_length: 2}
averaging: {num_checkpoints: 2}
checkpoint: {every_n_train_steps: 4}
trainer:
  accelerator: cpu
  max_steps: 8
  val_check_interval: 4
  log_every_n_steps: 1
  enable_progress_bar: false
  default_root_dir: run
"""
"""A configuration for a run of less than a second in a folder with the files of ``write_digits``."""


def tiny_project(folder: Path) -> Path:
    """Writes a tiny corpus and the configuration ``tiny.yaml`` into a folder; returns the configuration."""
    write_digits(folder)
    config = folder / "tiny.yaml"
    config.write_text(TINY)
    return config
