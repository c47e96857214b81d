"""The network as two programs of tensors alone, an encoder and a decoder step, as ONNX and torch.export need it.

Names, shapes and types are described by :func:`program_config`, which is written beside the programs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_transformer.exchange.marian import MAX_POSITIONS
from lit_transformer.exchange.shared import require_cpu
from lit_transformer.interfaces import InputError, TranslationNetwork
from lit_transformer.nn import Transformer
from lit_transformer.nn.attention import KeyValueCache, padding_mask
from lit_transformer.nn.decoder import LayerMemory, SentenceRows
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID, UNK_ID

_NEAR = 1e-4  # how far rounding alone takes logits apart


class EncoderProgram(nn.Module):
    """Source ids to what every step reads: the mask, then keys and values of the source in each decoder layer.

    Args:
        network: The trained network.
    """

    positions: Tensor

    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.embedding, self.encoder, self.decoder = network.src_embedding, network.encoder, network.decoder
        self.register_buffer("positions", _table(network, network.src_positions))

    def forward(self, src: Tensor) -> tuple[Tensor, ...]:
        """Reads ids ``(B, S)``; returns the mask ``(B, S)``, then keys and values ``(B, H, S, d_k or d_v)``."""
        mask = padding_mask(src)
        places = torch.arange(src.size(1), device=src.device)
        memory = self.encoder(self.embedding(src) + self.positions.index_select(0, places), mask)
        layers: Any = self.decoder.layers
        found = [layer.cross_attention.keys_and_values(memory, memory) for layer in layers]
        return (mask[:, 0, 0], *(tensor for pair in found for tensor in pair))


class StepProgram(nn.Module):
    """One step of the decoder, with everything that it remembers passed in and out.

    Args:
        network: The trained network.
    """

    positions: Tensor

    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.embedding, self.decoder, self.projection = network.tgt_embedding, network.decoder, network.projection
        self.register_buffer("positions", _table(network, network.tgt_positions))

    def forward(self, tokens: Tensor, src_mask: Tensor, memory: list[Tensor], past: list[Tensor]) -> tuple[Tensor, ...]:
        """Scores of the next token, and the longer past.

        Args:
            tokens: The newest token of each row, ``(R,)``; BOS in the first step.
            src_mask: ``(R, S)``, True at real source tokens.
            memory: Keys and values of the source in each layer, ``(R, H, S, d_k or d_v)``.
            past: Keys and values of the target so far in each layer, ``(R, H, P, d_k or d_v)``; at first ``P`` is 0.

        Returns:
            Logits ``(R, V)``, then keys and values ``(R, H, P + 1, d_k or d_v)`` of each layer.
        """
        rows, place = _OneRowEach(), torch.full((1,), past[0].size(2), device=tokens.device)
        x = self.embedding(tokens.unsqueeze(1)) + self.positions.index_select(0, place)
        caches = [_GivenPast(*past[start : start + 2]) for start in range(0, len(past), 2)]
        layers: Any = self.decoder.layers
        for number, (layer, cache) in enumerate(zip(layers, caches, strict=True)):
            keys, values = memory[2 * number : 2 * number + 2]
            x = layer.step(x, LayerMemory(keys, values, cache), rows, src_mask[:, None, None])
        if self.decoder.final_norm is not None:
            x = self.decoder.final_norm(x)
        return (self.projection(x).squeeze(1), *(tensor for cache in caches for tensor in (cache.keys, cache.values)))


class _GivenPast(KeyValueCache):
    """Keys and values that come from outside and are never written into."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All so far, as new tensors."""
        self.keys, self.values = torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2)
        return self.keys, self.values


class _OneRowEach(SentenceRows):
    """Each row has its own copy of the source."""

    def __init__(self) -> None:
        super().__init__([0], 1)

    def fold(self, tokens: Tensor) -> Tensor:
        """The rows as they are."""
        return tokens

    def unfold(self, grid: Tensor) -> Tensor:
        """The rows as they are."""
        return grid


def programs(network: TranslationNetwork, kind: str) -> tuple[EncoderProgram, StepProgram]:
    """The two programs of a network, compared with it.

    Args:
        network: A ``Transformer``, also one with parts of one's own.
        kind: What they are for, in a word, for the message.

    Raises:
        InputError: If the network is of another class, is not on the CPU, or computes something else than its parts do.
    """
    if not isinstance(network, Transformer):
        raise InputError(f"{type(network).__name__} cannot be exported to {kind}: only a Transformer has known parts")
    require_cpu(network)
    encoder, step = EncoderProgram(network).eval(), StepProgram(network).eval()
    src = torch.tensor([[4 % network.src_vocab_size, EOS_ID, EOS_ID], [EOS_ID, PAD_ID, PAD_ID]])
    with torch.no_grad():
        state, past = network.start(src), first_past(network, 2)
        mask, *memory = encoder(src)
        for token in (BOS_ID, EOS_ID):
            tokens = torch.full((2,), token)
            expected, state = network.step(tokens, state)
            logits, *past = step(tokens, mask, memory, past)
            if not torch.allclose(logits, expected, atol=_NEAR):
                raise InputError(
                    f"{type(network).__name__} cannot be exported to {kind}: it computes something else than its "
                    "embeddings, positions, layers and projection, one after the other"
                )
    return encoder, step


def first_past(network: Transformer, num_rows: int, length: int = 0) -> list[Tensor]:
    """Keys and values of ``length`` positions, zeros all of them, for each layer of the decoder."""
    attention = network.build_attention()
    shapes = [(num_rows, attention.num_heads, length, width) for width in (attention.d_k, attention.d_v)]
    return [torch.zeros(shape) for _ in range(network.num_decoder_layers) for shape in shapes]


def program_config(network: Transformer) -> dict[str, Any]:
    """Names, ids and bounds that a program needs to use the two.

    ``memory`` are the encoder's results after the mask, which are the step's arguments of the same name, a row of them
    for each hypothesis. The step's ``past`` and ``present`` are in the same order.
    """
    parts = [f"{number}.{kind}" for number in range(network.num_decoder_layers) for kind in ("key", "value")]
    attention = network.build_attention()
    return {
        "num_decoder_layers": network.num_decoder_layers,
        "num_heads": attention.num_heads,
        "d_k": attention.d_k,
        "d_v": attention.d_v,
        "vocab_size": network.vocab_size,
        "src_vocab_size": network.src_vocab_size,
        "max_length": _longest(network),
        "pad_token_id": PAD_ID,
        "unk_token_id": UNK_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "encoder": {"inputs": ["src"], "outputs": ["src_mask", *(f"memory.{part}" for part in parts)]},
        "decoder_step": {
            "inputs": [
                "tokens",
                "src_mask",
                *(f"memory.{part}" for part in parts),
                *(f"past.{part}" for part in parts),
            ],
            "outputs": ["logits", *(f"present.{part}" for part in parts)],
        },
        "axes": {
            "src": ["batch", "src_length"],
            "src_mask": ["rows", "src_length"],
            "tokens": ["rows"],
            "memory.*": ["rows", "num_heads", "src_length", "d_k or d_v"],
            "past.*": ["rows", "num_heads", "past_length", "d_k or d_v"],
            "present.*": ["rows", "num_heads", "past_length + 1", "d_k or d_v"],
            "logits": ["rows", "vocab_size"],
        },
    }


def _longest(network: Transformer) -> int:
    return network.max_length or MAX_POSITIONS


def _table(network: Transformer, positions: nn.Module) -> Tensor:
    """What the positions add, ``(max_length, D)``."""
    table: Tensor = positions(torch.zeros(1, _longest(network), network.d_model))[0]
    return table.detach()
