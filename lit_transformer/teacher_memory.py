"""What teachers have said of each sentence pair, kept from one pass over the text to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lit_transformer.interfaces import TranslationBatch
from lit_transformer.loss import Shortlist
from lit_transformer.vocabulary import PAD_ID


class TeacherMemory:
    """Remembers the likeliest tokens at each place of each sentence pair, so that teachers are asked once for each.

    They read without dropout, and say the same each time. A place takes 6 bytes for each token of the list, on the CPU.
    A copy, as it comes with one of the module, has forgotten all.

    Args:
        top_k: How many tokens of each place.
        ask: Gives the likeliest tokens of the teachers at the real target positions of a batch, so many at each.
    """

    def __init__(self, top_k: int, ask: Callable[[TranslationBatch, int], Shortlist]) -> None:
        self.top_k, self.ask = top_k, ask
        self._known: dict[bytes, list[Tensor]] = {}  # tokens and probabilities (T, K) of each pair

    def __call__(self, batch: TranslationBatch) -> Shortlist:
        """What the teachers say of the real target tokens of a batch, ``(N, K)``."""
        if not len(batch):
            return self.ask(batch, self.top_k)
        keys = [_key(src, tgt) for src, tgt in zip(batch.src.tolist(), batch.tgt.tolist(), strict=True)]
        first = {key: row for row, key in reversed([*enumerate(keys)]) if key not in self._known}
        if first:
            rows = torch.tensor(sorted(first.values()), device=batch.src.device)
            self._learn([keys[row] for row in rows.tolist()], replace(batch, src=batch.src[rows], tgt=batch.tgt[rows]))
        with torch.autocast("cpu", enabled=False):  # which knows no float16 and refuses to join it
            tokens, probs = (torch.cat(parts) for parts in zip(*(self._known[key] for key in keys), strict=True))
        device = batch.src.device
        return Shortlist(tokens.to(device, torch.long), probs.to(device, torch.float32))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_known": {}}

    def _learn(self, keys: list[bytes], batch: TranslationBatch) -> None:
        tokens, probs = self.ask(batch, self.top_k)
        lengths = (batch.labels != PAD_ID).sum(1).tolist()
        parts = (
            torch.split(tokens.to("cpu", torch.int32), lengths),
            torch.split(probs.to("cpu", torch.float16), lengths),
        )
        self._known.update((key, pair) for key, *pair in zip(keys, *parts, strict=True))


def _key(src: list[int], tgt: list[int]) -> bytes:
    """Says which pair it is, however far it was filled up."""
    return b"|".join(b" ".join(b"%d" % one for one in side if one != PAD_ID) for side in (src, tgt))
