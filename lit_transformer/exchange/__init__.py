"""Models for other toolkits and from them: folders that Hugging Face transformers reads and writes, and CTranslate2."""

from lit_transformer.exchange.card import model_card, push_to_hub
from lit_transformer.exchange.ctranslate import export_ctranslate2
from lit_transformer.exchange.engine import CTranslate2Translator, load_translator
from lit_transformer.exchange.huggingface import export_huggingface, import_huggingface
from lit_transformer.exchange.program_files import export_onnx, export_torch

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
