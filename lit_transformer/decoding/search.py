"""Greedy search, and what every search needs: how long an output may get, and how likely each next token is."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_transformer.interfaces import Hypothesis, Search, TranslationNetwork
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID, UNK_ID


def output_caps(network: TranslationNetwork, src: Int[Tensor, "B S"], max_extra_length: int) -> Int[Tensor, "B"]:
    """Decides how many tokens, EOS included, the translation of each source sentence may have.

    A sentence of ``n`` real tokens, its EOS included and padding not, may grow to ``n + max_extra_length``
    tokens, so that the words are counted alike on both sides. A network with a ``max_length`` lowers the cap.

    Source: Vaswani et al. 2017, section 6.1 ("we set the maximum output length during inference to
    input length + 50, but terminate early when possible").

    Args:
        network: Whose ``max_length``, in tokens, is respected.
        src: Source ids ``(B, S)``, padded on the right.
        max_extra_length: Tokens that a translation may have more than its source.

    Returns:
        The caps ``(B,)``, in tokens.

    Raises:
        ValueError: If a row of ``src`` holds nothing but padding.
    """
    lengths = (src != PAD_ID).sum(dim=1)
    for row, length in enumerate(lengths.tolist()):
        if length == 0:
            raise ValueError(f"src row {row} holds nothing but padding; every sentence needs at least EOS")
    caps = lengths + max_extra_length
    return caps if network.max_length is None else caps.clamp(max=network.max_length)


def next_log_probs(
    logits: Float[Tensor, "R V"], at_cap: Bool[Tensor, "R"] | None = None, allow_unknown: bool = True
) -> Float[Tensor, "R V"]:
    """Turns scores into log probabilities of the next token, with what must not follow at minus infinity.

    PAD and BOS may never follow. A hypothesis that has reached its last allowed position may only be closed:
    there EOS keeps its own log probability, and everything else is ruled out. What is left is not normalised
    again, so that a log probability always is the network's.

    Args:
        logits: The network's scores ``(R, V)``, in any floating precision.
        at_cap: True ``(R,)`` for rows whose next token is the last one allowed; None if there is no such row.
        allow_unknown: Whether UNK may follow.

    Returns:
        Log probabilities ``(R, V)`` in float32, a new tensor.
    """
    log_probs = logits.log_softmax(dim=-1, dtype=torch.float32)
    for token in (PAD_ID, BOS_ID) if allow_unknown else (PAD_ID, BOS_ID, UNK_ID):
        log_probs[:, token] = -float("inf")
    if at_cap is not None:
        closing = log_probs[:, EOS_ID].clone()
        log_probs.masked_fill_(at_cap.unsqueeze(1), -float("inf"))
        log_probs[:, EOS_ID] = closing
    return log_probs


def require_extra_length(max_extra_length: int) -> None:
    """Checks how much longer than its source a translation may get.

    Raises:
        ValueError: If ``max_extra_length`` is negative.
    """
    if max_extra_length < 0:
        raise ValueError(f"max_extra_length must be 0 tokens or more, got {max_extra_length}")


def require_finite(hypotheses: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
    """Hands the hypotheses through if every sentence has one and all are possible.

    Raises:
        ValueError: If a sentence has no hypothesis or one whose log probability is not finite, which happens
            when the network's scores are NaN or rule out every translation.
    """
    for row, found in enumerate(hypotheses):
        if not found or not all(math.isfinite(hypothesis.log_prob) for hypothesis in found):
            raise ValueError(
                f"network gave src row {row} no translation of finite log_prob; look for NaN in its logits"
            )
    return hypotheses


class GreedySearch(Search):
    """Translates by taking the likeliest next token until it is EOS.

    The fastest search: one row for each sentence, and a sentence that is closed leaves the batch. A sentence that
    reaches its cap (see :func:`output_caps`) is closed there, so that every hypothesis ends in EOS and its
    ``log_prob`` counts it. ``score`` equals ``log_prob``: with one hypothesis there is nothing to rank.

    Args:
        max_extra_length: Tokens that a translation may have more than its source.
        allow_unknown: Whether UNK may be generated. PAD and BOS never are.

    Raises:
        ValueError: If ``max_extra_length`` is negative; in a search, if a row of the source holds nothing but
            padding or the network gives no finite log probability.

    Example:
        >>> from lit_transformer.nn import Transformer
        >>> network = Transformer(vocab_size=32, num_layers=1, d_model=16, d_ff=32, num_heads=2).eval()
        >>> with torch.inference_mode():
        ...     hypotheses = GreedySearch()(network, torch.tensor([[5, 6, 3], [7, 3, 0]]))
        >>> [len(found) for found in hypotheses]
        [1, 1]
    """

    def __init__(self, max_extra_length: int = 50, allow_unknown: bool = True) -> None:
        require_extra_length(max_extra_length)
        self.max_extra_length = max_extra_length
        self.allow_unknown = allow_unknown

    def __call__(self, network: TranslationNetwork, src: Int[Tensor, "B S"]) -> list[list[Hypothesis]]:
        """One hypothesis for each of the ``B`` source sentences ``(B, S)``."""
        caps = output_caps(network, src, self.max_extra_length)
        if len(caps) == 0:
            return []
        shortest, longest = caps.aminmax()
        first_cap = int(shortest)
        output = caps.new_full((len(caps), int(longest) + 1), EOS_ID)  # there is an EOS to cut at in any case
        log_probs = torch.zeros(len(caps), device=src.device)
        sentences = torch.arange(len(caps), device=src.device)  # of each open row
        state, tokens = network.start(src), torch.full_like(sentences, BOS_ID)
        for length in range(1, output.size(1)):
            logits, state = network.step(tokens, state)
            at_cap = caps[sentences] == length if length >= first_cap else None
            best = next_log_probs(logits, at_cap, self.allow_unknown).max(dim=1)
            tokens = best.indices
            output[sentences, length - 1] = tokens
            log_probs[sentences] += best.values
            is_open = (tokens != EOS_ID) & (caps[sentences] > length)
            if not is_open.all():
                rows = is_open.nonzero().squeeze(1)
                if len(rows) == 0:
                    break
                state, tokens, sentences = state.select(rows), tokens[rows], sentences[rows]
        return require_finite(_read(output, log_probs))


def _read(output: Int[Tensor, "B L"], log_probs: Float[Tensor, "B"]) -> list[list[Hypothesis]]:
    """Hypotheses from output ids ``(B, L)``, each with an EOS somewhere, and log probabilities ``(B,)``."""
    rows = zip(output.tolist(), log_probs.tolist(), strict=True)
    return [[Hypothesis(tokens[: tokens.index(EOS_ID)], value, value)] for tokens, value in rows]
