"""Networks whose scores depend on every token before, and searches too plain to be wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lit_transformer.interfaces import DecoderState, Hypothesis, TranslationNetwork
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID, UNK_ID

Tokens = tuple[int, ...]
Scored = tuple[float, float, Tokens]  # score, log probability, tokens without EOS


class PrefixState(DecoderState):
    """Sources and prefixes as tuples; refuses to be used again once it was selected from or stepped."""

    def __init__(self, sources: list[Tokens], prefixes: list[Tokens], network: PrefixNetwork) -> None:
        self.sources, self.prefixes, self.network, self.is_spent = sources, prefixes, network, False

    def spend(self) -> None:
        assert not self.is_spent, "an old state was used again"
        self.is_spent = True

    def select(self, rows: Tensor) -> PrefixState:
        self.spend()
        self.network.selections.append([(self.sources[row], self.prefixes[row]) for row in rows.tolist()])
        picked = rows.tolist()
        return PrefixState([self.sources[r] for r in picked], [self.prefixes[r] for r in picked], self.network)


class PrefixNetwork(TranslationNetwork):
    """Draws the scores of the next token from a generator seeded by the source and the whole prefix."""

    def __init__(
        self, vocab_size: int, seed: int = 0, scale: float = 2.0, eos_bias: float = 0.0, max_length: int | None = None
    ) -> None:
        super().__init__()
        self.vocab_size, self.seed, self.scale, self.eos_bias = vocab_size, seed, scale, eos_bias
        self.max_length = max_length
        self.selections: list[list[tuple[Tokens, Tokens]]] = []
        self.rows_per_step: list[int] = []
        self.known: dict[tuple[Tokens, Tokens], Tensor] = {}

    def logits(self, source: Tokens, prefix: Tokens) -> Tensor:
        key = (source, prefix)
        if key not in self.known:
            generator = torch.Generator().manual_seed(abs(hash((self.seed, *key))) % 2**31)
            scores = self.scale * torch.randn(self.vocab_size, generator=generator)
            scores[EOS_ID] += self.eos_bias
            self.known[key] = scores
        return self.known[key]

    def forward(self, src: Tensor, tgt_input: Tensor) -> Tensor:
        raise NotImplementedError("a search steps")

    def start(self, src: Tensor) -> PrefixState:
        return PrefixState(real_tokens(src), [()] * len(src), self)

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, PrefixState]:
        assert isinstance(state, PrefixState)
        state.spend()
        assert tokens.shape == (len(state.prefixes),)
        assert PAD_ID not in tokens.tolist()
        self.rows_per_step.append(len(tokens))
        prefixes = [(*prefix, token) for prefix, token in zip(state.prefixes, tokens.tolist(), strict=True)]
        assert all(prefix[0] == BOS_ID for prefix in prefixes)
        assert self.max_length is None or all(len(prefix) <= self.max_length for prefix in prefixes)
        scores = [self.logits(source, prefix) for source, prefix in zip(state.sources, prefixes, strict=True)]
        return torch.stack(scores), PrefixState(state.sources, prefixes, self)

    def log_probs(self, source: Tokens, prefix: Tokens) -> list[float]:
        """For the references: double precision, BOS put in front of ``prefix``."""
        return self.logits(source, (BOS_ID, *prefix)).double().log_softmax(0).tolist()


def real_tokens(src: Tensor) -> list[Tokens]:
    return [tuple(token for token in row if token != PAD_ID) for row in src.tolist()]


def sources(*lengths: int, seed: int = 0, vocab_size: int = 9) -> Tensor:
    """Random source ids, row i with ``lengths[i]`` real tokens, EOS included."""
    generator = torch.Generator().manual_seed(seed)
    src = torch.full((len(lengths), max(lengths)), PAD_ID)
    for row, length in enumerate(lengths):
        src[row, : length - 1] = torch.randint(4, vocab_size, (length - 1,), generator=generator)
        src[row, length - 1] = EOS_ID
    return src


def gnmt(alpha: float) -> Callable[[int], float]:
    return lambda length: math.pow(5 + length, alpha) / math.pow(6, alpha)


def enumerate_all(
    network: PrefixNetwork, source: Tokens, cap: int, penalty: Callable[[int], float], allow_unknown: bool = True
) -> list[Scored]:
    """Every translation of at most ``cap`` tokens, EOS included, best first."""
    words = [
        w for w in range(network.vocab_size) if w not in (PAD_ID, BOS_ID, EOS_ID) and (allow_unknown or w != UNK_ID)
    ]
    found = []
    for length in range(1, cap + 1):
        for tokens in itertools.product(words, repeat=length - 1):
            steps = zip((*tokens, EOS_ID), range(length), strict=True)
            log_prob = sum(network.log_probs(source, tokens[:position])[token] for token, position in steps)
            found.append((log_prob / penalty(length), log_prob, tokens))
    return sorted(found, reverse=True)


def plain_beam_search(
    network: PrefixNetwork,
    source: Tokens,
    cap: int,
    beam_size: int,
    penalty: Callable[[int], float],
    stop_early: bool = False,
    last_step: int | None = None,
    allowed: Callable[[Tokens], bool] = lambda tokens: True,
) -> tuple[list[Scored], float]:
    """What a beam search over one sentence finishes on its way to ``cap`` or ``last_step``, best first.

    Also returns the log probability of the likeliest open hypothesis at the end. Only prefixes that are ``allowed``,
    EOS included, are followed.
    """
    open_ones: list[tuple[float, Tokens]] = [(0.0, ())]
    finished: list[Scored] = []
    for length in range(1, (last_step or cap) + 1):
        continued = _continuations(network, source, open_ones, only_eos=length == cap)
        candidates = sorted((one for one in continued if allowed(one[1])), reverse=True)
        closed = [(log_prob, tokens) for log_prob, tokens in candidates[:beam_size] if tokens[-1] == EOS_ID]
        finished += [(log_prob / penalty(length), log_prob, tokens[:-1]) for log_prob, tokens in closed]
        if len(finished) >= beam_size and (stop_early or beam_size == 1):
            break
        open_ones = [(log_prob, tokens) for log_prob, tokens in candidates if tokens[-1] != EOS_ID][:beam_size]
    return sorted(finished, reverse=True), open_ones[0][0] if open_ones else -math.inf


def _continuations(
    network: PrefixNetwork, source: Tokens, open_ones: list[tuple[float, Tokens]], only_eos: bool
) -> Iterator[tuple[float, Tokens]]:
    for log_prob, tokens in open_ones:
        for token, value in enumerate(network.log_probs(source, tokens)):
            if token not in (PAD_ID, BOS_ID) and (token == EOS_ID or not only_eos):
                yield log_prob + value, (*tokens, token)


def has_no_repeats(tokens: Tokens, ngram_size: int) -> bool:
    """Whether no n-gram of this size occurs twice."""
    ngrams = [tokens[start : start + ngram_size] for start in range(len(tokens) - ngram_size + 1)]
    return len(set(ngrams)) == len(ngrams)


def begins_with(tokens: Tokens, prefix: Tokens) -> bool:
    """Whether one begins with the other, as far as it goes."""
    return tokens[: len(prefix)] == prefix[: len(tokens)]


def assert_same(hypotheses: list[Hypothesis], expected: list[Scored]) -> None:
    assert [tuple(hypothesis.tokens) for hypothesis in hypotheses] == [tokens for _, _, tokens in expected]
    for hypothesis, (score, log_prob, _) in zip(hypotheses, expected, strict=True):
        assert math.isclose(hypothesis.log_prob, log_prob, rel_tol=1e-5, abs_tol=1e-5)
        assert math.isclose(hypothesis.score, score, rel_tol=1e-5, abs_tol=1e-5)
