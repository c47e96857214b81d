"""The decoder: layers that look at the target so far and at the source (section 3.1), and what they remember."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_transformer.interfaces import DecoderState
from lit_transformer.nn.attention import KeyValueCache, MultiHeadAttention
from lit_transformer.nn.layers import Norm, ResidualNorm, call_layer


class SentenceRows:
    """Which source sentence each row of the search translates.

    All rows of one sentence look at the same source. So the source's keys and values are kept once per sentence,
    and its rows become so many queries over them: ``fold`` sets the rows ``(R, 1, D)`` into a grid of sentences
    by queries ``(N, G, D)``, ``unfold`` takes them out again.

    Args:
        owners: The sentence, from 0, of each row.
        num_sentences: Number of sentences, ``N``.
        device: Where the rows live.

    Attributes:
        width: Most rows of one sentence, ``G``.
        is_full_grid: Whether every sentence has as many, in the order of the sentences.

    Example:
        >>> rows = SentenceRows([0, 0, 1], num_sentences=2)
        >>> grid = rows.fold(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1))
        >>> grid.squeeze(-1)
        tensor([[1., 2.],
                [3., 0.]])
        >>> rows.unfold(grid).flatten()
        tensor([1., 2., 3.])
    """

    def __init__(self, owners: list[int], num_sentences: int, device: torch.device | str | None = None) -> None:
        self.owners = owners
        self.num_sentences = num_sentences
        counts: Counter[int] = Counter()
        slots = []
        self.width = max(Counter(owners).values(), default=1)
        for owner in owners:
            slots.append(owner * self.width + counts[owner])
            counts[owner] += 1
        self.is_full_grid = slots == list(range(num_sentences * self.width))
        self._slots = None if self.is_full_grid else torch.tensor(slots, dtype=torch.long, device=device)

    def fold(self, tokens: Float[Tensor, "R 1 D"]) -> Float[Tensor, "N G D"]:
        """Sets rows ``(R, 1, D)`` into the grid ``(N, G, D)``; empty places hold zeros."""
        if self._slots is not None:
            grid = tokens.new_zeros(self.num_sentences * self.width, 1, tokens.size(2))
            tokens = grid.index_copy(0, self._slots, tokens)
        return tokens.view(self.num_sentences, self.width, tokens.size(2))

    def unfold(self, grid: Float[Tensor, "N G D"]) -> Float[Tensor, "R 1 D"]:
        """Takes the rows ``(R, 1, D)`` out of the grid ``(N, G, D)``."""
        tokens = grid.flatten(0, 1).unsqueeze(1)
        return tokens if self._slots is None else tokens.index_select(0, self._slots)


@dataclass
class LayerMemory:
    """What one decoder layer remembers between two steps.

    Args:
        keys: Projected keys of the source, one copy per sentence, ``(N, H, S, d_k)``.
        values: Projected values of the source, one copy per sentence, ``(N, H, S, d_v)``.
        past: Keys and values of the target so far, one row per hypothesis.
    """

    keys: Float[Tensor, "N H S K"]
    values: Float[Tensor, "N H S Kv"]
    past: KeyValueCache = field(default_factory=KeyValueCache)

    def select_rows(self, rows: Int[Tensor, "R"]) -> None:
        """Keeps the past of these hypotheses."""
        self.past.select(rows)

    def select_sentences(self, sentences: Int[Tensor, "N"]) -> None:
        """Keeps the source of these sentences."""
        self.keys = self.keys.index_select(0, sentences)
        self.values = self.values.index_select(0, sentences)


class TransformerState(DecoderState):
    """What the decoder remembers between two steps; ``step`` and ``select`` change it in place.

    Args:
        layers: The memory of each layer, first to last.
        mask: ``(N, 1, 1, S)``, True at real source tokens; None if all are.
        rows: Which sentence each row translates.

    Attributes:
        length: Target tokens read so far.
    """

    def __init__(self, layers: list[LayerMemory], mask: Bool[Tensor, "N 1 1 S"] | None, rows: SentenceRows) -> None:
        self.layers = layers
        self.mask = mask
        self.rows = rows
        self.length = 0

    def select(self, rows: Int[Tensor, "R"]) -> TransformerState:
        """The state of the given rows, in that order; sentences without a row are forgotten."""
        picks = rows.tolist()
        if picks == list(range(len(self.rows.owners))):
            return self
        self._select_rows(rows)
        owners = [self.rows.owners[pick] for pick in picks]
        if owners == self.rows.owners:  # each is replaced by one of its own sentence
            return self
        kept = sorted(set(owners))
        if len(kept) < self.rows.num_sentences:
            self._select_sentences(torch.tensor(kept, dtype=torch.long, device=rows.device))
        places = {sentence: place for place, sentence in enumerate(kept)}
        self.rows = SentenceRows([places[owner] for owner in owners], len(kept), rows.device)
        return self

    def _select_rows(self, rows: Int[Tensor, "R"]) -> None:
        for layer in self.layers:
            layer.select_rows(rows)

    def _select_sentences(self, sentences: Int[Tensor, "N"]) -> None:
        for layer in self.layers:
            layer.select_sentences(sentences)
        if self.mask is not None:
            self.mask = self.mask.index_select(0, sentences)


class DecoderLayer(nn.Module):
    """Self-attention, attention over the source, feed-forward network, each inside a residual connection.

    Source: Vaswani et al. 2017, section 3.1.

    Args:
        d_model: Width of the token representations, in features.
        self_attention: How target tokens look at themselves and the tokens before them.
        cross_attention: How target tokens look at the source.
        feed_forward: How each token is transformed, ``(B, T, D)`` to ``(B, T, D)``.
        dropout: Probability to drop a feature of a sub-layer's output in training.
        norm: ``"post"`` normalises after the residual sum, as in the paper, ``"pre"`` before the sub-layer.

    Example:
        >>> from lit_transformer.nn import PositionwiseFeedForward
        >>> feed_forward = PositionwiseFeedForward(16, d_ff=32)
        >>> layer = DecoderLayer(16, MultiHeadAttention(16, 2), MultiHeadAttention(16, 2), feed_forward)
        >>> layer(torch.randn(2, 3, 16), memory=torch.randn(2, 5, 16)).shape
        torch.Size([2, 3, 16])
    """

    def __init__(
        self,
        d_model: int,
        self_attention: MultiHeadAttention,
        cross_attention: MultiHeadAttention,
        feed_forward: nn.Module,
        dropout: float = 0.1,
        norm: Norm = "post",
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_residual = ResidualNorm(d_model, dropout, norm)
        self.cross_attention = cross_attention
        self.cross_attention_residual = ResidualNorm(d_model, dropout, norm)
        self.feed_forward = feed_forward
        self.feed_forward_residual = ResidualNorm(d_model, dropout, norm)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        memory: Float[Tensor, "B S D"],
        mask: Bool[Tensor, "B 1 1 S"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Refines all target positions at once, none of which sees a later one.

        Args:
            tokens: The target so far, ``(B, T, D)``, padded on the right if at all.
            memory: What the encoder made of the source, ``(B, S, D)``.
            mask: ``(B, 1, 1, S)``, True at real source tokens; None if all are.
        """
        tokens = self.self_attention_residual(tokens, lambda x: self.self_attention(x, x, x, is_causal=True))
        tokens = self.cross_attention_residual(tokens, lambda x: self.cross_attention(x, memory, memory, mask=mask))
        return self.feed_forward_residual(tokens, self.feed_forward)  # type: ignore[no-any-return]

    def start(self, memory: Float[Tensor, "N S D"]) -> LayerMemory:
        """Projects the source's memory ``(N, S, D)`` once, for all steps to come."""
        return LayerMemory(*self.cross_attention.keys_and_values(memory, memory))

    def step(
        self,
        tokens: Float[Tensor, "R 1 D"],
        layer: LayerMemory,
        rows: SentenceRows,
        mask: Bool[Tensor, "N 1 1 S"] | None = None,
    ) -> Float[Tensor, "R 1 D"]:
        """Refines the newest position only, ``(R, 1, D)``, and adds it to the layer's memory.

        Args:
            tokens: The newest position of each row, ``(R, 1, D)``.
            layer: What this layer remembers; changed in place.
            rows: Which sentence each row translates.
            mask: ``(N, 1, 1, S)``, True at real source tokens; None if all are.
        """

        def look_back(x: Tensor) -> Tensor:
            keys, values = layer.past.append(*self.self_attention.keys_and_values(x, x))
            return self.self_attention.read(x, keys, values)

        def look_at_source(x: Tensor) -> Tensor:
            return rows.unfold(self.cross_attention.read(rows.fold(x), layer.keys, layer.values, mask))

        tokens = self.self_attention_residual(tokens, look_back)
        tokens = self.cross_attention_residual(tokens, look_at_source)
        return self.feed_forward_residual(tokens, self.feed_forward)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A stack of decoder layers.

    Source: Vaswani et al. 2017, section 3.1.

    Args:
        layers: The layers, first to last.
        final_norm: Applied to the result of the last layer; pre-norm stacks need one, the paper's have none.

    Attributes:
        activation_checkpointing: Whether training keeps the output of each layer only; see
            :meth:`Transformer.checkpoint_activations`.
    """

    def __init__(self, layers: Iterable[nn.Module], final_norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm
        self.activation_checkpointing = False

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        memory: Float[Tensor, "B S D"],
        mask: Bool[Tensor, "B 1 1 S"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Reads embedded target tokens ``(B, T, D)``; returns features of each next token ``(B, T, D)``.

        Args:
            tokens: The embedded target, ``(B, T, D)``, padded on the right if at all.
            memory: What the encoder made of the source, ``(B, S, D)``.
            mask: ``(B, 1, 1, S)``, True at real source tokens; None if all are.
        """
        for layer in self.layers:
            tokens = call_layer(layer, tokens, memory, mask, is_checkpointed=self.activation_checkpointing)
        return self._finish(tokens)

    def start(self, memory: Float[Tensor, "B S D"], mask: Bool[Tensor, "B 1 1 S"] | None = None) -> TransformerState:
        """A state that has read the source ``(B, S, D)`` and no target yet, one row per sentence."""
        num_sentences = memory.size(0)
        rows = SentenceRows(list(range(num_sentences)), num_sentences, memory.device)
        layers: list[LayerMemory] = [layer.start(memory) for layer in self.layers]  # type: ignore[operator]
        return TransformerState(layers, mask, rows)

    def step(self, tokens: Float[Tensor, "R 1 D"], state: TransformerState) -> Float[Tensor, "R 1 D"]:
        """Reads one more embedded token per row, ``(R, 1, D)``; returns its features and updates ``state``."""
        for layer, remembered in zip(self.layers, state.layers, strict=True):
            tokens = layer.step(tokens, remembered, state.rows, state.mask)  # type: ignore[operator]
        state.length += 1
        return self._finish(tokens)

    def _finish(self, tokens: Tensor) -> Tensor:
        return tokens if self.final_norm is None else self.final_norm(tokens)
