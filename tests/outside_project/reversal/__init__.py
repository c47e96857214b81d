"""A stranger's project: a network that learns to read digits backwards, made of lit_transformer's seams."""

from reversal.parts import ConfidentLoss, LinearWarmdown, ReversalCorpus, ScaledAttention, ScaledTransformer

__all__ = ["ConfidentLoss", "LinearWarmdown", "ReversalCorpus", "ScaledAttention", "ScaledTransformer"]
