"""Searches that turn a network's scores into translations."""

from lit_transformer.decoding.beam import BeamSearch, length_penalty
from lit_transformer.decoding.search import GreedySearch, SamplingSearch
from lit_transformer.interfaces import Search

__all__ = ["BeamSearch", "GreedySearch", "SamplingSearch", "Search", "length_penalty"]
