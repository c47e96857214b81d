"""Text in, batches of token ids out.

Only the data module needs Lightning, so it is loaded on first use: corpora and tokenizers work without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_transformer.data.batching import LengthLimits, TokenBudgetBatches
from lit_transformer.data.corpus import ParallelCorpus
from lit_transformer.data.filters import BadRowError, PairFilter
from lit_transformer.data.memory import MemoryCorpus, TeachingCorpus
from lit_transformer.data.textfiles import CorpusError
from lit_transformer.data.tokenizer import SubwordTokenizer

if TYPE_CHECKING:
    from lit_transformer.data.datamodule import TranslationDataModule

__all__ = [
    "BadRowError",
    "CorpusError",
    "LengthLimits",
    "MemoryCorpus",
    "PairFilter",
    "ParallelCorpus",
    "SubwordTokenizer",
    "TeachingCorpus",
    "TokenBudgetBatches",
    "TranslationDataModule",
]


def __getattr__(name: str) -> object:
    if name == "TranslationDataModule":
        from lit_transformer.data.datamodule import TranslationDataModule

        return TranslationDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
