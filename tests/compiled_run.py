"""Trains one network as it is and one with compiled layers: in a process of its own, without checks of shapes.

What torch.compile traces must not hold the run-time checks that the test suite puts around every function.
"""

import sys
from collections.abc import Callable
from functools import partialmethod
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

import lit_transformer
from lit_transformer import LitTransformer, Transformer
from lit_transformer import module as module_file
from lit_transformer.interfaces import TranslationBatch

SIZES = {"vocab_size": 24, "num_layers": 2, "d_model": 16, "d_ff": 32, "num_heads": 2, "dropout": 0.0}
SHAPES = [(4, 7, 9), (3, 5, 6), (6, 12, 4), (2, 9, 9)]  # sentences, source and target tokens


def batches() -> list[TranslationBatch]:
    found = []
    for number, (rows, src_length, tgt_length) in enumerate(SHAPES):
        draw = torch.Generator().manual_seed(number)
        src = torch.randint(5, 24, (rows, src_length), generator=draw)
        tgt = torch.randint(5, 24, (rows, tgt_length + 1), generator=draw)
        tgt[:, 0] = 2
        src[0, -2:], tgt[0, -2:] = 0, 0
        found.append(TranslationBatch(src, tgt))
    return found


def train(kind: type[LitTransformer], precision: Any, **options: Any) -> dict[str, Any]:
    torch.manual_seed(5)
    module = kind(Transformer(**SIZES), **options)
    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    quiet |= {"enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    loader: Any = DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]
    trainer = L.Trainer(max_epochs=1, precision=precision, **quiet)
    trainer.fit(module, loader, loader)
    return {**module.state_dict(), **trainer.callback_metrics}


def main(kind_name: str, precision: str, backend: str, output: str) -> None:
    kind, options = getattr(lit_transformer, kind_name), {}
    expected = train(kind, precision, **options)
    compile_module: Callable[..., None] = nn.Module.compile
    nn.Module.compile = partialmethod(compile_module, backend=backend)  # type: ignore[method-assign, assignment]
    chunked: list[int] = []
    own = module_file.smoothed_cross_entropy
    module_file.smoothed_cross_entropy = lambda *args: chunked.append(1) or own(*args)
    found = train(kind, precision, **options, compile_layers=True)
    graphs, breaks = (torch._dynamo.utils.counters[name] for name in ("stats", "graph_break"))
    counts = {"graphs": graphs["unique_graphs"], "breaks": len(breaks), "chunked": len(chunked)}
    torch.save({"expected": expected, "found": found, **counts}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
