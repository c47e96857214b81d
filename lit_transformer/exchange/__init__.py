"""Models for other toolkits and from them: folders that Hugging Face transformers reads and writes, and CTranslate2.

The names load on first use: what writes programs takes longer to import than a sentence takes to translate.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_transformer.exchange.card import model_card as model_card
    from lit_transformer.exchange.card import push_to_hub as push_to_hub
    from lit_transformer.exchange.ctranslate import export_ctranslate2 as export_ctranslate2
    from lit_transformer.exchange.engine import CTranslate2Translator as CTranslate2Translator
    from lit_transformer.exchange.engine import load_translator as load_translator
    from lit_transformer.exchange.huggingface import export_huggingface as export_huggingface
    from lit_transformer.exchange.huggingface import import_huggingface as import_huggingface
    from lit_transformer.exchange.program_files import export_onnx as export_onnx
    from lit_transformer.exchange.program_files import export_torch as export_torch

_HOMES = {
    "CTranslate2Translator": "engine",
    "export_ctranslate2": "ctranslate",
    "export_huggingface": "huggingface",
    "export_onnx": "program_files",
    "export_torch": "program_files",
    "import_huggingface": "huggingface",
    "load_translator": "engine",
    "model_card": "card",
    "push_to_hub": "card",
}

__all__ = [
    "CTranslate2Translator",
    "export_ctranslate2",
    "export_huggingface",
    "export_onnx",
    "export_torch",
    "import_huggingface",
    "load_translator",
    "model_card",
    "push_to_hub",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
