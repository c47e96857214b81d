"""Beam search that gives up once its time is over, since nobody waits for its result then."""

from __future__ import annotations

import math
import time

from jaxtyping import Float, Int
from torch import Tensor

from lit_transformer.decoding import BeamSearch
from lit_transformer.interfaces import DecoderState, Hypothesis, TranslationNetwork


class TimeUpError(Exception):
    """A search was given up, because its deadline has passed."""


class TimedSearch(BeamSearch):
    """A :class:`~lit_transformer.BeamSearch` with a ``deadline``: the first step that would begin later is not taken.

    Attributes:
        deadline: In seconds of ``time.monotonic``; infinity for none.
    """

    deadline = math.inf

    def __call__(self, network: TranslationNetwork, src: Int[Tensor, "B S"]) -> list[list[Hypothesis]]:
        """What the beam search finds.

        Raises:
            TimeUpError: If it does not find it in time.
        """
        return super().__call__(_Timed(network, self.deadline), src)


class _Timed(TranslationNetwork):
    """A network that takes no step after a deadline."""

    def __init__(self, network: TranslationNetwork, deadline: float) -> None:
        super().__init__()
        self.network, self.deadline = network, deadline
        self.vocab_size, self.max_length = network.vocab_size, network.max_length

    def forward(self, src: Int[Tensor, "B S"], tgt_input: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        logits: Tensor = self.network(src, tgt_input)
        return logits

    def start(self, src: Int[Tensor, "B S"]) -> DecoderState:
        self._check()
        return self.network.start(src)

    def step(self, tokens: Int[Tensor, "R"], state: DecoderState) -> tuple[Float[Tensor, "R V"], DecoderState]:
        self._check()
        return self.network.step(tokens, state)

    def _check(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeUpError
