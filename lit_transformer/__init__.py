"""The Transformer of "Attention Is All You Need" as PyTorch Lightning components.

The public names load on first use, so that ``import lit_transformer`` and ``lit-transformer --help`` are quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_transformer.callbacks import AttentionPictures as AttentionPictures
    from lit_transformer.callbacks import BLEUEvaluation as BLEUEvaluation
    from lit_transformer.callbacks import CheckpointAveraging as CheckpointAveraging
    from lit_transformer.callbacks import InverseSqrtWarmup as InverseSqrtWarmup
    from lit_transformer.callbacks import MovingAverage as MovingAverage
    from lit_transformer.callbacks import TranslationWriter as TranslationWriter
    from lit_transformer.data import MemoryCorpus as MemoryCorpus
    from lit_transformer.data import ParallelCorpus as ParallelCorpus
    from lit_transformer.data import SubwordTokenizer as SubwordTokenizer
    from lit_transformer.data import TeachingCorpus as TeachingCorpus
    from lit_transformer.data import TranslationDataModule as TranslationDataModule
    from lit_transformer.decoding import BeamSearch as BeamSearch
    from lit_transformer.decoding import GreedySearch as GreedySearch
    from lit_transformer.decoding import SamplingSearch as SamplingSearch
    from lit_transformer.distillation import DistilledTransformer as DistilledTransformer
    from lit_transformer.interfaces import DecoderState as DecoderState
    from lit_transformer.interfaces import Hypothesis as Hypothesis
    from lit_transformer.interfaces import Search as Search
    from lit_transformer.interfaces import SentencePair as SentencePair
    from lit_transformer.interfaces import Translation as Translation
    from lit_transformer.interfaces import TranslationBatch as TranslationBatch
    from lit_transformer.interfaces import TranslationNetwork as TranslationNetwork
    from lit_transformer.metrics import CorpusBLEU as CorpusBLEU
    from lit_transformer.metrics import CorpusChrF as CorpusChrF
    from lit_transformer.metrics import CorpusTER as CorpusTER
    from lit_transformer.metrics import MosesBLEU as MosesBLEU
    from lit_transformer.module import LitTransformer as LitTransformer
    from lit_transformer.muon import MuonAdam as MuonAdam
    from lit_transformer.nn import Ensemble as Ensemble
    from lit_transformer.nn import Transformer as Transformer
    from lit_transformer.rdrop import RDropTransformer as RDropTransformer
    from lit_transformer.translator import Translator as Translator

__version__ = "0.1.0"

_HOMES = {
    "AttentionPictures": "callbacks",
    "BLEUEvaluation": "callbacks",
    "BeamSearch": "decoding",
    "CheckpointAveraging": "callbacks",
    "CorpusBLEU": "metrics",
    "CorpusChrF": "metrics",
    "CorpusTER": "metrics",
    "DecoderState": "interfaces",
    "DistilledTransformer": "distillation",
    "Ensemble": "nn",
    "GreedySearch": "decoding",
    "Hypothesis": "interfaces",
    "InverseSqrtWarmup": "callbacks",
    "LitTransformer": "module",
    "MemoryCorpus": "data",
    "MosesBLEU": "metrics",
    "MovingAverage": "callbacks",
    "MuonAdam": "muon",
    "ParallelCorpus": "data",
    "RDropTransformer": "rdrop",
    "SamplingSearch": "decoding",
    "Search": "interfaces",
    "SentencePair": "interfaces",
    "SubwordTokenizer": "data",
    "TeachingCorpus": "data",
    "Transformer": "nn",
    "Translation": "interfaces",
    "TranslationBatch": "interfaces",
    "TranslationDataModule": "data",
    "TranslationNetwork": "interfaces",
    "TranslationWriter": "callbacks",
    "Translator": "translator",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_transformer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lit_transformer.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
