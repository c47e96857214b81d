"""Greedy translation with an exported ONNX folder: needs onnxruntime, tokenizers and numpy, nothing else.

python onnx_greedy.py FOLDER "I love cats" "The dog sleeps"
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def translate(folder: Path, texts: list[str], max_extra_length: int = 50) -> list[str]:
    """The likeliest token at each step, until every sentence has ended."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder, step = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder_step"))
    rows = [tokenizer.encode(text).ids for text in texts]
    src = np.full((len(rows), max(map(len, rows))), config["pad_token_id"])
    for number, row in enumerate(rows):
        src[number, : len(row)] = row
    memory = dict(zip(config["encoder"]["outputs"], encoder.run(None, {"src": src}), strict=True))
    past = {}  # nothing at first; rows of `past` and `memory` would be picked here to reorder beams
    for name in config["decoder_step"]["inputs"]:
        if name.startswith("past."):
            width = config["d_k" if name.endswith("key") else "d_v"]
            past[name] = np.zeros((len(rows), config["num_heads"], 0, width), np.float32)
    tokens, written = np.full(len(rows), config["bos_token_id"]), []
    ended = np.zeros(len(rows), bool)
    caps = np.minimum([len(row) + max_extra_length for row in rows], config["max_length"])
    for length in range(1, max(caps) + 1):
        logits, *present = step.run(None, {"tokens": tokens, **memory, **past})
        past = dict(zip(past, present, strict=True))
        logits[:, [config["pad_token_id"], config["bos_token_id"]]] = -np.inf
        tokens = np.where(ended | (caps == length), config["eos_token_id"], logits.argmax(axis=1))
        ended |= tokens == config["eos_token_id"]
        written.append(tokens)
        if ended.all():
            break
    return [tokenizer.decode(row, skip_special_tokens=True) for row in np.stack(written, axis=1).tolist()]


if __name__ == "__main__":
    print("\n".join(translate(Path(sys.argv[1]), sys.argv[2:])))
