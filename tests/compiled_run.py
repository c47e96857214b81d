"""Trains one network as it is and one with compiled layers, and looks at its attention before and after compilation.

All in a process of its own, without checks of shapes.

What torch.compile traces must not hold the run-time checks that the test suite puts around every function.
"""

import sys
from collections.abc import Callable
from functools import partialmethod
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
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


def train(kind: type[LitTransformer], precision: Any, **options: Any) -> tuple[dict[str, Any], LitTransformer]:
    torch.manual_seed(5)
    module = kind(Transformer(**SIZES), **options)
    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    quiet |= {"enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    loader: Any = DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]
    trainer = L.Trainer(max_epochs=1, precision=precision, **quiet)
    trainer.fit(module, loader, loader)
    return {**module.state_dict(), **trainer.callback_metrics}, module


def num_compiled(module: nn.Module) -> int:
    return sum(one._compiled_call_impl is not None for one in module.modules())


@torch.no_grad()  # as the pass before, or what was compiled for it would not be used
def looks(network: Transformer) -> list[Tensor]:
    """All attention maps of a batch."""
    batch = batches()[0]
    maps = network.attention_maps(batch.src, batch.tgt_input)
    return [*maps.encoder, *maps.decoder, *maps.cross, network.cross_attention(batch.src, batch.tgt_input, 0)]


def look_twice() -> dict[str, list[Tensor]]:
    """The attention maps of a network, and those of it compiled and used before."""
    network, batch = Transformer(**SIZES).eval(), batches()[0]
    expected = looks(network)
    for layer in network.sharded_parts():
        layer.compile(dynamic=True)
    with torch.no_grad():
        network(batch.src, batch.tgt_input)
    return {"expected_maps": expected, "maps": looks(network)}


def main(kind_name: str, precision: str, backend: str, output: str, is_checkpointed: str = "") -> None:
    kind = getattr(lit_transformer, kind_name)
    expected, _ = train(kind, precision)
    compile_module: Callable[..., None] = nn.Module.compile
    nn.Module.compile = partialmethod(compile_module, backend=backend)  # type: ignore[method-assign, assignment]
    chunked: list[int] = []
    own = module_file.smoothed_cross_entropy
    module_file.smoothed_cross_entropy = lambda *args: chunked.append(1) or own(*args)
    options = {"compile_layers": True, "activation_checkpointing": bool(is_checkpointed)}
    found, module = train(kind, precision, **options)
    graphs, breaks = (torch._dynamo.utils.counters[name] for name in ("stats", "graph_break"))
    counts = {"graphs": graphs["unique_graphs"], "breaks": len(breaks), "chunked": len(chunked)}
    counts["compiled_after_fit"] = num_compiled(module)
    torch.save({"expected": expected, "found": found, **counts, **look_twice()}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
