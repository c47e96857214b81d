"""Text in, batches of token ids out."""

from lit_transformer.data.batching import TokenBudgetBatches
from lit_transformer.data.corpus import CorpusError, ParallelCorpus, TeachingCorpus
from lit_transformer.data.datamodule import TranslationDataModule
from lit_transformer.data.tokenizer import SubwordTokenizer

__all__ = [
    "CorpusError",
    "ParallelCorpus",
    "SubwordTokenizer",
    "TeachingCorpus",
    "TokenBudgetBatches",
    "TranslationDataModule",
]
