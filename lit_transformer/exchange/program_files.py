"""Folders with the network as two programs: ``export --format onnx`` and ``--format torch``."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lit_transformer.checkpoints import replacing
from lit_transformer.exchange.programs import first_past, program_config, programs
from lit_transformer.exchange.shared import write_json
from lit_transformer.exchange.tokenizer_files import tokenizer_files
from lit_transformer.interfaces import InputError
from lit_transformer.nn import Transformer
from lit_transformer.translator import Translator
from lit_transformer.vocabulary import BOS_ID, EOS_ID

OPSET = 20  # of ONNX

_ROWS, _PAST = 3, 4  # sizes to trace with, different from each other and from 0 and 1


def export_onnx(translator: Translator, folder: str | Path) -> list[Path]:
    """Writes ``encoder.onnx`` and ``decoder_step.onnx``, with the tokenizer and ``config.json`` beside them.

    The encoder reads source ids once; the step reads one token per hypothesis, with the keys and values of the source
    and of the target so far passed in and out. Numbers of sentences and hypotheses, source length and target length
    are dynamic. ``config.json`` has the names, the axes and the ids.

    Args:
        translator: Network and tokenizer.
        folder: Where to write.

    Returns:
        The files.

    Raises:
        InputError: If a package is missing, the network cannot be written, or the tokenizer has two vocabularies; the
            message says why.
    """
    for name in ("onnx", "onnxscript"):
        _need(name)

    def write(program: ExportedProgram, inputs: list[str], outputs: list[str], path: Path) -> None:
        with _quiet():
            made: Any = torch.onnx.export(
                program, (), input_names=inputs, output_names=outputs, opset_version=OPSET, dynamo=True, verbose=False
            )
            made.save(str(path))

    return _write(translator, Path(folder), "onnx", write, {"opset": OPSET})


def export_torch(translator: Translator, folder: str | Path) -> list[Path]:
    """Writes ``encoder.pt2`` and ``decoder_step.pt2``, which ``torch.export.load`` reads without this package.

    They compute what those of :func:`export_onnx` do; the step takes memory and past as two lists.

    Args:
        translator: Network and tokenizer.
        folder: Where to write.

    Returns:
        The files.

    Raises:
        InputError: If the network cannot be written, or the tokenizer has two vocabularies; the message says why.
    """

    def write(program: ExportedProgram, inputs: list[str], outputs: list[str], path: Path) -> None:
        torch.export.save(program, path)

    return _write(translator, Path(folder), "pt2", write, {})


def _write(
    translator: Translator,
    folder: Path,
    suffix: str,
    write: Callable[[ExportedProgram, list[str], list[str], Path], None],
    more: dict[str, Any],
) -> list[Path]:
    network = translator.network
    parts = programs(network, {"onnx": "ONNX", "pt2": "torch.export"}[suffix])
    assert isinstance(network, Transformer)  # programs refuses all others
    config = program_config(network)
    tokenizer, settings = tokenizer_files(translator.tokenizer, config["max_length"])
    contents = {"config.json": config | more, "tokenizer.json": tokenizer, "tokenizer_config.json": settings}
    traced = dict(zip(("encoder", "decoder_step"), _traced(network, *parts), strict=True))
    paths = write_json(folder, contents)
    for name, program in traced.items():
        paths.append(folder / f"{name}.{suffix}")
        with replacing(paths[-1]) as partial:
            proper = partial.with_name(f"{partial.name}.{suffix}")  # both writers look at the ending
            write(program, config[name]["inputs"], config[name]["outputs"], proper)
            proper.rename(partial)
    return paths


def _traced(network: Transformer, encoder: nn.Module, step: nn.Module) -> Iterator[ExportedProgram]:
    """Both programs, with every size dynamic that is no size of the network."""
    network = network.eval()
    src = torch.full((_ROWS, 5), EOS_ID)
    tokens, past = torch.full((_ROWS,), BOS_ID), first_past(network, _ROWS, _PAST)
    with torch.no_grad(), _quiet():
        mask, *memory = encoder(src)
        rows, longest = Dim.DYNAMIC, Dim.DYNAMIC
        yield torch.export.export(encoder, (src,), dynamic_shapes=({0: rows, 1: longest},))
        lists: list[list[Tensor]] = [memory, past]
        shapes = tuple([{0: rows, 2: longest} for _ in tensors] for tensors in lists)
        dynamic = ({0: rows}, {0: rows, 1: longest}, *shapes)
        yield torch.export.export(step, (tokens, mask, *lists), dynamic_shapes=dynamic)


def _need(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        raise InputError('the format onnx needs packages: pip install "lit-transformer[onnx]"') from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's words on its own insides, and on packages that are of no use here."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        log.setLevel(level)
