"""Models for other toolkits and from them: folders that Hugging Face transformers reads and writes."""

from lit_transformer.exchange.huggingface import export_huggingface, import_huggingface

__all__ = ["export_huggingface", "import_huggingface"]
