"""Beam search, and the penalty that lets hypotheses of different lengths compete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_transformer.decoding.search import (
    keep_to,
    likeliest,
    next_log_probs,
    output_caps,
    padded_prefixes,
    require_bounds,
    require_finite,
    rule_out_repeats,
)
from lit_transformer.interfaces import Hypothesis, InputError, Search, TranslationNetwork
from lit_transformer.vocabulary import BOS_ID, EOS_ID

PenaltyKind = Literal["gnmt", "power"]

_STRONGEST_PENALTY = 10  # beyond, the numbers of long hypotheses leave float32


def length_penalty(length: int | Tensor, alpha: float, kind: PenaltyKind = "gnmt") -> float | Tensor:
    r"""What the log probability of a hypothesis is divided by: :math:`((5 + n) / 6)^\alpha`, or :math:`n^\alpha`.

    ``n`` counts the generated tokens, EOS included and BOS not: a hypothesis of EOS alone has ``n = 1`` and a
    penalty of 1. A larger ``alpha`` favours longer translations, 0 ranks by log probability alone. Marian, fairseq
    and Hugging Face divide by the ``"power"`` :math:`n^\alpha` instead: their ``alpha`` is not that of the paper.

    Source: Wu et al. 2016, equation 14; Vaswani et al. 2017, section 6.1 (alpha = 0.6). The power: fairseq (Ott et al.
    2019), whose default is 1, the mean log probability of a token.

    Args:
        length: Number of generated tokens ``n``, one number or a tensor of any shape.
        alpha: Strength of the penalty, no unit.
        kind: ``"gnmt"`` for the penalty of the paper, ``"power"`` for that of fairseq.

    Returns:
        The penalty, of the kind and shape of ``length``.

    Example:
        >>> length_penalty(1, alpha=0.6)
        1.0
        >>> length_penalty(torch.tensor([1, 7, 19]), alpha=0.5)
        tensor([1.0000, 1.4142, 2.0000])
        >>> length_penalty(7, alpha=1.0, kind="power")
        7.0
    """
    penalty: float | Tensor = ((5 + length) / 6) ** alpha if kind == "gnmt" else length**alpha
    return penalty


class BeamSearch(Search):
    """Translates by following the ``beam_size`` likeliest prefixes of each sentence side by side.

    In each step the continuations of a sentence's open hypotheses are ranked by log probability. Those among the
    best ``beam_size`` that end in EOS are finished; the best ``beam_size`` of the others stay open, so finishing
    never narrows the beam. Finished hypotheses are ranked by ``score``. A sentence is done when ``is_finished``
    says so, by default when no open hypothesis can still get among its ``n_best`` best; done sentences leave the
    batch. At its cap (see :func:`output_caps`) a hypothesis can only be closed, with the log probability that the
    network gives to EOS there. So every hypothesis ends in EOS, but one that reaches its cap may lack its end.

    A beam of one is greedy search: there the first EOS ends the sentence.

    To change the ranking or the stopping, override ``penalty``, ``score`` or ``is_finished``. A network may rely on
    how states are selected: the first step, from BOS, has one row for each sentence. From then on rows come in groups
    of exactly ``beam_size`` for each open sentence, groups in the order of the sentences, and a row is only ever
    replaced by one of its own sentence.

    Source: Vaswani et al. 2017, section 6.1 (beam 4, alpha 0.6, input length + 50); Wu et al. 2016, section 7.

    Args:
        beam_size: Open hypotheses for each sentence.
        length_penalty: The exponent alpha of :func:`length_penalty`; 0 ranks by log probability alone.
        max_extra_length: Tokens that a translation may have more than its source.
        n_best: Hypotheses to return for each sentence, at most ``beam_size``. Fewer come back only if fewer were
            finished, as for a vocabulary of a few words.
        allow_unknown: Whether UNK may be generated. PAD and BOS never are.
        stop_early: Whether a sentence is done as soon as ``beam_size`` hypotheses are finished, as in fairseq
            and CTranslate2: faster, but better ones may be missed.
        penalty_kind: ``"gnmt"`` for the penalty of the paper, ``"power"`` for length to the power of alpha, as in
            fairseq, Marian and Hugging Face.
        no_repeat_ngram_size: No n-gram of so many tokens occurs twice in a translation, BOS and EOS not counted; 0
            allows all. What is ruled out keeps its share of the probability, as in fairseq and Hugging Face.

    Raises:
        InputError: If ``length_penalty`` does not lie between -10 and 10.
        ValueError: If ``beam_size`` is below 1, ``n_best`` not in 1 to ``beam_size``, ``max_extra_length`` or
            ``no_repeat_ngram_size`` negative, or ``penalty_kind`` unknown; in a search, if a row of the source holds
            nothing but padding or the network gives no finite log probability.

    Example:
        >>> from lit_transformer.nn import Transformer
        >>> network = Transformer(vocab_size=32, num_layers=1, d_model=16, d_ff=32, num_heads=2).eval()
        >>> with torch.inference_mode():
        ...     hypotheses = BeamSearch(n_best=2)(network, torch.tensor([[5, 6, 3], [7, 3, 0]]))
        >>> [len(found) for found in hypotheses]
        [2, 2]
    """

    def __init__(
        self,
        beam_size: int = 4,
        length_penalty: float = 0.6,
        max_extra_length: int = 50,
        n_best: int = 1,
        allow_unknown: bool = True,
        stop_early: bool = False,
        penalty_kind: PenaltyKind = "gnmt",
        no_repeat_ngram_size: int = 0,
    ) -> None:
        if beam_size < 1:
            raise ValueError(f"beam_size must be 1 or more, got {beam_size}")
        if not 1 <= n_best <= beam_size:
            raise ValueError(f"n_best must lie between 1 and beam_size={beam_size}, got {n_best}")
        if not abs(length_penalty) <= _STRONGEST_PENALTY:  # nor NaN
            raise InputError(
                f"length_penalty must lie between -{_STRONGEST_PENALTY} and {_STRONGEST_PENALTY}, got {length_penalty}"
            )
        if penalty_kind not in get_args(PenaltyKind):
            raise ValueError(f"penalty_kind must be one of {', '.join(get_args(PenaltyKind))}, got {penalty_kind!r}")
        require_bounds(max_extra_length, no_repeat_ngram_size)
        self.beam_size = beam_size
        self.length_penalty = float(length_penalty)  # torch raises no integers to negative integer powers
        self.max_extra_length = max_extra_length
        self.n_best = n_best
        self.allow_unknown = allow_unknown
        self.stop_early = stop_early
        self.penalty_kind = penalty_kind
        self.no_repeat_ngram_size = no_repeat_ngram_size

    def penalty(self, length: int | Tensor) -> float | Tensor:
        """The divisor for hypotheses of ``length`` tokens, EOS included; a number or a tensor, like ``length``."""
        return length_penalty(length, self.length_penalty, self.penalty_kind)

    def score(self, log_prob: Float[Tensor, "*shape"], length: int | Tensor) -> Float[Tensor, "*shape"]:
        """What finished hypotheses are ranked by, higher is better.

        The default :meth:`is_finished` needs it to rise with ``log_prob``, and to rise or to fall with length all
        the way.

        Args:
            log_prob: Sums of log probabilities, EOS included, in nats.
            length: Tokens, EOS included, that the hypotheses have.
        """
        return log_prob / self.penalty(length)

    def is_finished(
        self,
        open_log_prob: Float[Tensor, "B"],
        finished_scores: Float[Tensor, "B N"],
        num_finished: Int[Tensor, "B"],
        length: int,
        caps: Int[Tensor, "B"],
    ) -> Bool[Tensor, "B"]:
        """Decides which open sentences are done; those at their cap are done anyway.

        By default a sentence is done when its likeliest open hypothesis cannot beat its ``n_best`` best finished
        ones. Its log probability can only fall, so the most it can reach is today's, divided by the penalty of the
        most favourable length left: the next one or the longest allowed.

        Args:
            open_log_prob: Log probability ``(B,)`` of the likeliest open hypothesis of each sentence.
            finished_scores: Scores ``(B, n_best)`` of the best finished ones, best first; minus infinity where
                there is none yet.
            num_finished: How many ``(B,)`` have been finished, the worse ones included.
            length: Tokens that the open hypotheses have.
            caps: Tokens, EOS included, that each sentence may have ``(B,)``.

        Returns:
            True ``(B,)`` for sentences that are done.
        """
        if self.stop_early or self.beam_size == 1:
            return num_finished >= self.beam_size
        attainable = torch.maximum(self.score(open_log_prob, length + 1), self.score(open_log_prob, caps))
        return attainable <= finished_scores[:, -1]

    def __call__(
        self, network: TranslationNetwork, src: Int[Tensor, "B S"], prefixes: Sequence[Sequence[int]] | None = None
    ) -> list[list[Hypothesis]]:
        """The ``n_best`` hypotheses for each of the ``B`` source sentences ``(B, S)``, best first.

        Args:
            network: Whose translations are searched.
            src: Source ids, padded on the right.
            prefixes: For each sentence what its translations must begin with, see
                :class:`~lit_transformer.GreedySearch`.
        """
        caps = output_caps(network, src, self.max_extra_length)
        if len(caps) == 0:
            return []
        beams = _Beams(self, caps, padded_prefixes(prefixes, network, caps))
        state = network.start(src)
        while True:
            logits, state = network.step(beams.tokens.flatten(), state)
            rows = beams.advance(logits)
            if len(rows) == 0:
                return require_finite(beams.hypotheses())
            state = state.select(rows)


class _Finished(NamedTuple):
    """The best finished hypotheses of each sentence, best first; minus infinity stands for an empty place.

    Attributes:
        scores: What they are ranked by ``(B, N)``.
        log_probs: Their log probabilities ``(B, N)``, EOS included.
        lengths: Their lengths ``(B, N)`` in tokens, EOS included.
        slots: The place in the beam ``(B, N)`` of their last token before EOS.
    """

    scores: Float[Tensor, "B N"]
    log_probs: Float[Tensor, "B N"]
    lengths: Int[Tensor, "B N"]
    slots: Int[Tensor, "B N"]

    @classmethod
    def nothing(cls, like: Int[Tensor, "B"], n_best: int) -> _Finished:
        """Empty places for as many sentences as ``like`` ``(B,)`` has entries."""
        numbers = like.new_zeros(len(like), n_best)
        scores = torch.full_like(numbers, -float("inf"), dtype=torch.float32)
        return cls(scores, scores.clone(), numbers, numbers.clone())

    def merge(self, other: _Finished) -> _Finished:
        """The best of both, as many as before; the older one wins a tie."""
        scores = torch.cat((self.scores, other.scores), dim=1)
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.scores.size(1)]
        return _Finished(*(torch.cat(pair, dim=1).gather(1, order) for pair in zip(self, other, strict=True)))


class _Beams:
    """The open and finished hypotheses of one batch on its way through the search.

    Prefixes are never copied: each step writes one token and one back-pointer for each place in the beam, and
    ``hypotheses`` walks back through them once at the end. Only a search that forbids repeats carries them along.

    Args:
        search: Whose settings and decisions apply.
        caps: Tokens, EOS included, that each sentence may have ``(B,)``.
        given: Tokens ``(B, P)`` that translations must begin with, PAD behind them; None if all are free.
    """

    def __init__(self, search: BeamSearch, caps: Int[Tensor, "B"], given: Int[Tensor, "B P"] | None = None) -> None:
        self.search = search
        self.length = 0
        self.sentences = torch.arange(len(caps), device=caps.device)  # open ones, by row of the source
        self.caps = caps
        self.shortest_cap = int(caps.min())
        self.tokens = caps.new_full((len(caps), 1), BOS_ID)  # one place at first: BOS is continued once
        self.log_probs = torch.zeros_like(self.tokens, dtype=torch.float32)
        self.given = given
        self.so_far = caps.new_empty(len(caps), 1, 0) if search.no_repeat_ngram_size > 0 else None
        self.first_rows = self.sentences.unsqueeze(1)  # of each open sentence, in the batch of the coming step
        self.finished = _Finished.nothing(caps, search.n_best)
        self.num_finished = torch.zeros_like(caps)
        self.is_any_finished = False
        self.results = _Finished.nothing(caps, search.n_best)
        shape = (int(caps.max()), len(caps), search.beam_size)
        self.all_tokens = caps.new_full(shape, EOS_ID)
        self.all_parents = caps.new_zeros(shape)

    def advance(self, logits: Float[Tensor, "R V"]) -> Int[Tensor, "R2"]:
        """Takes one step with scores ``(R, V)``; returns the rows that go on, none when all is done."""
        self.length += 1
        log_probs, parents, tokens = self._candidates(logits)
        is_eos = tokens == EOS_ID
        if is_eos.any():
            self._finish(log_probs, parents, is_eos)
            log_probs, places = log_probs.masked_fill(is_eos, -float("inf")).topk(self.search.beam_size, dim=1)
            parents, tokens = parents.gather(1, places), tokens.gather(1, places)
        rows = self._continue(log_probs, parents, tokens)
        done = self._done()
        if done is not None and done.any():
            rows = rows[self._dismiss(done)]
        return rows.flatten()

    def _done(self) -> Bool[Tensor, "B"] | None:
        """Which open sentences are done ``(B,)``; None for none."""
        is_default = type(self.search).is_finished is BeamSearch.is_finished
        if is_default and not self.is_any_finished and self.length < self.shortest_cap:
            return None  # there is nothing to compare with, and comparing takes as long as a step of a small network
        done = self.search.is_finished(
            self.log_probs[:, 0], self.finished.scores, self.num_finished, self.length, self.caps
        )
        return done | (self.caps == self.length) if self.length >= self.shortest_cap else done

    def _candidates(
        self, logits: Float[Tensor, "R V"]
    ) -> tuple[Float[Tensor, "B C"], Int[Tensor, "B C"], Int[Tensor, "B C"]]:
        """Log probability, parent and token of the best continuations, each ``(B, C)``, best first.

        ``C`` is twice the beam: at most ``beam_size`` of them end in EOS, so enough are left to stay open. Of one
        hypothesis no more than ``beam_size`` can stay open and one be closed.
        """
        beam_size, num_places = self.search.beam_size, self.tokens.size(1)
        at_cap = None
        if self.length >= self.shortest_cap:
            at_cap = (self.caps == self.length).repeat_interleave(num_places)
        next_ones = next_log_probs(logits, at_cap, self.search.allow_unknown)
        if self.so_far is not None:
            rule_out_repeats(next_ones, self.so_far.flatten(0, 1), self.search.no_repeat_ngram_size)
        if self.given is not None and self.length <= self.given.size(1):
            keep_to(next_ones, logits, self.given[:, self.length - 1].repeat_interleave(num_places))
        width = min(beam_size + 1 if num_places > 1 else 2 * beam_size, next_ones.size(1))
        values, tokens = likeliest(next_ones, width)  # of each row; the best of the sentence are among them
        totals = (self.log_probs.unsqueeze(2) + values.view(-1, num_places, width)).flatten(1)
        tokens = tokens.view(-1, num_places * width)
        missing = 2 * beam_size - totals.size(1)
        if missing > 0:  # a beam that is wider than the vocabulary: the rest is dead
            totals = F.pad(totals, (0, missing), value=-float("inf"))
            tokens = F.pad(tokens, (0, missing), value=EOS_ID)
        log_probs, places = totals.topk(2 * beam_size, dim=1)
        return log_probs, (places // width).clamp_(max=num_places - 1), tokens.gather(1, places)

    def _finish(
        self, log_probs: Float[Tensor, "B C"], parents: Int[Tensor, "B C"], is_eos: Bool[Tensor, "B C"]
    ) -> None:
        """Files the candidates ``(B, C)`` that are closed and rank within the beam."""
        beam_size, self.is_any_finished = self.search.beam_size, True
        closed = log_probs[:, :beam_size].masked_fill(~is_eos[:, :beam_size], -float("inf"))
        slots = parents[:, :beam_size]
        scores = self.search.score(closed, self.length)
        self.finished = self.finished.merge(_Finished(scores, closed, torch.full_like(slots, self.length), slots))
        self.num_finished = self.num_finished + (closed > -float("inf")).sum(dim=1)

    def _continue(
        self, log_probs: Float[Tensor, "B C"], parents: Int[Tensor, "B C"], tokens: Int[Tensor, "B C"]
    ) -> Int[Tensor, "B N"]:
        """Fills the beam with the first of the candidates ``(B, C)``, none of them closed; returns their rows."""
        beam_size = self.search.beam_size
        self.log_probs, parents = log_probs[:, :beam_size], parents[:, :beam_size]
        # Where fewer continuations exist than places, dead ones fill the beam: show the network no PAD there.
        self.tokens = tokens[:, :beam_size].masked_fill(self.log_probs == -float("inf"), EOS_ID)
        self.all_tokens[self.length - 1].index_copy_(0, self.sentences, self.tokens)
        self.all_parents[self.length - 1].index_copy_(0, self.sentences, parents)
        if self.so_far is not None:
            before = self.so_far.gather(1, parents.unsqueeze(2).expand(-1, -1, self.so_far.size(2)))
            self.so_far = torch.cat((before, self.tokens.unsqueeze(2)), dim=2)
        rows = self.first_rows + parents
        if self.length == 1:
            self.first_rows = self.first_rows * beam_size
        return rows

    def _dismiss(self, done: Bool[Tensor, "B"]) -> Int[Tensor, "B2"]:
        """Stores the results of the sentences that are done ``(B,)``; returns the places of the others."""
        leave, stay = done.nonzero().squeeze(1), (~done).nonzero().squeeze(1)
        for target, values in zip(self.results, self.finished, strict=True):
            target[self.sentences[leave]] = values[leave]
        self.finished = _Finished(*(values[stay] for values in self.finished))
        self.sentences, self.caps, self.num_finished = self.sentences[stay], self.caps[stay], self.num_finished[stay]
        self.tokens, self.log_probs = self.tokens[stay], self.log_probs[stay]
        self.so_far = None if self.so_far is None else self.so_far[stay]
        self.given = None if self.given is None else self.given[stay]
        self.first_rows = self.first_rows[: len(stay)]
        self.shortest_cap = int(self.caps.min()) if len(stay) else 0
        return stay

    def hypotheses(self) -> list[list[Hypothesis]]:
        """The finished hypotheses of all sentences, once they are done."""
        scores, log_probs, lengths, _ = (field.tolist() for field in self.results)
        tokens = self._walk_back().tolist()
        return [
            [
                Hypothesis(tokens[row][rank][: length - 1], log_probs[row][rank], scores[row][rank])
                for rank, length in enumerate(row_lengths)
                if length > 0 and log_probs[row][rank] != -float("inf")
            ]
            for row, row_lengths in enumerate(lengths)
        ]

    def _walk_back(self) -> Int[Tensor, "B N L"]:
        """Tokens ``(B, N, L)`` of the results, followed from their last places to the front."""
        slots, last = self.results.slots, self.results.lengths - 2  # position of the last token before EOS
        output = self.all_tokens.new_full((*slots.shape, self.length), EOS_ID)
        for position in reversed(range(self.length)):
            inside = position <= last
            output[:, :, position] = self.all_tokens[position].gather(1, slots)
            slots = torch.where(inside, self.all_parents[position].gather(1, slots), slots)
        return output
