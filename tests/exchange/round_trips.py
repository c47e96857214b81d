"""How far a trained model and its exports agree: translations that differ, and the largest difference of logits.

PYTHONPATH=tests:tests/exchange python tests/exchange/round_trips.py CHECKPOINT LINES.txt [NUMBER]
"""

from __future__ import annotations

import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from onnx_greedy import translate as translate_onnx
from test_programs import largest_step_difference, onnx_programs, torch_programs
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lit_transformer import BeamSearch, GreedySearch, Transformer, Translator
from lit_transformer.exchange import (
    CTranslate2Translator,
    export_ctranslate2,
    export_huggingface,
    export_onnx,
    export_torch,
)
from lit_transformer.exchange.programs import first_past
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID


def padded(rows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])


def report(name: str, theirs: list[str], ours: list[str]) -> None:
    different = [pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1]]
    print(f"{name}: {len(different)} of {len(ours)} translations differ")
    for pair in different[:3]:
        print(f"    theirs {pair[0]!r}\n    ours   {pair[1]!r}")


def generated(model: Any, tokenizer: Any, lines: list[str], is_bounded: bool, **options: Any) -> list[str]:
    """What ``generate`` makes of the lines; bounded as our searches are, by 50 tokens more than the source has.

    Its bound counts BOS and is one for a whole batch, so lines of one length go together.
    """
    lengths = [len(row) for row in tokenizer(lines)["input_ids"]]
    texts = [""] * len(lines)
    for length, group in groupby(sorted(range(len(lines)), key=lengths.__getitem__), key=lengths.__getitem__):
        places = list(group)
        batch = tokenizer([lines[place] for place in places], return_tensors="pt", padding=True)
        bound = {"max_length": length + 51} if is_bounded else {}
        found = tokenizer.batch_decode(model.generate(**batch, **bound, **options), skip_special_tokens=True)
        for place, text in zip(places, found, strict=True):
            texts[place] = text
    return texts


def greedy_torch(folder: Path, translator: Translator, lines: list[str]) -> list[str]:
    encode, step = torch_programs(folder)
    src = padded(translator.tokenizer.encode_src(lines))
    assert isinstance(translator.network, Transformer)
    read, past = encode(src), first_past(translator.network, len(src))
    tokens, written = torch.full((len(src),), BOS_ID), []
    ended = torch.zeros(len(src), dtype=torch.bool)
    caps = (src != PAD_ID).sum(1) + 50
    for length in range(1, int(caps.max()) + 1):
        logits, *past = step(tokens, read, past)
        logits[:, [PAD_ID, BOS_ID]] = -torch.inf
        tokens = logits.argmax(1).masked_fill(ended | (caps == length), EOS_ID)
        ended |= tokens == EOS_ID
        written.append(tokens)
        if bool(ended.all()):
            break
    return translator.tokenizer.decode_batch(torch.stack(written, 1).tolist())


@torch.inference_mode()
def main(checkpoint: str, text: str, number: str = "200") -> None:
    lines = [line for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()][: int(number)]
    greedy = Translator.from_pretrained(checkpoint, search=GreedySearch(), num_workers=1)
    beam = Translator.from_pretrained(checkpoint, search=BeamSearch(), num_workers=1)
    ours, ours_beam = greedy(lines), beam(lines)
    network, tokenizer = greedy.network, greedy.tokenizer
    src, tgt = padded(tokenizer.encode_src(lines)), padded(tokenizer.encode_tgt(ours))[:, :-1]
    logits, real = network(src, tgt), tgt != PAD_ID
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_huggingface(beam, folder / "huggingface")
        model = AutoModelForSeq2SeqLM.from_pretrained(folder / "huggingface")
        theirs = AutoTokenizer.from_pretrained(folder / "huggingface")
        found = model(input_ids=src, attention_mask=(src != PAD_ID).long(), decoder_input_ids=tgt).logits
        print(f"Hugging Face: largest difference of logits {(found - logits)[real].abs().max():.1e}")
        for is_bounded, words in ((False, "as exported"), (True, "with our bound of the length")):
            report(f"Hugging Face, greedy, {words}", generated(model, theirs, lines, is_bounded, num_beams=1), ours)
            report(f"Hugging Face, beam 4, {words}", generated(model, theirs, lines, is_bounded), ours_beam)
        power = {"length_penalty": beam.search.length_penalty}  # type: ignore[attr-defined]
        ours_power = Translator.from_pretrained(
            checkpoint, search=BeamSearch(penalty_kind="power", **power), num_workers=1
        )(lines)
        texts = generated(model, theirs, lines, True, **power)
        report("Hugging Face, beam 4, with our bound and its penalty on both sides", texts, ours_power)

        export_ctranslate2(beam, folder / "ctranslate2")
        report("CTranslate2, greedy", CTranslate2Translator(folder / "ctranslate2", GreedySearch())(lines), ours)
        report("CTranslate2, beam 4", CTranslate2Translator(folder / "ctranslate2", BeamSearch())(lines), ours_beam)

        export_torch(beam, folder / "pt2")
        greatest = largest_step_difference(logits, real, src, tgt, network, *torch_programs(folder / "pt2"))
        print(f"torch.export: largest difference of logits {greatest:.1e}")
        report("torch.export, greedy", greedy_torch(folder / "pt2", greedy, lines), ours)

        export_onnx(beam, folder / "onnx")
        greatest = largest_step_difference(logits, real, src, tgt, network, *onnx_programs(folder / "onnx"))
        print(f"onnx: largest difference of logits {greatest:.1e}")
        report("onnx, greedy", translate_onnx(folder / "onnx", lines), ours)


if __name__ == "__main__":
    main(*sys.argv[1:])
