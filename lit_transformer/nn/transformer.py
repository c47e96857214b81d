"""The whole network: embeddings, encoder, decoder and output layer put together (section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_transformer.errors import InputError
from lit_transformer.interfaces import DecoderState, TranslationNetwork
from lit_transformer.nn.attention import MultiHeadAttention, padding_mask
from lit_transformer.nn.decoder import Decoder, DecoderLayer, TransformerState
from lit_transformer.nn.dropout import Dropout
from lit_transformer.nn.embedding import LearnedPositions, ScaledEmbedding, SinusoidalPositions
from lit_transformer.nn.encoder import Encoder, EncoderLayer
from lit_transformer.nn.layers import Activation, Norm, PositionwiseFeedForward
from lit_transformer.nn.own import is_own
from lit_transformer.vocabulary import EOS_ID


@dataclass(frozen=True)
class AttentionMaps:
    """Who looked at whom: one tensor of weights per layer, first layer first.

    Args:
        encoder: Source tokens over source tokens, each ``(B, H, S, S)``.
        decoder: Target tokens over the target so far, each ``(B, H, T, T)``.
        cross: Target tokens over source tokens, each ``(B, H, T, S)``.
    """

    encoder: list[Tensor]
    decoder: list[Tensor]
    cross: list[Tensor]


class Transformer(TranslationNetwork):
    """The translation network of "Attention Is All You Need"; the defaults are the paper's base model.

    To change a part, subclass and override the method that builds it: ``build_embedding``, ``build_positions``,
    ``build_attention``, ``build_feed_forward``, ``build_encoder_layer``, ``build_decoder_layer``, or
    ``init_weights``.

    Source: Vaswani et al. 2017, section 3 and Table 3.

    Args:
        vocab_size: Number of target tokens, and of source tokens unless ``src_vocab_size`` says otherwise.
        src_vocab_size: Number of source tokens; None for one vocabulary on both sides.
        num_layers: Number of layers in the encoder and in the decoder.
        num_decoder_layers: Number of decoder layers where it differs; None for ``num_layers``.
        d_model: Width of the token representations, in features.
        d_ff: Width of the inner layer of the feed-forward networks, in features.
        num_heads: Number of attention heads.
        d_k: Width of the queries and keys of one head, in features; None for ``d_model / num_heads``.
        d_v: Width of the values of one head, in features; None for ``d_model / num_heads``.
        dropout: Probability to drop a feature, on the sums of embeddings and positions and on the output of each
            sub-layer (section 5.4).
        attention_dropout: Probability to drop an attention weight; the paper has none.
        activation_dropout: Probability to drop an inner feature of the feed-forward networks; the paper has none.
        norm: ``"post"`` normalises after the residual sum, as in the paper, ``"pre"`` before each sub-layer.
        positions: ``"sinusoidal"`` waves or ``"learned"`` vectors (row E of Table 3).
        max_length: Longest sequence, in tokens. Needed for learned positions; None puts no bound on the waves.
        activation: The function inside the feed-forward networks; the paper has ``relu``.
        tie: Which matrices are one: ``"all"`` both embeddings and the output layer, as in the paper, ``"output"``
            the target embedding and the output layer, ``"none"``.
        scale_embedding: Whether embeddings are multiplied by the square root of ``d_model``.
        bias: Whether the projections of the attention add a bias.
        qkv_gain: Factor of the initial weights of queries, keys and values. ``2 ** -0.5`` is what fairseq and
            ``torch.nn.MultiheadAttention`` have.
        output_bias: Whether the output layer adds a bias, as in Marian; the paper's has none.

    Raises:
        ValueError: If a vocabulary has no room for the special tokens, a number of layers or ``d_ff`` is below
            1, ``tie="all"`` meets two vocabularies, or learned positions come without ``max_length``.

    Example:
        >>> network = Transformer(vocab_size=32, num_layers=2, d_model=16, d_ff=32, num_heads=2)
        >>> src, tgt_input = torch.tensor([[5, 6, 7, 3]]), torch.tensor([[2, 8, 9]])
        >>> network(src, tgt_input).shape
        torch.Size([1, 3, 32])
    """

    def __init__(
        self,
        vocab_size: int = 37000,
        src_vocab_size: int | None = None,
        num_layers: int = 6,
        num_decoder_layers: int | None = None,
        d_model: int = 512,
        d_ff: int = 2048,
        num_heads: int = 8,
        d_k: int | None = None,
        d_v: int | None = None,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        norm: Norm = "post",
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
        max_length: int | None = None,
        activation: Activation = "relu",
        tie: Literal["all", "output", "none"] = "all",
        scale_embedding: bool = True,
        bias: bool = True,
        qkv_gain: float = 1.0,
        output_bias: bool = False,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.src_vocab_size = vocab_size if src_vocab_size is None else src_vocab_size
        self.num_layers = num_layers
        self.num_decoder_layers = num_layers if num_decoder_layers is None else num_decoder_layers
        self.d_model, self.d_ff, self.num_heads, self.d_k, self.d_v = d_model, d_ff, num_heads, d_k, d_v
        self.dropout, self.attention_dropout, self.activation_dropout = dropout, attention_dropout, activation_dropout
        self.norm, self.positions, self.activation, self.tie = norm, positions, activation, tie
        self.max_length, self.scale_embedding = max_length, scale_embedding
        self.bias, self.qkv_gain, self.output_bias = bias, qkv_gain, output_bias
        self._check_arguments()
        self._build()
        self.init_weights()

    def _check_arguments(self) -> None:
        for name in ("vocab_size", "src_vocab_size"):
            if getattr(self, name) <= EOS_ID:
                raise ValueError(f"{name} must exceed {EOS_ID} to hold the special tokens, got {getattr(self, name)}")
        for name in ("num_layers", "num_decoder_layers", "d_ff"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.positions not in ("sinusoidal", "learned"):
            raise ValueError(f"positions must be 'sinusoidal' or 'learned', got {self.positions!r}")
        if self.tie not in ("all", "output", "none"):
            raise ValueError(f"tie must be 'all', 'output' or 'none', got {self.tie!r}")
        if self.tie == "all" and self.src_vocab_size != self.vocab_size:
            raise ValueError(
                f"tie='all' needs one vocabulary, got src_vocab_size={self.src_vocab_size} and "
                f"vocab_size={self.vocab_size}; use tie='output' or 'none'"
            )
        if self.positions == "learned" and self.max_length is None:
            raise ValueError("positions='learned' needs max_length, the longest sequence in tokens")

    def _build(self) -> None:
        self.tgt_embedding = self.build_embedding(self.vocab_size)
        self.src_embedding = self.tgt_embedding if self.tie == "all" else self.build_embedding(self.src_vocab_size)
        self.src_positions = self.build_positions()
        self.tgt_positions = self.build_positions()
        self.embedding_dropout = Dropout(self.dropout)
        self.encoder = Encoder((self.build_encoder_layer() for _ in range(self.num_layers)), self._final_norm())
        self.decoder = Decoder((self.build_decoder_layer() for _ in range(self.num_decoder_layers)), self._final_norm())
        self.projection = nn.Linear(self.d_model, self.vocab_size, bias=self.output_bias)
        if self.tie != "none":
            self.projection.weight = self.tgt_embedding.weight

    def _final_norm(self) -> nn.Module | None:
        return nn.LayerNorm(self.d_model) if self.norm == "pre" else None

    def build_embedding(self, vocab_size: int) -> nn.Embedding:
        """The table of token vectors for a vocabulary; called once where source and target share it."""
        return ScaledEmbedding(vocab_size, self.d_model, self.scale_embedding)

    def build_positions(self) -> nn.Module:
        """What adds positions, called as ``(tokens, start)``; built for the source and for the target."""
        if self.positions == "learned" and self.max_length is not None:
            return LearnedPositions(self.d_model, self.max_length)
        return SinusoidalPositions(self.d_model, self.max_length)

    def build_attention(self) -> MultiHeadAttention:
        """One attention sub-layer; the encoder has one per layer, the decoder two."""
        return MultiHeadAttention(self.d_model, self.num_heads, self.d_k, self.d_v, self.bias, self.attention_dropout)

    def build_feed_forward(self) -> nn.Module:
        """One feed-forward sub-layer."""
        return PositionwiseFeedForward(self.d_model, self.d_ff, self.activation, self.activation_dropout)

    def build_encoder_layer(self) -> nn.Module:
        """One layer of the encoder, called as ``(tokens, mask)``."""
        return EncoderLayer(self.d_model, self.build_attention(), self.build_feed_forward(), self.dropout, self.norm)

    def build_decoder_layer(self) -> nn.Module:
        """One layer of the decoder, called as ``(tokens, memory, mask)``; it also offers ``start`` and ``step``."""
        return DecoderLayer(
            self.d_model,
            self.build_attention(),
            self.build_attention(),
            self.build_feed_forward(),
            self.dropout,
            self.norm,
        )

    def init_weights(self) -> None:
        """Sets all weights: Xavier for matrices, zero for biases, a small normal for tables of vectors.

        The deviation of the tables, ``d_model ** -0.5``, gives scaled embeddings unit variance and a tied output
        layer logits of about that size. Embeddings come last, since a tied matrix is both.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.qkv_gain != 1:
            self._scale_attention(self.qkv_gain)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.d_model**-0.5)
                if module.padding_idx is not None:
                    nn.init.zeros_(module.weight[module.padding_idx])

    @torch.no_grad()
    def _scale_attention(self, gain: float) -> None:
        for module in self.modules():
            if isinstance(module, MultiHeadAttention):
                for projection in (module.query, module.key, module.value):
                    projection.weight *= gain

    def forward(self, src: Int[Tensor, "B S"], tgt_input: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Scores (logits) ``(B, T, V)`` of each next target token, all positions at once.

        Args:
            src: Source ids ``(B, S)``, padded on the right.
            tgt_input: Target ids ``(B, T)`` from BOS on, padded on the right.
        """
        return self.project(self.features(src, tgt_input))

    def features(self, src: Int[Tensor, "B S"], tgt_input: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """What ``project`` turns into scores: the decoder's result ``(B, T, D)`` at every target position."""
        mask = self._source_mask(src)
        memory = self._encode(src, mask)
        return self.decoder(self._embed_target(tgt_input), memory, mask)  # type: ignore[no-any-return]

    def project(self, features: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Scores (logits) ``(..., V)`` of every target token from features ``(..., D)``."""
        return self.projection(features)  # type: ignore[no-any-return]

    def sharded_parts(self) -> list[nn.Module]:
        """The layers of encoder and decoder."""
        return [*self.encoder.layers, *self.decoder.layers]

    def checkpoint_activations(self) -> None:
        """From now on training keeps the output of each layer only, and computes what is inside again for gradients.

        Raises:
            InputError: If encoder or decoder is not the package's own, so that nothing would come of it.
        """
        for name, kind in (("encoder", Encoder), ("decoder", Decoder)):
            if not is_own(stack := getattr(self, name), kind):
                raise InputError(
                    f"the {name} of {type(self).__name__}, {type(stack).__name__}, does not run its layers as the "
                    f"package's {kind.__name__}.forward does, so activation_checkpointing would do nothing there: "
                    "override checkpoint_activations, or leave activation_checkpointing out"
                )
        self.encoder.activation_checkpointing = self.decoder.activation_checkpointing = True

    def encode(self, src: Int[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
        """What the encoder makes of source ids ``(B, S)``: the memory ``(B, S, D)``."""
        return self._encode(src, self._source_mask(src))

    @torch.no_grad()
    def start(self, src: Int[Tensor, "B S"]) -> TransformerState:
        """Reads the source ids ``(B, S)`` once; the state has one row for each sentence. No gradients."""
        mask = self._source_mask(src)
        return self.decoder.start(self._encode(src, mask), mask)

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, "R"], state: DecoderState) -> tuple[Float[Tensor, "R V"], TransformerState]:
        """Scores ``(R, V)`` of the token that follows ``tokens``, and the state that remembers them. No gradients.

        Args:
            tokens: The newest token of each row, ``(R,)``; BOS in the first step.
            state: From ``start`` or the step before; changed in place.

        Raises:
            TypeError: If the state comes from another kind of network.
        """
        if not isinstance(state, TransformerState):
            raise TypeError(f"step needs the TransformerState that start returned, got {type(state).__name__}")
        embedded = self._embed_target(tokens.unsqueeze(1), state.length)
        features = self.decoder.step(embedded, state)
        return self.project(features.squeeze(1)), state

    def attention_maps(self, src: Int[Tensor, "B S"], tgt_input: Int[Tensor, "B T"]) -> AttentionMaps:
        """The attention weights of every layer and head for these sentences, as ``forward`` uses them.

        Call ``eval()`` first, or dropout disturbs what the layers see. Rows of padding are meaningless.

        Args:
            src: Source ids ``(B, S)``, padded on the right.
            tgt_input: Target ids ``(B, T)`` from BOS on, padded on the right.
        """
        maps = AttentionMaps([], [], [])
        with (
            _not_compiled(self),
            _recording(self.encoder.layers, "self_attention", maps.encoder),
            _recording(self.decoder.layers, "self_attention", maps.decoder),
            _recording(self.decoder.layers, "cross_attention", maps.cross),
        ):
            self.features(src, tgt_input)
        return maps

    def cross_attention(self, src: Int[Tensor, "B S"], tgt_input: Int[Tensor, "B T"], layer: int) -> Tensor:
        """The encoder-decoder attention of one layer alone, ``(B, H, T, S)``; for alignments of many sentences.

        Args:
            src: Source ids ``(B, S)``, padded on the right.
            tgt_input: Target ids ``(B, T)`` from BOS on, padded on the right.
            layer: Which decoder layer, from 0, or from the end if negative.
        """
        weights: list[Tensor] = []
        with _not_compiled(self), _recording([self.decoder.layers[layer]], "cross_attention", weights):
            self.features(src, tgt_input)
        return weights[0]

    def _encode(self, src: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.embedding_dropout(self.src_positions(self.src_embedding(src), 0))
        return self.encoder(tokens, mask)  # type: ignore[no-any-return]

    def _embed_target(self, ids: Tensor, start: int = 0) -> Tensor:
        tokens = self.tgt_positions(self.tgt_embedding(ids), start)
        return self.embedding_dropout(tokens)  # type: ignore[no-any-return]

    def _source_mask(self, src: Int[Tensor, "B S"]) -> Bool[Tensor, "B 1 1 S"] | None:
        mask = padding_mask(src)
        # no mask is faster still, but asking a GPU whether there is padding would make it wait
        if src.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all()):
            return None
        return mask


def _not_compiled(network: nn.Module) -> AbstractContextManager[Any]:
    """Lets compiled layers run as they are: what was compiled before takes no notice of new hooks."""
    if all(module._compiled_call_impl is None for module in network.modules()):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


@contextmanager
def _recording(layers: Iterable[nn.Module], name: str, weights: list[Tensor]) -> Iterator[None]:
    def record(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Tensor) -> None:
        query, key, *_rest = args
        weights.append(attention.attention_weights(query, key, **kwargs))

    with ExitStack() as hooks:
        for layer in layers:
            attention: Any = getattr(layer, name, None)
            if not hasattr(attention, "attention_weights"):
                raise InputError(
                    f"{type(layer).__name__} has no {name} with attention_weights, so there is nothing to look at"
                )
            hooks.callback(attention.register_forward_hook(record, with_kwargs=True).remove)
        yield
