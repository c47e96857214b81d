"""Models for other toolkits and from them: folders that Hugging Face transformers reads and writes, and CTranslate2."""

from lit_transformer.exchange.ctranslate import export_ctranslate2
from lit_transformer.exchange.huggingface import export_huggingface, import_huggingface

__all__ = ["export_ctranslate2", "export_huggingface", "import_huggingface"]
