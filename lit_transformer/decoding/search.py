"""Greedy search and sampling, and what every search needs: how long an output may get, how likely each token is."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_transformer.errors import InputError, NoTranslationError
from lit_transformer.interfaces import Hypothesis, Search, TranslationNetwork
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID, UNK_ID

_CHUNK = 64  # numbers looked at together by ``likeliest``
_FEW = 80_000  # numbers below which it does not pay
_NEVER = slice(PAD_ID, BOS_ID + 1, BOS_ID - PAD_ID)  # both at once
_NEVER_NOR_UNKNOWN = slice(min(PAD_ID, UNK_ID, BOS_ID), max(PAD_ID, UNK_ID, BOS_ID) + 1)


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
    log_probs[:, _NEVER if allow_unknown else _NEVER_NOR_UNKNOWN] = -float("inf")
    if at_cap is not None:
        closing = log_probs[:, EOS_ID].clone()
        log_probs.masked_fill_(at_cap.unsqueeze(1), -float("inf"))
        log_probs[:, EOS_ID] = closing
    return log_probs


def rule_out_repeats(log_probs: Float[Tensor, "R V"], prefixes: Int[Tensor, "R L"], ngram_size: int) -> None:
    """Puts at minus infinity, in place, the tokens that would end an n-gram that their hypothesis has already.

    Args:
        log_probs: Log probabilities ``(R, V)`` of the next token, PAD at minus infinity.
        prefixes: The tokens ``(R, L)`` of each hypothesis so far, without BOS.
        ngram_size: Tokens of an n-gram, at least 1.

    Example:
        >>> log_probs = torch.tensor([[-float("inf"), -1.0, -1.0, -1.0, -1.0, -1.0]])
        >>> rule_out_repeats(log_probs, torch.tensor([[4, 5, 3, 4]]), ngram_size=2)
        >>> log_probs
        tensor([[-inf, -1., -1., -1., -1., -inf]])
    """
    length = prefixes.size(1)
    if length < ngram_size:
        return
    ngrams = prefixes.unfold(1, ngram_size, 1)
    beginning = prefixes[:, length - ngram_size + 1 :].unsqueeze(1)  # of the n-gram that comes next
    is_known = (ngrams[:, :, :-1] == beginning).all(dim=2)
    log_probs.scatter_(1, ngrams[:, :, -1].where(is_known, PAD_ID), -float("inf"))  # PAD never follows anyway


def takes_prefixes(search: Search) -> bool:
    """Whether a search can begin translations with tokens that are given: its ``__call__`` has ``prefixes`` then."""
    return "prefixes" in inspect.signature(search.__call__).parameters


def require_prefixes(search: Search) -> None:
    """Checks that a search can begin translations with tokens that are given.

    Raises:
        InputError: If its ``__call__`` has no argument ``prefixes``.
    """
    if not takes_prefixes(search):
        raise InputError(
            f"{type(search).__name__} begins no translation with a prefix: take BeamSearch, GreedySearch or "
            "SamplingSearch, or leave the prefixes out"
        )


def padded_prefixes(
    prefixes: Sequence[Sequence[int]] | None, network: TranslationNetwork, caps: Int[Tensor, "B"]
) -> Int[Tensor, "B P"] | None:
    """The tokens that translations must begin with ``(B, P)``, padded on the right; None if there are none.

    Raises:
        ValueError: If there is not one prefix for each of the caps ``(B,)``, one leaves no room for EOS, or one holds
            PAD, BOS, EOS or what is no token of the network.
    """
    if prefixes is None:
        return None
    if len(prefixes) != len(caps):
        raise ValueError(f"there are {len(prefixes)} prefixes for {len(caps)} sentences; give one for each")
    if not any(prefixes):
        return None
    for row, (prefix, cap) in enumerate(zip(prefixes, caps.tolist(), strict=True)):
        if len(prefix) >= cap:
            raise ValueError(f"the prefix of src row {row} has {len(prefix)} tokens, but may have {cap - 1}")
        for token in prefix:
            if token in (PAD_ID, BOS_ID, EOS_ID) or not 0 <= token < network.vocab_size:
                raise ValueError(f"the prefix of src row {row} holds {token}, which cannot stand in a translation")
    width = max(map(len, prefixes))
    return caps.new_tensor([[*prefix, *[PAD_ID] * (width - len(prefix))] for prefix in prefixes])


def keep_to(log_probs: Float[Tensor, "R V"], logits: Float[Tensor, "R V"], given: Int[Tensor, "R"]) -> None:
    """Leaves, in place, one token to the rows that one is given to, whatever else is ruled out.

    Args:
        log_probs: Log probabilities ``(R, V)`` of the next token, PAD at minus infinity.
        logits: The network's scores ``(R, V)``, of which the token keeps its log probability.
        given: The token ``(R,)`` of each row, PAD for rows that are free.
    """
    is_given, given = (given != PAD_ID).unsqueeze(1), given.unsqueeze(1)
    kept = logits.log_softmax(dim=-1, dtype=torch.float32).gather(1, given)
    log_probs.masked_fill_(is_given, -float("inf"))
    log_probs.scatter_(1, given, kept.masked_fill(~is_given, -float("inf")))


def likeliest(log_probs: Float[Tensor, "R V"], count: int) -> tuple[Float[Tensor, "R C"], Int[Tensor, "R C"]]:
    """The ``count`` greatest of each row ``(R, V)``, greatest first, and where they stand: what ``topk`` gives.

    On a CPU ``topk`` looks at single numbers and takes longer than the softmax. The greatest numbers lie in the chunks
    with the greatest maxima, and maxima of chunks are found many at a time; so only a few chunks are looked into.

    Args:
        log_probs: The numbers, one row for each hypothesis.
        count: How many of each row, at most ``V``.

    Example:
        >>> likeliest(torch.tensor([[0.1, 0.4, 0.2]]), 2)
        (tensor([[0.4000, 0.2000]]), tensor([[1, 2]]))
    """
    num_rows, vocab_size = log_probs.shape
    num_chunks = vocab_size // _CHUNK
    if log_probs.numel() < _FEW or num_chunks <= 2 * count or log_probs.device.type != "cpu":
        values, indices = log_probs.max(dim=1, keepdim=True) if count == 1 else log_probs.topk(count, dim=1)
        return values, indices
    end = num_chunks * _CHUNK
    chunks = log_probs[:, :end].unflatten(1, (num_chunks, _CHUNK))  # type: ignore[no-untyped-call]
    picked = chunks.amax(dim=2).topk(count, dim=1).indices
    inside = chunks.gather(1, picked.unsqueeze(2).expand(-1, -1, _CHUNK)).flatten(1)
    indices = (picked.unsqueeze(2) * _CHUNK + torch.arange(_CHUNK)).flatten(1)
    if end < vocab_size:  # what is left over is always looked into
        inside = torch.cat((inside, log_probs[:, end:]), dim=1)
        indices = torch.cat((indices, torch.arange(end, vocab_size).expand(num_rows, -1)), dim=1)
    values, places = inside.topk(count, dim=1)
    return values, indices.gather(1, places)


def require_bounds(max_extra_length: int, no_repeat_ngram_size: int) -> None:
    """Checks how much longer than its source a translation may get, and which n-grams it may not repeat.

    Raises:
        ValueError: If one of the two is negative.
    """
    for name, value in {
        "max_extra_length": max_extra_length,
        "no_repeat_ngram_size": no_repeat_ngram_size,
    }.items():
        if value < 0:
            raise ValueError(f"{name} must be 0 tokens or more, got {value}")


def require_finite(hypotheses: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
    """Hands the hypotheses through if every sentence has one and all are possible.

    Raises:
        NoTranslationError: If a sentence has no hypothesis or one whose log probability is not finite, which happens
            when the network's scores are NaN, as after a training that diverged, or rule out every translation.
    """
    for row, found in enumerate(hypotheses):
        if not found or not all(math.isfinite(hypothesis.log_prob) for hypothesis in found):
            raise NoTranslationError(row)
    return hypotheses


class GreedySearch(Search):
    """Translates by taking the likeliest next token until it is EOS.

    The fastest search: one row for each sentence, and a sentence that is closed leaves the batch. A sentence that
    reaches its cap (see :func:`output_caps`) is closed there, so that every hypothesis ends in EOS and its
    ``log_prob`` counts it. ``score`` equals ``log_prob``: with one hypothesis there is nothing to rank.

    Args:
        max_extra_length: Tokens that a translation may have more than its source.
        allow_unknown: Whether UNK may be generated. PAD and BOS never are.
        no_repeat_ngram_size: No n-gram of so many tokens occurs twice in a translation, BOS and EOS not counted; 0
            allows all. What is ruled out keeps its share of the probability, as in fairseq and Hugging Face.

    Raises:
        ValueError: If a number is negative; in a search, if a row of the source holds nothing but
            padding or the network gives no finite log probability.

    Example:
        >>> from lit_transformer.nn import Transformer
        >>> network = Transformer(vocab_size=32, num_layers=1, d_model=16, d_ff=32, num_heads=2).eval()
        >>> with torch.inference_mode():
        ...     hypotheses = GreedySearch()(network, torch.tensor([[5, 6, 3], [7, 3, 0]]))
        >>> [len(found) for found in hypotheses]
        [1, 1]
    """

    def __init__(self, max_extra_length: int = 50, allow_unknown: bool = True, no_repeat_ngram_size: int = 0) -> None:
        require_bounds(max_extra_length, no_repeat_ngram_size)
        self.max_extra_length = max_extra_length
        self.allow_unknown = allow_unknown
        self.no_repeat_ngram_size = no_repeat_ngram_size
        self.n_best = 1  # a greedy search has no second best

    def __call__(
        self, network: TranslationNetwork, src: Int[Tensor, "B S"], prefixes: Sequence[Sequence[int]] | None = None
    ) -> list[list[Hypothesis]]:
        """One hypothesis for each of the ``B`` source sentences ``(B, S)``.

        Args:
            network: Whose translations are searched.
            src: Source ids, padded on the right.
            prefixes: For each sentence the tokens that its translation must begin with, none for a free one. They count
                in length and log probability as any others; ``allow_unknown`` and ``no_repeat_ngram_size`` bind only
                what follows them.
        """
        return _one_token_at_a_time(network, src, prefixes, self, lambda log_probs: likeliest(log_probs, 1))


class SamplingSearch(Search):
    """Draws translations at random, each next token by its probability.

    The likeliest translations of a model are more alike than those of people, and a model that is trained on its own
    likeliest ones learns little: draw for back-translation (Edunov et al. 2018, "Understanding back-translation at
    scale"), and to see what a model finds possible. The same sentences, seed and batches give the same result, on
    devices of one kind; so do two batches of the same sentences in one text. ``n_best`` gives several draws.

    Args:
        temperature: Divides the scores: below 1 the likely tokens become likelier, above 1 all more alike.
        top_k: Draw among the so many likeliest tokens only; 0 for all.
        top_p: Draw among the likeliest tokens that have this probability together, at least one; 1 for all (Holtzman
            et al. 2020, "The curious case of neural text degeneration").
        n_best: Translations to draw for each sentence, the likeliest first; some may be the same.
        max_extra_length: Tokens that a translation may have more than its source.
        allow_unknown: Whether UNK may be drawn. PAD and BOS never are.
        seed: Decides what is drawn.
        no_repeat_ngram_size: No n-gram of so many tokens occurs twice in a translation, BOS and EOS not counted; 0
            allows all. The next token is drawn among the others.

    Raises:
        ValueError: If an argument is out of range; in a search, if a row of the source holds nothing but padding or the
            network gives no finite log probability.

    Example:
        >>> from lit_transformer.nn import Transformer
        >>> network = Transformer(vocab_size=32, num_layers=1, d_model=16, d_ff=32, num_heads=2).eval()
        >>> with torch.inference_mode():
        ...     hypotheses = SamplingSearch(top_k=5, n_best=3)(network, torch.tensor([[5, 6, 3], [7, 3, 0]]))
        >>> [len(found) for found in hypotheses]
        [3, 3]
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        n_best: int = 1,
        max_extra_length: int = 50,
        allow_unknown: bool = True,
        seed: int = 0,
        no_repeat_ngram_size: int = 0,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a number above 0, got {temperature}")
        if top_k < 0:
            raise ValueError(f"top_k must be 0 tokens or more, got {top_k}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
        if n_best < 1:
            raise ValueError(f"n_best must be 1 or more, got {n_best}")
        require_bounds(max_extra_length, no_repeat_ngram_size)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.n_best, self.seed = n_best, seed
        self.max_extra_length, self.allow_unknown = max_extra_length, allow_unknown
        self.no_repeat_ngram_size = no_repeat_ngram_size

    @property
    def beam_size(self) -> int:
        """Rows that each sentence takes, as in a beam search."""
        return self.n_best

    def __call__(
        self, network: TranslationNetwork, src: Int[Tensor, "B S"], prefixes: Sequence[Sequence[int]] | None = None
    ) -> list[list[Hypothesis]]:
        """``n_best`` hypotheses for each of the ``B`` source sentences ``(B, S)``, with the network's probabilities.

        Args:
            network: Whose translations are searched.
            src: Source ids, padded on the right.
            prefixes: For each sentence what its translations must begin with, see :class:`GreedySearch`.
        """
        content = f"{self.seed} {src.tolist()}".encode()
        seed = int.from_bytes(hashlib.sha256(content).digest()[:7], "big")
        generator = torch.Generator(src.device).manual_seed(seed)

        def draw(log_probs: Tensor) -> tuple[Tensor, Tensor]:
            values, probs, tokens = self.candidates(log_probs)
            races = torch.empty_like(probs).exponential_(generator=generator).clamp_(min=1e-20)
            chances = (probs / races).masked_fill_(values.isneginf(), -1)  # the greatest wins: no wait for a GPU
            winner = chances.argmax(dim=1, keepdim=True)  # also of broken scores
            return values.gather(1, winner), tokens.gather(1, winner)

        found = _one_token_at_a_time(network, src, prefixes, self, draw, self.n_best)
        return [sorted(drawn, key=lambda one: -one.log_prob) for drawn in found]

    def candidates(
        self, log_probs: Float[Tensor, "R V"]
    ) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R C"], Int[Tensor, "R C"]]:
        """The next tokens among which one is drawn.

        Args:
            log_probs: The network's log probabilities ``(R, V)``.

        Returns:
            The network's log probability of each candidate, what it is drawn with, and the tokens, all ``(R, C)``.
        """
        if 0 < self.top_k < log_probs.size(1):
            values, tokens = likeliest(log_probs, self.top_k)
        elif self.top_p < 1:
            values, tokens = log_probs.sort(dim=1, descending=True)
        else:
            values, tokens = log_probs, torch.arange(log_probs.size(1), device=log_probs.device).expand_as(log_probs)
        probs = (values / self.temperature).softmax(dim=1)
        if self.top_p < 1:
            before = probs.cumsum(dim=1) - probs  # probability of all likelier ones
            probs = probs.masked_fill(before >= self.top_p, 0)
            probs = probs / probs.sum(dim=1, keepdim=True)
        return values, probs, tokens


def _one_token_at_a_time(
    network: TranslationNetwork,
    src: Int[Tensor, "B S"],
    prefixes: Sequence[Sequence[int]] | None,
    search: GreedySearch | SamplingSearch,
    choose: Callable[[Float[Tensor, "R V"]], tuple[Float[Tensor, "R 1"], Int[Tensor, "R 1"]]],
    copies: int = 1,
) -> list[list[Hypothesis]]:
    """Continues each of ``copies`` hypotheses of each sentence by the token that is chosen, until it is EOS."""
    caps = output_caps(network, src, search.max_extra_length)
    if len(caps) == 0:
        return []
    given = padded_prefixes(prefixes, network, caps)
    given = None if given is None else given.repeat_interleave(copies, dim=0)
    caps = caps.repeat_interleave(copies)
    limits, places = caps.tolist(), list(range(len(caps)))  # hypotheses of the open rows
    found: list[list[int]] = [[] for _ in limits]
    log_probs = [0.0] * len(limits)
    state, tokens, length = network.start(src), src.new_full((len(limits),), BOS_ID), 0
    so_far = src.new_empty(len(limits), 0) if search.no_repeat_ngram_size > 0 else None
    if copies > 1:
        state = state.select(torch.arange(len(src), device=src.device).repeat_interleave(copies))
    while places:
        length += 1
        logits, state = network.step(tokens, state)
        last = [limits[place] == length for place in places]
        at_cap = torch.tensor(last, device=src.device) if any(last) else None
        next_ones = next_log_probs(logits, at_cap, search.allow_unknown)
        if so_far is not None:
            rule_out_repeats(next_ones, so_far, search.no_repeat_ngram_size)
        if given is not None and length <= given.size(1):
            keep_to(next_ones, logits, given[:, length - 1])
        values, tokens = (column.squeeze(1) for column in choose(next_ones))
        if so_far is not None:
            so_far = torch.cat((so_far, tokens.unsqueeze(1)), dim=1)
        still_open = []
        for row, (token, value) in enumerate(zip(tokens.tolist(), values.tolist(), strict=True)):
            log_probs[places[row]] += value
            if token != EOS_ID and not last[row]:
                found[places[row]].append(token)
                still_open.append(row)
        if 0 < len(still_open) < len(places):
            rows = torch.tensor(still_open, device=src.device)
            state, tokens = state.select(rows), tokens[rows]
            so_far = None if so_far is None else so_far[rows]
            given = None if given is None else given[rows]
        places = [places[row] for row in still_open]
    results = [Hypothesis(tokens, value, value) for tokens, value in zip(found, log_probs, strict=True)]
    return require_finite([results[start : start + copies] for start in range(0, len(results), copies)])
