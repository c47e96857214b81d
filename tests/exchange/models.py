"""Networks and tokenizers that tests of exchange share."""

from __future__ import annotations

from typing import Any

import torch

from lit_transformer import SubwordTokenizer, TeachingCorpus, Transformer

SIZES: dict[str, Any] = {"vocab_size": 610, "num_layers": 2, "d_model": 16, "d_ff": 32, "num_heads": 4}
PAIRS = list(TeachingCorpus("train", max_rows=300))


def trained_tokenizer(**recipe: Any) -> SubwordTokenizer:
    """A tokenizer of the teaching corpus with a tag."""
    tokenizer = SubwordTokenizer(**{"vocab_size": 600, "tags": ["<2ko>"], **recipe})
    tokenizer.train(PAIRS)
    return tokenizer


def random_network(**changes: Any) -> Transformer:
    """A network in which every weight matters."""
    network = Transformer(**{**SIZES, **changes})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return network.eval()
