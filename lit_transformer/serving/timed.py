"""Beam search that gives up once its time is over or its clients have gone, since nobody waits for its result then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from jaxtyping import Float, Int
from torch import Tensor

from lit_transformer.decoding import BeamSearch
from lit_transformer.interfaces import DecoderState, Hypothesis, TranslationNetwork


class TimeUpError(Exception):
    """A search was given up, because its deadline has passed or nobody waits for it."""


class TimedSearch(BeamSearch):
    """A :class:`~lit_transformer.BeamSearch` with a ``deadline``: the first step that would begin later is not taken.

    Attributes:
        deadline: In seconds of ``time.monotonic``; infinity for none.
        is_forgotten: Tells, before each step, whether nobody waits for the result any more.
    """

    deadline = math.inf
    is_forgotten: Callable[[], bool] = staticmethod(bool)  # nobody ever goes

    def __call__(
        self, network: TranslationNetwork, src: Int[Tensor, "B S"], prefixes: Sequence[Sequence[int]] | None = None
    ) -> list[list[Hypothesis]]:
        """What the beam search finds.

        Raises:
            TimeUpError: If before that its time is over, or nobody waits for it any more.
        """
        return super().__call__(_Timed(network, self), src, prefixes)


class _Timed(TranslationNetwork):
    """A network that takes no step once its search is to end."""

    def __init__(self, network: TranslationNetwork, search: TimedSearch) -> None:
        super().__init__()
        self.network, self.search = network, search
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
        if time.monotonic() > self.search.deadline or self.search.is_forgotten():
            raise TimeUpError
