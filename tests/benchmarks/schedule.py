"""What training the paper's models on WMT14 takes, on paper: tokens, operations and hours, from stated assumptions.

    python tests/benchmarks/schedule.py
    python tests/benchmarks/schedule.py --mfu 0.3 --device A100

Nothing here is measured but the sizes: the operations of a step are those that real tokens need in products of matrices
(as training.py counts them), and --mfu is the share of a device's peak that you expect to reach. As a check, the same
formula gives the share that the paper's own P100s reached.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parents[2] / "configs"
PEAKS = {
    "P100": 9.5,
    "V100": 125.0,
    "A100": 312.0,
    "H100": 989.0,
    "H200": 989.0,
}  # TFLOPS, bf16 but for P100
PAPER = {"base": (0.4, 100_000), "big": (1.0, 300_000)}  # seconds a step on eight P100, and steps (section 5.2)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(PEAKS), default="H100")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that one device reaches")
    parser.add_argument("--scaling", type=float, default=0.9, help="share of that which each of eight reaches together")
    parser.add_argument("--fill", type=float, default=0.95, help="real tokens among the positions of a batch")
    parser.add_argument("--length", type=float, default=29, help="mean length of a sentence in tokens, for attention")
    parser.add_argument("--pairs", type=float, default=4.5e6, help="sentence pairs of the corpus")
    return parser.parse_args()


def settings(name: str) -> dict[str, Any]:
    """The values of ``base.yaml``, with those of ``big.yaml`` over them."""
    found: dict[str, Any] = {}
    for file in dict.fromkeys(("base", name)):
        content = yaml.safe_load((CONFIGS / f"{file}.yaml").read_text(encoding="utf-8"))
        found |= content["model"]["network"] | content.get("data", {}) | {"max_steps": content["trainer"]["max_steps"]}
    return found


def operations(model: dict[str, Any], tokens: float, length: float) -> float:
    """Floating-point operations of a training step on as many real source and target tokens."""
    d, layers = model["d_model"], model["num_layers"]
    feed_forward = 2 * d * model["d_ff"]
    per_src = layers * (4 * d * d + feed_forward) + layers * 2 * d * d  # the last: keys and values of cross-attention
    per_tgt = layers * (6 * d * d + feed_forward) + model["vocab_size"] * d
    attention = 2 * layers * d * 3 * length  # of the encoder, the decoder and between them
    return 6 * tokens * (per_src + per_tgt + attention)


def main() -> None:
    options = parse()
    speed = PEAKS[options.device] * 1e12 * options.mfu
    print(f"{options.device} at {options.mfu:.0%} of {PEAKS[options.device]:g} TFLOPS, eight of them at ", end="")
    print(f"{options.scaling:.0%} of that; batches {options.fill:.0%} full, {options.length:g} tokens a sentence\n")
    print("| model | steps | real target tokens | passes | TFLOP a step | hours on 1 | hours on 8 | tokens/s on 1 |")
    print("|---|---|---|---|---|---|---|---|")
    for name in PAPER:
        model = settings(name)
        steps, tokens = model["max_steps"], model["max_tokens"] * options.fill
        step = operations(model, tokens, options.length)
        total, passes = steps * tokens, steps * tokens / (options.pairs * options.length)
        one = steps * step / speed / 3600
        eight = one / (8 * options.scaling)
        print(f"| {name} | {steps:,} | {total / 1e9:.2f} billion | {passes:.0f} | {step / 1e12:.1f} |", end="")
        print(f" {one:.1f} | {eight:.1f} | {2 * tokens * speed / step:,.0f} |")
    print()
    for name, (seconds, steps) in PAPER.items():
        model = settings(name)
        step = operations(model, model["max_tokens"] * options.fill, options.length)
        share = step / (seconds * 8 * PEAKS["P100"] * 1e12)
        print(
            f"paper, {name}: {seconds} s a step on 8 P100, {steps * seconds / 3600:.0f} hours, {share:.0%} of the peak"
        )


if __name__ == "__main__":
    main()
