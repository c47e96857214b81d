"""The rows of the paper's Table 3 as configurations: each says what differs, and has the size that the paper prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import lit

from lit_transformer import Transformer

FOLDER = Path(__file__).parent.parent / "configs"
PEAKS = {256: 0.0009882118, 512: 0.0006987712, 1024: 0.0004941059}  # by d_model: equation 3 at step 4000
# what differs from the base model, the perplexity and BLEU of the paper, and the printed millions of parameters
ROWS: dict[str, tuple[dict[str, Any], float, float, int | None]] = {
    "a_1_head": ({"num_heads": 1, "d_k": 512, "d_v": 512}, 5.29, 24.9, None),
    "a_4_heads": ({"num_heads": 4, "d_k": 128, "d_v": 128}, 5.00, 25.5, None),
    "a_16_heads": ({"num_heads": 16, "d_k": 32, "d_v": 32}, 4.91, 25.8, None),
    "a_32_heads": ({"num_heads": 32, "d_k": 16, "d_v": 16}, 5.01, 25.4, None),
    "b_d_k_16": ({"d_k": 16}, 5.16, 25.1, 58),
    "b_d_k_32": ({"d_k": 32}, 5.01, 25.4, 60),
    "c_2_layers": ({"num_layers": 2}, 6.11, 23.7, 36),
    "c_4_layers": ({"num_layers": 4}, 5.19, 25.3, 50),
    "c_8_layers": ({"num_layers": 8}, 4.88, 25.5, 80),
    "c_d_model_256": ({"d_model": 256, "d_k": 32, "d_v": 32}, 5.75, 24.5, 28),
    "c_d_model_1024": ({"d_model": 1024, "d_k": 128, "d_v": 128}, 4.66, 26.0, 168),
    "c_d_ff_1024": ({"d_ff": 1024}, 5.12, 25.4, 53),
    "c_d_ff_4096": ({"d_ff": 4096}, 4.75, 26.2, 90),
    "d_dropout_0.0": ({"dropout": 0.0}, 5.77, 24.6, None),
    "d_dropout_0.2": ({"dropout": 0.2}, 4.95, 25.5, None),
    "d_smoothing_0.0": ({"label_smoothing": 0.0}, 4.67, 25.3, None),
    "d_smoothing_0.2": ({"label_smoothing": 0.2}, 5.47, 25.7, None),
    "e_learned_positions": ({"positions": "learned", "max_length": 1024}, 4.92, 25.7, None),
}


def printed(*names: str) -> dict[str, Any]:
    finished = lit("fit", *(f"--config={FOLDER / name}.yaml" for name in names), "--print_config")
    assert finished.status == 0, finished.err
    content: dict[str, Any] = yaml.safe_load(finished.out)
    return content


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return printed("base")


def test_every_row_has_its_file() -> None:
    assert {path.stem for path in (FOLDER / "table3").glob("*.yaml")} == set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_differs_from_the_base_model_where_the_paper_says_so(row: str, base: dict[str, Any]) -> None:
    differences, perplexity, bleu, millions = ROWS[row]
    content = printed("base", f"table3/{row}")
    model, base_model = content["model"]["init_args"], base["model"]["init_args"]
    network = model["network"]["init_args"]
    expected = dict(differences)
    assert model["label_smoothing"] == expected.pop("label_smoothing", base_model["label_smoothing"])
    assert network == {**base_model["network"]["init_args"], **expected}
    assert model["optimizer"]["init_args"]["lr"] == pytest.approx(PEAKS[network["d_model"]], rel=1e-6)
    assert content["warmup"] == {**base["warmup"], "d_model": network["d_model"]}
    for part in ("data", "bleu"):  # nothing else changes, but for the averaging that these rows do without
        assert content[part] == base[part]
    assert content["averaging"]["num_checkpoints"] == 1
    text = (FOLDER / "table3" / f"{row}.yaml").read_text(encoding="utf-8")
    assert f"{bleu} BLEU and perplexity {perplexity:.2f}" in text
    if millions is None:
        assert "million" not in text
        return
    assert f"{millions} million parameters" in text
    with torch.device("meta"):  # with this vocabulary all rows round to the printed size, see tests/nn/test_table3.py
        arguments = {**network, "vocab_size": 41_100, "bias": False}
        size = sum(parameter.numel() for parameter in Transformer(**arguments).parameters())
    assert round(size / 1e6) == millions
