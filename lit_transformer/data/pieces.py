"""Ids of a vocabulary back to text, and to one readable string each."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from lit_transformer.data.sentencepiece import HIDDEN
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID

_VISIBLE = str.maketrans({HIDDEN: "", " ": "▁", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _checked(ids: Sequence[int], vocab_size: int) -> Sequence[int]:
    if len(ids) and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise ValueError(f"ids must lie between 0 and {vocab_size - 1}, got {min(ids)} to {max(ids)}")
    return ids


def decoded(tokenizer: Tokenizer, rows: Sequence[Sequence[int]], vocab_size: int, tags: Sequence[str]) -> list[str]:
    """Rows of ids as texts, without PAD, BOS, EOS and tags."""
    silent = {PAD_ID, BOS_ID, EOS_ID, *map(tokenizer.token_to_id, tags)}
    spoken = [[i for i in _checked(row, vocab_size) if i not in silent] for row in rows]
    return tokenizer.decode_batch(spoken, skip_special_tokens=False)


def pieces(tokenizer: Tokenizer, ids: Sequence[int], vocab_size: int) -> list[str]:
    """One readable string for each id, the number itself where no token uses it."""
    spellings = (tokenizer.id_to_token(i) for i in _checked(ids, vocab_size))
    return [f"<{i}>" if piece is None else piece.translate(_VISIBLE) for i, piece in zip(ids, spellings, strict=True)]
