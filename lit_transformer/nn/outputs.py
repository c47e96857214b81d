"""The output layer taken apart, for losses that never keep all the logits: features and the matrix that scores them."""

from __future__ import annotations

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_transformer.interfaces import TranslationBatch, TranslationNetwork
from lit_transformer.nn.packed import can_pack, packed_features
from lit_transformer.nn.transformer import Transformer
from lit_transformer.vocabulary import PAD_ID

_COLUMNS = 8  # that a bias adds to the matrix: one of numbers and the rest of zeros, since GPUs multiply by eights


def ends_in_a_product(network: TranslationNetwork, is_sharded: bool = False) -> TypeGuard[Transformer]:
    """Whether logits are features times a matrix, as in our network unless someone changed just that."""
    if not isinstance(network, Transformer):
        return False
    own, output = (Transformer.forward, Transformer.project), network.projection
    is_own = (type(network).forward, type(network).project) == own and network._compiled_call_impl is None
    gathering = int(is_sharded)  # of the hooks of the network; `features` gathers weights as well
    hooks = [(network, gathering), (output, 0)]
    is_free = all(max(len(part._forward_hooks), len(part._forward_pre_hooks)) <= known for part, known in hooks)
    return is_own and type(output) is nn.Linear and is_free


def output_matrix(network: Transformer) -> Tensor:
    """What turns :func:`output_features` into logits: the weight ``(V, D)``, with a bias wider by some columns."""
    weight, bias = network.projection.weight, network.projection.bias
    return weight if bias is None else torch.cat((weight, F.pad(bias.unsqueeze(1), (0, _COLUMNS - 1))), 1)


def output_features(network: Transformer, batch: TranslationBatch, real: Tensor, on_real_tokens: bool = True) -> Tensor:
    """The decoder's result at real target positions ``(N, D)``, with a 1 behind it where a bias is to be added.

    Args:
        network: One that :func:`ends_in_a_product`.
        batch: Whose sentences it reads.
        real: Which target positions are wanted, ``(B, T)``.
        on_real_tokens: Whether to compute without work on padding, where that can be.
    """
    if on_real_tokens and can_pack(network) and real.any() and (batch.src != PAD_ID).any():
        found = packed_features(network, batch.src, batch.tgt_input, real)
    else:
        found = network.features(batch.src, batch.tgt_input)[real]
    if network.projection.bias is None:
        return found
    return torch.cat((found, F.pad(found.new_ones(len(found), 1), (0, _COLUMNS - 1))), 1)
