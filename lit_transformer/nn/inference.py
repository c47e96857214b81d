"""The Transformer prepared for decoding on a CPU: the same steps with fewer and faster operations.

Training and every other use go through the plain modules, which are the reference that this file is tested against.
What is done differently here: weights are packed once (see :class:`Product`), the projections of queries, keys and
values that read the same input are one product, and the keys and values of all layers lie in one tensor, time first,
so that reordering the hypotheses is one copy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_transformer.interfaces import DecoderState, TranslationNetwork
from lit_transformer.nn.attention import MultiHeadAttention
from lit_transformer.nn.decoder import DecoderLayer, LayerMemory, SentenceRows, TransformerState
from lit_transformer.nn.encoder import EncoderLayer
from lit_transformer.nn.layers import ResidualNorm
from lit_transformer.nn.obstacles import is_own_feed_forward, obstacle
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
        self._encoder_layers = [_EncoderLayer(layer, precision) for layer in network.encoder.layers]
        self.decoder_layers = [_DecoderLayer(layer, precision) for layer in network.decoder.layers]
        self._encoder_norm = _norm(network.encoder.final_norm or nn.Identity(), self._dtype)
        self._decoder_norm = _norm(network.decoder.final_norm or nn.Identity(), self._dtype)
        self._projection = Product([network.projection], precision)

    def is_current(self) -> bool:
        """Whether the network still has the weights that were copied, as far as torch can tell.

        Steps of fused optimizers, writing through ``parameter.data``, and changes of inference tensors, modules and
        settings such as ``eps`` leave no trace: prepare the network anew after those.
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
        x = self.network.src_positions(self.network.src_embedding(src)).to(self._dtype)
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


def prepare_if_possible(network: TranslationNetwork) -> PreparedTransformer | None:
    """The network prepared in the precision of its weights or of autocast; None where that cannot be."""
    dtypes = {parameter.dtype for parameter in network.parameters()}
    if torch.is_autocast_enabled("cpu"):
        dtypes = {torch.get_autocast_dtype("cpu")}
    precisions: dict[torch.dtype, Precision] = {torch.float32: "float32", torch.bfloat16: "bf16"}
    precision = precisions.get(dtypes.pop()) if len(dtypes) == 1 else None
    return PreparedTransformer(network, precision) if precision and obstacle(network) is None else None


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
        keys = _split_heads(keys, num_heads).permute(1, 2, 3, 0, 4)
        values = _split_heads(values, num_heads).permute(1, 2, 3, 0, 4)
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


