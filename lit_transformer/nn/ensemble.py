"""Several networks that translate together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_transformer.interfaces import DecoderState, TranslationNetwork


class Ensemble(TranslationNetwork):
    """Several trained networks as one: the probability of each next token is the mean of what they give it.

    Networks that were trained from different seeds make different mistakes, so together they translate better than
    each alone, at the price of all of them in each step. They may differ in size and in kind, but not in their tokens.
    The scores are the logarithms of the mean, as good logits as any.

    Source: the mean of probabilities as in fairseq, Marian and Sockeye; Sutskever et al. 2014, "Sequence to sequence
    learning with neural networks", section 3.6, on what ensembles bring.

    Args:
        networks: The networks, two or more usually.

    Raises:
        ValueError: If there is none, or they score different numbers of tokens, or read different numbers.

    Example:
        >>> from lit_transformer.nn import Transformer
        >>> small = dict(vocab_size=32, num_layers=1, d_model=16, d_ff=32, num_heads=2)
        >>> both = Ensemble([Transformer(**small), Transformer(**small)]).eval()
        >>> src, tgt_input = torch.tensor([[5, 6, 3]]), torch.tensor([[2, 7]])
        >>> torch.allclose(both(src, tgt_input).exp().sum(-1), torch.ones(1, 2))  # distributions
        True
    """

    def __init__(self, networks: Sequence[TranslationNetwork]) -> None:
        super().__init__()
        if not networks:
            raise ValueError("an ensemble needs one network or more")
        for name in ("vocab_size", "src_vocab_size"):
            sizes = sorted({getattr(one, name, one.vocab_size) for one in networks})
            if len(sizes) > 1:
                raise ValueError(f"the networks of an ensemble need one {name}, got {', '.join(map(str, sizes))}")
        self.networks = nn.ModuleList(networks)
        self.vocab_size = networks[0].vocab_size
        self.src_vocab_size = getattr(networks[0], "src_vocab_size", self.vocab_size)
        self.max_length = min((one.max_length for one in networks if one.max_length is not None), default=None)

    @property
    def members(self) -> list[TranslationNetwork]:
        """The networks, in their order."""
        return list(self.networks)  # type: ignore[arg-type]

    @property
    def spec(self) -> dict[str, Any]:
        """How to build this network again: its class, and the same of each of its networks."""
        return {**super().spec, "init_args": {"networks": [one.spec for one in self.members]}}

    @classmethod
    def from_arguments(
        cls, arguments: dict[str, Any], build: Callable[[dict[str, Any]], TranslationNetwork]
    ) -> TranslationNetwork:
        """The ensemble that ``spec`` describes, with fresh weights."""
        return cls([build(spec) for spec in arguments["networks"]])

    def forward(self, src: Int[Tensor, "B S"], tgt_input: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logarithms ``(B, T, V)`` of the mean probability of each next token, all positions at once."""
        return _together((network(src, tgt_input) for network in self.members), len(self.networks))

    def start(self, src: Int[Tensor, "B S"]) -> EnsembleState:
        """Each network reads the source ids ``(B, S)`` once."""
        return EnsembleState([network.start(src) for network in self.members])

    def step(self, tokens: Int[Tensor, "R"], state: DecoderState) -> tuple[Float[Tensor, "R V"], EnsembleState]:
        """Logarithms ``(R, V)`` of the mean probability of the token that follows ``tokens``, and the new state.

        Raises:
            TypeError: If the state comes from another kind of network.
        """
        if not isinstance(state, EnsembleState):
            raise TypeError(f"step needs the EnsembleState that start returned, got {type(state).__name__}")
        found = [network.step(tokens, one) for network, one in zip(self.members, state.states, strict=True)]
        return _together((logits for logits, _ in found), len(found)), EnsembleState([after for _, after in found])


class EnsembleState(DecoderState):
    """What each network of an ensemble remembers between two decoding steps.

    Args:
        states: One for each network.
    """

    def __init__(self, states: list[DecoderState]) -> None:
        self.states = states

    def select(self, rows: Int[Tensor, "R"]) -> EnsembleState:
        """The state of the given rows, in that order."""
        return EnsembleState([state.select(rows) for state in self.states])


def _together(logits: Iterable[Tensor], count: int) -> Tensor:
    """The logarithm of the mean of ``count`` distributions ``(..., V)``, of at least single precision."""
    total: Tensor | None = None
    for one in logits:  # one at a time: those of a batch are large
        found = one.log_softmax(-1, dtype=torch.promote_types(one.dtype, torch.float32))
        total = found if total is None else torch.logaddexp(total, found)
    assert total is not None  # there is one network or more
    return total - math.log(count)
