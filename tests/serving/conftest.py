"""A tiny model with random weights, which answers in milliseconds, and a server that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from running_server import RunningServer

from lit_transformer import SubwordTokenizer, TeachingCorpus, Transformer, Translator


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported model; its translations mean nothing, but are always the same."""
    torch.manual_seed(1)
    tokenizer = SubwordTokenizer(vocab_size=400)
    tokenizer.train(TeachingCorpus("train", max_rows=50))
    network = Transformer(vocab_size=400, num_layers=2, d_model=16, d_ff=32, num_heads=2)
    return Translator(network, tokenizer).save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    """``lit-transformer serve`` in a process of its own."""
    with RunningServer(tiny_model, "--max_length", "64", "--src_lang", "en", "--tgt_lang", "ko") as running:
        yield running
