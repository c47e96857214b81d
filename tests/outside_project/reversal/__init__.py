"""A stranger's project: a network that learns to read digits backwards, made of lit_transformer's seams."""

from reversal.parts import (
    ConfidentLoss,
    ExactMatch,
    LinearWarmdown,
    MeanBeams,
    ReversalCorpus,
    ReversalData,
    ScaledAttention,
    ScaledTransformer,
    SummedBatches,
)

__all__ = [
    "ConfidentLoss",
    "ExactMatch",
    "LinearWarmdown",
    "MeanBeams",
    "ReversalCorpus",
    "ReversalData",
    "ScaledAttention",
    "ScaledTransformer",
    "SummedBatches",
]
