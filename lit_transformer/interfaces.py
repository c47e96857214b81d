"""The shapes of the plugs: what a batch, a network, a decoder state and a hypothesis must offer.

Dimension letters mean the same everywhere: ``B`` batch, ``S`` source length, ``T`` target length,
``D`` model width, ``H`` heads, ``K`` width of a head, ``V`` vocabulary, ``R`` rows in search (sentences
times beam), ``L`` length of a hypothesis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_transformer.arguments import RemembersArguments
from lit_transformer.class_paths import class_path_of
from lit_transformer.errors import InputError as InputError
from lit_transformer.vocabulary import PAD_ID


class SentencePair(NamedTuple):
    """One sentence and its translation, as raw text."""

    src: str
    tgt: str


@dataclass
class TranslationBatch:
    """Sentence pairs as token ids, padded on the right, with the raw text that scores need.

    The target is stored once, from BOS to EOS. The shift by one position that teacher forcing needs
    (section 3.1 of the paper: "output embeddings are offset by one position") lives here and nowhere else.

    Args:
        src: Source ids ``(B, S)``, each row closed by EOS.
        tgt: Target ids ``(B, T + 1)``, each row from BOS to EOS. Empty ``(B, 0)`` if there is no target.
        sources: Raw source sentences, ``B`` of them; left empty in training.
        references: Raw target sentences, ``B`` of them; left empty in training.
        indices: Running numbers of the sentences in their corpus, ``B`` of them; left empty in training.
        cursor: Where the stream stands once this batch has been trained on; plain data.
    """

    src: Int[Tensor, "B S"]
    tgt: Int[Tensor, "B T1"]
    sources: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    cursor: dict[str, Any] | None = None

    @property
    def tgt_input(self) -> Int[Tensor, "B T"]:
        """What the decoder reads: the target without its last position, ``(B, T)``."""
        return self.tgt[:, :-1]

    @property
    def labels(self) -> Int[Tensor, "B T"]:
        """What the decoder should say: the target without its first position, ``(B, T)``."""
        return self.tgt[:, 1:]

    @property
    def num_labels(self) -> Int[Tensor, ""]:
        """Real target tokens to predict (EOS counted, padding not), a scalar tensor."""
        return (self.labels != PAD_ID).sum()

    @property
    def blank(self) -> list[bool]:
        """Which sentences say nothing, ``B`` answers, so that their translation is empty; none if no texts are known.

        Example:
            >>> TranslationBatch(torch.tensor([[5, 2], [2, 0]]), torch.empty(2, 0), ["cats", " "]).blank
            [False, True]
        """
        return [not source.strip() for source in self.sources] or [False] * len(self)

    def __len__(self) -> int:
        """Number of sentence pairs, ``B``."""
        return self.src.size(0)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TranslationBatch:
        """The same batch with its tensors on ``device``; copies to a GPU never wait for it.

        The GPU does its work in order, so that alone is safe; Lightning asks for it for plain tensors only.
        """
        non_blocking = non_blocking or torch.device(device).type == "cuda"
        return replace(
            self,
            src=self.src.to(device, non_blocking=non_blocking),
            tgt=self.tgt.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> TranslationBatch:
        """The same batch in page-locked memory, so that the copy to a GPU can overlap with work."""
        return replace(self, src=self.src.pin_memory(), tgt=self.tgt.pin_memory())


class Hypothesis(NamedTuple):
    """One translation that a search proposes.

    Args:
        tokens: Target ids without BOS and EOS.
        log_prob: Sum of the log probabilities of the tokens and of EOS, in nats.
        score: What hypotheses are ranked by: ``log_prob`` divided by the length penalty.
    """

    tokens: list[int]
    log_prob: float
    score: float


@dataclass(frozen=True)
class Translation:
    """One translation of a sentence.

    Args:
        text: The translation.
        score: What the n best are ranked by: the log probability divided by the length penalty.
    """

    text: str
    score: float


class DecoderState(ABC):
    """What a network remembers between two decoding steps, one row for each open hypothesis."""

    @abstractmethod
    def select(self, rows: Int[Tensor, "R"]) -> DecoderState:
        """The state of the given rows, in that order: repeats, reorders and drops alike.

        The old state must not be used any more, so an implementation may work in place.
        """


class TranslationNetwork(RemembersArguments, nn.Module, ABC):
    """A network that maps source ids and a target prefix to scores for the next token.

    Any subclass can be trained by ``LitTransformer`` and decoded by any ``Search``. The arguments of its
    constructor are recorded, so that a checkpoint can say how to build it again: keep them plain data
    (numbers, strings, booleans, lists, dicts), and give those that go into ``*args`` by name.

    ``vocab_size`` is the number of target tokens that it scores, ``max_length`` the longest sequence that it
    can represent in tokens, or None if there is no bound.
    """

    vocab_size: int
    max_length: int | None = None

    @property
    def spec(self) -> dict[str, Any]:
        """How to build this network again: its class by import path and its arguments."""
        return {"class_path": class_path_of(type(self)), "init_args": dict(self.init_args)}

    @classmethod
    def from_arguments(
        cls, arguments: dict[str, Any], build: Callable[[dict[str, Any]], TranslationNetwork]
    ) -> TranslationNetwork:
        """Builds the network, with fresh weights, from the ``init_args`` of its ``spec``, where a model is read.

        A network that is made of others describes them there by their own ``spec``, and has each made by ``build``; it
        must also take them as arguments, as which the command line and ``load_from_checkpoint`` hand them over.
        """
        return cls(**arguments)

    def sharded_parts(self) -> list[nn.Module]:
        """Parts, innermost first, whose weights are gathered one at a time where training divides them over processes.

        They are also what ``compile_layers`` of ``LitTransformer`` compiles. Each must be used by calling it, and share
        no weight with the rest. The default is none: all at once.
        """
        return []

    def checkpoint_activations(self) -> None:
        """From now on training shall keep less for gradients, and compute it again; ``LitTransformer`` asks for it.

        Raises:
            InputError: If the network cannot, which is the default.
        """
        raise InputError(
            f"{type(self).__name__} cannot checkpoint activations: override checkpoint_activations there, or leave "
            "activation_checkpointing out"
        )

    @abstractmethod
    def forward(self, src: Int[Tensor, "B S"], tgt_input: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Scores (logits) ``(B, T, V)`` of each next target token, all positions at once."""

    @abstractmethod
    def start(self, src: Int[Tensor, "B S"]) -> DecoderState:
        """Reads the source once; the state has one row for each source sentence."""

    @abstractmethod
    def step(self, tokens: Int[Tensor, "R"], state: DecoderState) -> tuple[Float[Tensor, "R V"], DecoderState]:
        """Scores ``(R, V)`` of the token that follows ``tokens``, and the state that remembers them."""


class Search(ABC):
    """A way to turn a network's scores into translations.

    One that can begin translations with given tokens takes them as a further argument of its call, ``prefixes``: for
    each sentence a list of target ids. Those of this package do; it is passed on only where there are prefixes.
    """

    @abstractmethod
    def __call__(self, network: TranslationNetwork, src: Int[Tensor, "B S"]) -> list[list[Hypothesis]]:
        """Hypotheses for each of the ``B`` source sentences, best first.

        The caller switches off training mode and gradients.
        """