class _Residual:
    """A :class:`ResidualNorm` without dropout, around sub-layers that are products."""

    def __init__(self, module: ResidualNorm, dtype: torch.dtype) -> None:
        self.norm = _norm(module.norm, dtype)
        self.is_pre_norm = module.is_pre_norm

    def __call__(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.is_pre_norm:
            return x + sublayer(self.norm(x))
        return self.norm(x + sublayer(x))


class _EncoderLayer:
    """An :class:`EncoderLayer` with packed weights."""

    def __init__(self, layer: nn.Module, precision: Precision) -> None:
        assert isinstance(layer, EncoderLayer)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.attention, self.attend = layer.self_attention, _attend(layer.self_attention, dtype)
        self.query_key_value = _joint(layer.self_attention, precision)
        self.output = Product([layer.self_attention.output], precision)
        self.feed_forward = _feed_forward(layer.feed_forward, precision)
        self.attention_residual = _Residual(layer.self_attention_residual, dtype)
        self.feed_forward_residual = _Residual(layer.feed_forward_residual, dtype)

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention_residual(x, lambda x: self._look_around(x, mask))
        return self.feed_forward_residual(x, self.feed_forward)

    def _look_around(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, keys, values = _heads(self.query_key_value(x), self.attention)
        return self.output(self.attend(query, keys, values, mask).transpose(1, 2).flatten(2))


class _DecoderLayer:
    """A :class:`DecoderLayer` with packed weights, one position at a time."""

    def __init__(self, layer: nn.Module, precision: Precision) -> None:
        assert isinstance(layer, DecoderLayer)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.self_attention, self.cross_attention = layer.self_attention, layer.cross_attention
        self.attend_back, self.attend_source = (
            _attend(part, dtype) for part in (layer.self_attention, layer.cross_attention)
        )
        self.sizes = (self.self_attention.num_heads, self.self_attention.d_k, self.self_attention.d_v)
        self.query_key_value = _joint(self.self_attention, precision)
        self.self_output = Product([self.self_attention.output], precision)
        self.cross_query = Product([self.cross_attention.query], precision)
        self.cross_key_value = Product([self.cross_attention.key, self.cross_attention.value], precision)
        self.cross_output = Product([self.cross_attention.output], precision)
        self.feed_forward = _feed_forward(layer.feed_forward, precision)
        self.self_residual = _Residual(layer.self_attention_residual, dtype)
        self.cross_residual = _Residual(layer.cross_attention_residual, dtype)
        self.feed_forward_residual = _Residual(layer.feed_forward_residual, dtype)

    def start(self, memory: Float[Tensor, "N S D"]) -> LayerMemory:
        """Projects the source's memory ``(N, S, D)`` once, for all steps to come."""
        attention = self.cross_attention
        num_heads = attention.num_heads
        both = torch.split(self.cross_key_value(memory), [num_heads * attention.d_k, num_heads * attention.d_v], dim=-1)
        keys, values = (_split_heads(part, num_heads).transpose(1, 2) for part in both)
        return LayerMemory(keys, values)

    def step(
        self, x: Tensor, memory: LayerMemory, newest: Tensor, keys: Tensor, values: Tensor, state: PreparedState
    ) -> Tensor:
        """Refines the newest position ``(R, D)``; see :meth:`PastTokens.next` for what is written and read."""

        def look_back(x: Tensor) -> Tensor:
            num_heads, d_k, _ = self.sizes
            query, key_value = torch.split_with_sizes(self.query_key_value(x), (num_heads * d_k, newest.size(1)), 1)
            newest.copy_(key_value)
            heads = self.attend_back(query.view(-1, num_heads, 1, d_k), keys, values)
            return self.self_output(heads.flatten(1))

        def look_at_source(x: Tensor) -> Tensor:
            rows, num_heads, query = state.rows, self.cross_attention.num_heads, self.cross_query(x)
            if not rows.is_full_grid:
                query = rows.fold(query.unsqueeze(1))
            query = query.view(rows.num_sentences, rows.width, num_heads, -1).transpose(1, 2)
            heads = self.attend_source(query, memory.keys, memory.values, state.mask).transpose(1, 2)
            if rows.is_full_grid:
                return self.cross_output(heads.reshape(len(x), -1))
            return self.cross_output(rows.unfold(heads.flatten(2)).squeeze(1))

        x = self.self_residual(x, look_back)
        x = self.cross_residual(x, look_at_source)
        return self.feed_forward_residual(x, self.feed_forward)


def _versions(network: nn.Module) -> list[tuple[int, int]]:
    parameters = network.parameters()
    return [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in parameters]


def _joint(attention: MultiHeadAttention, precision: Precision) -> Product:
    return Product([attention.query, attention.key, attention.value], precision)


def _heads(joint: Tensor, attention: MultiHeadAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``(B, H, T, d_k or d_v)`` from their joint projection ``(B, T, ...)``."""
    widths = [attention.num_heads * width for width in (attention.d_k, attention.d_k, attention.d_v)]
    parts = torch.split(joint, widths, dim=-1)
    query, keys, values = (_split_heads(part, attention.num_heads).transpose(1, 2) for part in parts)
    return query, keys, values


def _split_heads(features: Tensor, num_heads: int) -> Tensor:
    return features.view(*features.shape[:-1], num_heads, -1)


def _feed_forward(module: nn.Module, precision: Precision) -> Callable[[Tensor], Tensor]:
    """The feed-forward sub-layer as two products, or as it is where it is somebody's own."""
    if not is_own_feed_forward(module) or module.inner.bias is None:
        return _as_it_is(module)
    is_relu = type(module.activation) is nn.ReLU
    inner = Product([module.inner], precision, relu=is_relu)
    outer = Product([module.outer], precision)
    return (lambda x: outer(inner(x))) if is_relu else (lambda x: outer(module.activation(inner(x))))


def _norm(module: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    if type(module) is not nn.LayerNorm or "forward" in vars(module):
        return _as_it_is(module)
    weight, bias = (None if p is None else p.detach().to(dtype) for p in (module.weight, module.bias))
    shape, eps = list(module.normalized_shape), module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _as_it_is(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Somebody's own module, given what the plain network gives it: ``(B, T, D)`` in the precision of its weights."""
    own = _dtype_of(module)
    return lambda x: module(x.to(own).unsqueeze(1) if x.dim() == 2 else x.to(own)).reshape(x.shape).to(x.dtype)


def _attend(attention: MultiHeadAttention, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The attention rule; one that somebody wrote gets the precision of its weights."""
    own = _dtype_of(attention)
    is_plain = "attend" not in vars(attention) and type(attention).attend is MultiHeadAttention.attend
    if dtype is own or is_plain:
        return attention.attend

    def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        return attention.attend(query.to(own), keys.to(own), values.to(own), mask).to(dtype)

    return attend


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in module.parameters()), torch.float32)
