"""The English-Korean teaching corpus: a grammar in code, with nothing to download."""

from lit_transformer.data.teaching.corpus import DEMO_SENTENCE, Split, teaching_pairs

__all__ = ["DEMO_SENTENCE", "Split", "teaching_pairs"]
