"""The Transformer prepared for decoding on a CPU: the same steps with fewer and faster operations.

Training and every other use go through the plain modules, which are the reference that this file is tested against.
What is done differently here: weights are packed once (see :class:`Product`), the projections of queries, keys and
values that read the same input are one product, and the keys and values of all layers lie in one tensor, time first,
so that reordering the hypotheses is one copy.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_transformer.interfaces import DecoderState, TranslationNetwork
from lit_transformer.nn.decoder import LayerMemory, SentenceRows, TransformerState
from lit_transformer.nn.obstacles import obstacle
from lit_transformer.nn.prepared_layers import PreparedDecoderLayer, PreparedEncoderLayer, prepared_norm, split_heads
from lit_transformer.nn.products import Precision, Product, check_precision
from lit_transformer.nn.transformer import Transformer

_CAPACITY = 32  # positions that a search makes room for at first


class PreparedTransformer(TranslationNetwork):
    """A trained :class:`Transformer` for searches on a CPU, with weights copied and packed for it.

    ``start`` and ``step`` give the scores that the network's own give, up to rounding. Weights that change afterwards
    do not count: see ``is_current``. An overridden ``MultiHeadAttention.attend``, embedding, position or feed-forward
    module is used as it is.

    Args:
        network: The trained network, in evaluation mode.
        precision: Of weights and arithmetic. ``bf16`` keeps features in bfloat16 throughout; ``int8`` rounds weights
            and the inputs of products to 8 bits, so that a sentence's scores depend a little on its batch.

    Raises:
        ValueError: If ``precision`` is unknown or the network cannot be prepared, see :func:`obstacle`.

    Example:
        >>> network = Transformer(vocab_size=32, num_layers=1, d_model=16, d_ff=32, num_heads=2).eval()
        >>> prepared, src, tokens = PreparedTransformer(network), torch.tensor([[5, 6, 3]]), torch.tensor([2])
        >>> logits, _ = prepared.step(tokens, prepared.start(src))
        >>> torch.allclose(logits, network.step(tokens, network.start(src))[0], atol=1e-5)
        True
    """

    def __init__(self, network: TranslationNetwork, precision: Precision = "float32") -> None:
        super().__init__()
        check_precision(precision)
        reason = obstacle(network)
        if reason is not None:
            raise ValueError(f"the network cannot be prepared: {reason}")
        assert isinstance(network, Transformer)
        self.network, self.vocab_size, self.max_length = network, network.vocab_size, network.max_length
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._versions = _versions(network)
        self._encoder_layers = [PreparedEncoderLayer(layer, precision) for layer in network.encoder.layers]
        self.decoder_layers = [PreparedDecoderLayer(layer, precision) for layer in network.decoder.layers]
        self._encoder_norm = prepared_norm(network.encoder.final_norm or nn.Identity(), self._dtype)
        self._decoder_norm = prepared_norm(network.decoder.final_norm or nn.Identity(), self._dtype)
        self._projection = Product([network.projection], precision)

    def is_current(self) -> bool:
        """Whether the network still has the weights that were copied, as far as torch can tell.

        Steps of fused optimizers other than those of ``LitTransformer``, writing through ``parameter.data``, and
        changes of inference tensors, modules and settings such as ``eps`` leave no trace: prepare the network anew
        after those.
        """
        return self._versions == _versions(self.network)

    def forward(self, src: Int[Tensor, "B S"], tgt_input: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Scores (logits) ``(B, T, V)`` from the plain network."""
        return self.network(src, tgt_input)  # type: ignore[no-any-return]

    @torch.no_grad()
    def start(self, src: Int[Tensor, "B S"]) -> PreparedState:
        """Reads the source ids ``(B, S)`` once; the state has one row for each sentence."""
        memory, mask = self.read(src)
        rows = SentenceRows(list(range(len(src))), len(src), src.device)
        return PreparedState([layer.start(memory) for layer in self.decoder_layers], mask, rows)

    def read(self, src: Int[Tensor, "B S"]) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B 1 1 S"] | None]:
        """What the encoder makes of source ids ``(B, S)``, and where real ones stand; None if everywhere."""
        mask = self.network._source_mask(src)
        x = self.network.src_positions(self.network.src_embedding(src), 0).to(self._dtype)
        for layer in self._encoder_layers:
            x = layer(x, mask)
        return self._encoder_norm(x), mask

    def embed(self, tokens: Int[Tensor, "R"], position: int) -> Float[Tensor, "R D"]:
        """The features ``(R, D)`` of the newest tokens ``(R,)``, which all stand at ``position``."""
        network = self.network
        features: Tensor = network.tgt_positions(network.tgt_embedding(tokens.unsqueeze(1)), position)
        return features.squeeze(1).to(self._dtype)

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, "R"], state: DecoderState) -> tuple[Float[Tensor, "R V"], PreparedState]:
        """Scores ``(R, V)`` of the token that follows ``tokens``, and the state that remembers them.

        Args:
            tokens: The newest token of each row, ``(R,)``; BOS in the first step.
            state: From ``start`` or the step before; changed in place.

        Raises:
            TypeError: If the state comes from another kind of network.
        """
        if not isinstance(state, PreparedState):
            raise TypeError(f"step needs the PreparedState that start returned, got {type(state).__name__}")
        layers, x = self.decoder_layers, self.embed(tokens, state.length)
        newest, keys, values = state.past.next(len(layers), len(tokens), layers[0].sizes, x)
        for layer, memory, new, layer_keys, layer_values in zip(
            layers, state.layers, newest, keys, values, strict=True
        ):
            x = layer.step(x, memory, new, layer_keys, layer_values, state)
        state.length += 1
        return self._projection(self._decoder_norm(x)), state


