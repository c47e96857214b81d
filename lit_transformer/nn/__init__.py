"""The network of the paper, section by section, in plain torch."""

from lit_transformer.nn.attention import KeyValueCache, MultiHeadAttention, causal_mask, padding_mask
from lit_transformer.nn.compiled import CompiledTransformer
from lit_transformer.nn.decoder import Decoder, DecoderLayer, LayerMemory, SentenceRows, TransformerState
from lit_transformer.nn.dropout import Dropout
from lit_transformer.nn.embedding import LearnedPositions, ScaledEmbedding, SinusoidalPositions
from lit_transformer.nn.encoder import Encoder, EncoderLayer
from lit_transformer.nn.ensemble import Ensemble, EnsembleState
from lit_transformer.nn.inference import PreparedTransformer
from lit_transformer.nn.layers import PositionwiseFeedForward, ResidualNorm
from lit_transformer.nn.transformer import AttentionMaps, Transformer

__all__ = [
    "AttentionMaps",
    "CompiledTransformer",
    "Decoder",
    "DecoderLayer",
    "Dropout",
    "Encoder",
    "EncoderLayer",
    "Ensemble",
    "EnsembleState",
    "KeyValueCache",
    "LayerMemory",
    "LearnedPositions",
    "MultiHeadAttention",
    "PositionwiseFeedForward",
    "PreparedTransformer",
    "ResidualNorm",
    "ScaledEmbedding",
    "SentenceRows",
    "SinusoidalPositions",
    "Transformer",
    "TransformerState",
    "causal_mask",
    "padding_mask",
]
