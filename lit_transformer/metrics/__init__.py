"""Scores of translations: sacrebleu's counts, summed over batches and processes, with intervals and comparisons."""

from lit_transformer.metrics.corpus import CorpusBLEU, CorpusChrF, CorpusTER
from lit_transformer.metrics.moses import MosesBLEU
from lit_transformer.metrics.paired import Compared, PairedScores, paired_bootstrap
from lit_transformer.metrics.score import CorpusScore, Interval

__all__ = [
    "Compared",
    "CorpusBLEU",
    "CorpusChrF",
    "CorpusScore",
    "CorpusTER",
    "Interval",
    "MosesBLEU",
    "PairedScores",
    "paired_bootstrap",
]
