"""Encoder and decoder step as ONNX and as torch.export programs: logits and translations are those of the network."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from command_line import lit
from models import SIZES, random_network, trained_tokenizer
from tiny_run import sentences
from tiny_run import tiny_run as tiny_run
from torch import Tensor

from lit_transformer import Transformer, Translator
from lit_transformer.decoding import GreedySearch
from lit_transformer.exchange import export_torch
from lit_transformer.exchange.programs import first_past
from lit_transformer.interfaces import InputError
from lit_transformer.vocabulary import BOS_ID, PAD_ID


@pytest.fixture(autouse=True)
def _no_checks_of_shapes() -> Any:
    """Which would look at sizes that tracing keeps open."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


Encode, Step = Callable[[Tensor], list[Tensor]], Callable[[Tensor, list[Tensor], list[Tensor]], list[Tensor]]


def torch_programs(folder: Path) -> tuple[Encode, Step]:
    encoder, step = (torch.export.load(folder / f"{name}.pt2").module() for name in ("encoder", "decoder_step"))
    return lambda src: list(encoder(src)), lambda tokens, read, past: list(step(tokens, read[0], read[1:], past))


def onnx_programs(folder: Path) -> tuple[Encode, Step]:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    encoder, step = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder_step"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = config["decoder_step"]["inputs"]
    assert names == [one.name for one in step.get_inputs()]
    assert config["encoder"]["outputs"] == [one.name for one in encoder.get_outputs()]

    def run(session: Any, given: dict[str, Tensor]) -> list[Tensor]:
        found = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        return [torch.from_numpy(array) for array in found]

    return (
        lambda src: run(encoder, {"src": src}),
        lambda tokens, read, past: run(step, dict(zip(names, [tokens, *read, *past], strict=True))),
    )


@torch.no_grad()
def largest_difference(network: Transformer, encode: Encode, step: Step, shapes: list[tuple[int, int, int]]) -> float:
    """Over all steps, between the network reading whole targets and the programs reading token after token."""
    largest = 0.0
    for rows, src_length, tgt_length in shapes:
        src = torch.randint(4, network.src_vocab_size, (rows, src_length))
        src[0, 1:] = PAD_ID
        tgt = torch.randint(4, network.vocab_size, (rows, tgt_length))
        tgt[:, 0] = BOS_ID
        expected, read, past = network(src, tgt), encode(src), first_past(network, rows)
        for place in range(tgt_length):
            logits, *past = step(tgt[:, place], read, past)
            largest = max(largest, float((logits - expected[:, place]).abs().max()))
            if place == 1:  # beams are reordered by picking rows, of everything alike
                order = torch.arange(rows).flip(0)
                picked = step(tgt[order, 2 % tgt_length], [one[order] for one in read], [one[order] for one in past])
                straight = step(tgt[:, 2 % tgt_length], read, past)
                torch.testing.assert_close(picked[0], straight[0][order], atol=1e-4, rtol=0)
    return largest


def largest_step_difference(
    logits: Tensor, real: Tensor, src: Tensor, tgt: Tensor, network: Any, encode: Encode, step: Step
) -> float:
    """The same on given sentences, where ``real`` is True."""
    read, past, largest = encode(src), first_past(network, len(src)), 0.0
    for place in range(tgt.size(1)):
        found, *past = step(tgt[:, place].contiguous(), read, past)
        largest = max(largest, float((found - logits[:, place])[real[:, place]].abs().max()))
    return largest


SHAPES = [(1, 1, 1), (1, 6, 3), (4, 9, 7), (7, 2, 12)]


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "pre", "num_decoder_layers": 1, "d_k": 3, "d_v": 5, "output_bias": True},
        {"positions": "learned", "max_length": 20, "tie": "none", "activation": "gelu"},
    ],
    ids=["pre", "learned"],
)
def test_torch_programs_give_the_same_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    network = random_network(**changes)
    paths = export_torch(Translator(network, trained_tokenizer()), tmp_path / "out")
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    assert largest_difference(network, *torch_programs(tmp_path / "out"), SHAPES) < 1e-4


@pytest.mark.slow
def test_onnx_gives_the_same_logits_and_translations(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    folder = tmp_path / "onnx"
    finished = lit("export", tiny_run, folder, "--format", "onnx")
    assert finished.status == 0, finished.err
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "decoder_step.onnx", "encoder.onnx", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    translator = Translator.from_pretrained(tiny_run, search=GreedySearch())
    assert isinstance(translator.network, Transformer)
    assert largest_difference(translator.network, *onnx_programs(folder), SHAPES) < 1e-4
    from onnx_greedy import translate

    lines = sentences(200, seed=9)
    pairs = [pair for pair in zip(translate(folder, lines), translator(lines), strict=True)]
    ended = [pair for pair in pairs if len(pair[1].split()) < 20]
    assert len(ended) > 150
    assert all(one == other for one, other in ended)


class OtherOrder(Transformer):
    """A network that does something of its own."""

    def project(self, features: Tensor) -> Tensor:
        return super().project(features).flip(-1)


def test_what_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="computes something else"):
        export_torch(Translator(OtherOrder(**SIZES), trained_tokenizer()), tmp_path / "new")
    with pytest.raises(InputError, match="joint=False"):
        export_torch(Translator(random_network(), trained_tokenizer(joint=False)), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    finished = lit("export", tiny_run, tmp_path / "new", "--format", "onnx")
    assert finished.status == 1
    assert finished.err == 'lit-transformer: the format onnx needs packages: pip install "lit-transformer[onnx]"\n'