class PreparedState(TransformerState):
    """What the prepared decoder remembers between two steps; ``step`` and ``select`` change it in place.

    Args:
        layers: The source's keys and values in each layer, first to last.
        mask: ``(N, 1, 1, S)``, True at real source tokens; None if all are.
        rows: Which sentence each row translates.
    """

    def __init__(self, layers: list[LayerMemory], mask: Bool[Tensor, "N 1 1 S"] | None, rows: SentenceRows) -> None:
        super().__init__(layers, mask, rows)
        self.past = PastTokens()

    def _select_rows(self, rows: Int[Tensor, "R"]) -> None:
        self.past.select(rows)


class PastTokens:
    """The keys and values of all layers and of all positions decoded so far, in one tensor with time in front.

    The plain reference is one :class:`KeyValueCache` for each layer.
    """

    def __init__(self) -> None:
        self.length = 0
        self._buffer: Tensor | None = None  # (capacity, layers, R, H * (d_k + d_v))
        self._spare: Tensor | None = None

    def next(
        self, num_layers: int, num_rows: int, sizes: tuple[int, int, int], like: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Makes room for one more position; for each layer what is to be filled, all keys and all values.

        Args:
            num_layers: Number of layers.
            num_rows: Number of rows, ``R``.
            sizes: Number of heads, ``d_k`` and ``d_v``.
            like: Of the device and precision to use.

        Returns:
            For each layer the place ``(R, H * (d_k + d_v))`` of the new keys and values, side by side; the keys
            ``(R, H, L, d_k)``; the values ``(R, H, L, d_v)``. Both contain the new position once it is written.
        """
        num_heads, d_k, d_v = sizes
        buffer = self.room(num_layers, num_rows, num_heads * (d_k + d_v), like)
        newest = buffer[self.length].unbind(0)
        self.length += 1
        keys, values = torch.split(buffer[: self.length], [num_heads * d_k, num_heads * d_v], dim=-1)
        keys = split_heads(keys, num_heads).permute(1, 2, 3, 0, 4)
        values = split_heads(values, num_heads).permute(1, 2, 3, 0, 4)
        return newest, keys.unbind(0), values.unbind(0)

    def room(self, num_layers: int, num_rows: int, width: int, like: Tensor) -> Float[Tensor, "L N R W"]:
        """The whole tensor ``(capacity, layers, R, width)``, with room for a position after the last."""
        if self._buffer is None or self.length == len(self._buffer):
            capacity = max(_CAPACITY, 2 * self.length)
            bigger = like.new_empty(capacity, num_layers, num_rows, width)
            if self._buffer is not None:
                bigger[: self.length] = self._buffer
            self._buffer = bigger
        return self._buffer

    def select(self, rows: Int[Tensor, "R"]) -> None:
        """Makes the given rows the rows of the past, in that order."""
        if self._buffer is None:
            return
        shape = (len(self._buffer), self._buffer.size(1), len(rows), self._buffer.size(3))
        spare = self._spare
        if spare is None or spare.shape != shape:
            spare = self._buffer.new_empty(shape)
        torch.index_select(self._buffer[: self.length], 2, rows, out=spare[: self.length])
        self._buffer, self._spare = spare, self._buffer


def _versions(network: nn.Module) -> list[tuple[int, int]]:
    parameters = network.parameters()
    return [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in parameters]
