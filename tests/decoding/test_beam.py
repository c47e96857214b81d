import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_networks import (
    PrefixNetwork,
    assert_same,
    begins_with,
    enumerate_all,
    gnmt,
    has_no_repeats,
    plain_beam_search,
    real_tokens,
    sources,
)

from lit_transformer.decoding import BeamSearch, GreedySearch, length_penalty
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID, UNK_ID

ALPHAS = [0.0, 0.6, 2.0, -0.5]


class NeverEarly(BeamSearch):
    """Follows every sentence to its cap."""

    def is_finished(self, open_log_prob, finished_scores, num_finished, length, caps):
        return torch.zeros_like(caps, dtype=torch.bool)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_length_penalty_is_equation_14(alpha):
    expected = [(5 + n) ** alpha / (5 + 1) ** alpha for n in range(1, 60)]
    assert [length_penalty(n, alpha) for n in range(1, 60)] == pytest.approx(expected)
    torch.testing.assert_close(length_penalty(torch.arange(1, 60), alpha), torch.tensor(expected))


@pytest.mark.parametrize("alpha", [*ALPHAS, 1.0])
def test_the_power_penalty_is_the_one_of_fairseq(alpha):
    """``score / (step + 1) ** lenpen``, the step of EOS counted from 0; exact against all translations there are."""
    for seed, eos_bias in itertools.product(range(4), (-2.0, 0.0, 1.0)):
        network, src = PrefixNetwork(6, seed, eos_bias=eos_bias), sources(3, 1, 2, seed=seed)
        results = BeamSearch(50, alpha, 1, n_best=5, penalty_kind="power")(network, src)
        for source, found in zip(real_tokens(src), results, strict=True):
            expected = enumerate_all(network, source, len(source) + 1, lambda length: math.pow(length, alpha))
            assert_same(found, expected[:5])
    lengths = torch.arange(1, 60)
    torch.testing.assert_close(length_penalty(lengths, alpha, "power"), torch.tensor([n**alpha for n in range(1, 60)]))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("vocab_size", "extra", "beam_size"), [(6, 1, 50), (5, 2, 40), (7, 0, 30)])
def test_a_wide_beam_equals_exhaustive_enumeration(alpha, vocab_size, extra, beam_size):
    for seed, eos_bias in itertools.product(range(4), (-2.0, 0.0, 1.0)):
        network = PrefixNetwork(vocab_size, seed, eos_bias=eos_bias)
        src = sources(3, 1, 2, seed=seed)
        results = BeamSearch(beam_size, alpha, extra, n_best=5)(network, src)
        for source, found in zip(real_tokens(src), results, strict=True):
            expected = enumerate_all(network, source, len(source) + extra, gnmt(alpha))
            assert_same(found, expected[:5])


def test_all_translations_come_back_when_the_list_is_long_enough():
    network, src = PrefixNetwork(vocab_size=6), sources(3, 1)
    results = BeamSearch(beam_size=60, n_best=60, max_extra_length=1, allow_unknown=False)(network, src)
    for source, found in zip(real_tokens(src), results, strict=True):
        expected = enumerate_all(network, source, len(source) + 1, gnmt(0.6), allow_unknown=False)
        assert_same(found, expected)
        assert len(found) == sum(2**words for words in range(len(source) + 1))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("beam_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("stop_early", [False, True])
def test_equals_a_plain_beam_search(alpha, beam_size, stop_early):
    for seed, eos_bias in itertools.product(range(5), (-2.0, 0.0, 1.5)):
        network = PrefixNetwork(9, seed, eos_bias=eos_bias)
        src = sources(3, 1, 6, 4, seed=seed)
        n_best = 1 + seed % beam_size
        search = BeamSearch(beam_size, alpha, max_extra_length=3, n_best=n_best, stop_early=stop_early)
        for source, found in zip(real_tokens(src), search(network, src), strict=True):
            expected, _ = plain_beam_search(network, source, len(source) + 3, beam_size, gnmt(alpha), stop_early)
            assert_same(found, expected[:n_best])


@pytest.mark.parametrize("ngram_size", [1, 2, 3])
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_the_best_of_all_translations_without_repeats(ngram_size, alpha):
    num_changed = 0
    for seed, eos_bias in itertools.product(range(4), (-2.0, 0.0)):
        network, src = PrefixNetwork(5, seed, eos_bias=eos_bias), sources(4, 1, 2, seed=seed)
        results = BeamSearch(64, alpha, 2, n_best=64, no_repeat_ngram_size=ngram_size)(network, src)
        for source, found in zip(real_tokens(src), results, strict=True):
            every = enumerate_all(network, source, len(source) + 2, gnmt(alpha))
            expected = [one for one in every if has_no_repeats(one[2], ngram_size)]
            assert_same(found, expected)
            num_changed += expected != every
    assert num_changed > 5


@pytest.mark.parametrize("ngram_size", [1, 2, 3])
@pytest.mark.parametrize("beam_size", [1, 3, 4])
@pytest.mark.parametrize("stop_early", [False, True])
def test_equals_a_plain_beam_search_without_repeats(ngram_size, beam_size, stop_early):
    for seed, vocab_size in itertools.product(range(8), (5, 9)):  # of two words and EOS, places stay empty
        network, src = PrefixNetwork(vocab_size, seed, eos_bias=-2.0), sources(3, 1, 6, 4, seed=seed)
        search = BeamSearch(beam_size, 0.6, 3, beam_size, stop_early=stop_early, no_repeat_ngram_size=ngram_size)
        for source, found in zip(real_tokens(src), search(network, src), strict=True):
            expected, _ = plain_beam_search(
                network,
                source,
                len(source) + 3,
                beam_size,
                gnmt(0.6),
                stop_early,
                allowed=lambda tokens: has_no_repeats(tokens, ngram_size),
            )
            assert_same(found, expected[:beam_size])


PREFIXES = [(4, UNK_ID, 4), (), (UNK_ID,), (4, 4)]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("options", [{}, {"allow_unknown": False}])
def test_the_best_of_all_translations_that_begin_with_a_prefix(alpha, options):
    for seed, eos_bias in itertools.product(range(4), (-2.0, 0.0, 2.0)):
        network, src = PrefixNetwork(5, seed, eos_bias=eos_bias), sources(3, 1, 2, 4, seed=seed)
        results = BeamSearch(64, alpha, 2, n_best=64, **options)(network, src, PREFIXES)
        for source, found, prefix in zip(real_tokens(src), results, PREFIXES, strict=True):
            every = enumerate_all(network, source, len(source) + 2, gnmt(alpha))
            expected = [one for one in every if one[2][: len(prefix)] == prefix]
            if options:  # what follows the prefix
                expected = [one for one in expected if UNK_ID not in one[2][len(prefix) :]]
            assert_same(found, expected)


@pytest.mark.parametrize("beam_size", [1, 2, 4])
@pytest.mark.parametrize("stop_early", [False, True])
def test_equals_a_plain_beam_search_with_prefixes(beam_size, stop_early):
    for seed, eos_bias in itertools.product(range(8), (-2.0, 0.0, 1.5)):
        network, src = PrefixNetwork(9, seed, eos_bias=eos_bias), sources(3, 1, 6, 4, seed=seed)
        prefixes = [(7, 5), (), (4, 8, 5, 5, 6), (UNK_ID,)]
        search = BeamSearch(beam_size, 0.6, 3, n_best=beam_size, stop_early=stop_early)
        greedy = GreedySearch(3)(network, src, prefixes)
        results = search(network, src, prefixes)
        assert results == search(network, src, [list(prefix) for prefix in prefixes])
        for source, found, (one,), prefix in zip(real_tokens(src), results, greedy, prefixes, strict=True):
            plain = {"stop_early": stop_early, "allowed": lambda tokens, prefix=prefix: begins_with(tokens, prefix)}
            cap = len(source) + 3
            expected, _ = plain_beam_search(network, source, cap, beam_size, gnmt(0.6), **plain)
            assert_same(found, expected[:beam_size])
            assert_same([one], plain_beam_search(network, source, cap, 1, gnmt(0.0), **plain)[0])


def test_a_prefix_may_repeat_what_nothing_after_it_may():
    network, src, prefix = PrefixNetwork(6, eos_bias=-2.0), sources(4), (4, 4, 5, 4, 4)
    for ngram_size in (1, 2):
        (found,) = BeamSearch(8, 0.6, 4, n_best=8, no_repeat_ngram_size=ngram_size)(network, src, [prefix])
        every = enumerate_all(network, real_tokens(src)[0], 8, gnmt(0.6))
        begun = [one for one in every if one[2][:5] == prefix]
        new = [range(max(5, ngram_size - 1), len(tokens)) for _, _, tokens in begun]
        ends = [
            [tokens[end - ngram_size + 1 : end + 1] in _ngrams(tokens[:end], ngram_size) for end in places]
            for (_, _, tokens), places in zip(begun, new, strict=True)
        ]
        expected = [one for one, repeats in zip(begun, ends, strict=True) if not any(repeats)]
        assert len(expected) < len(begun)
        assert_same(found, expected[:8])


def _ngrams(tokens, size):
    return {tokens[start : start + size] for start in range(len(tokens) - size + 1)}


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_beam_of_one_is_greedy(alpha):
    for seed in range(20):
        network, src = PrefixNetwork(9, seed, eos_bias=seed % 4 - 2.0), sources(4, 1, 6, seed=seed)
        greedy = GreedySearch(max_extra_length=5)(network, src)
        beam = BeamSearch(1, alpha, max_extra_length=5)(network, src)
        assert [found[0].tokens for found in beam] == [found[0].tokens for found in greedy]
        assert [found[0].log_prob for found in beam] == pytest.approx([found[0].log_prob for found in greedy])


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("beam_size", [2, 4])
def test_stopping_loses_nothing_and_saves_steps(alpha, beam_size):
    steps = {BeamSearch: 0, NeverEarly: 0}
    for seed, n_best in itertools.product(range(8), (1, beam_size)):
        network, src = PrefixNetwork(9, seed, eos_bias=1.0), sources(3, 5, 1, seed=seed)
        results = []
        for search in steps:
            network.rows_per_step.clear()
            results.append(search(beam_size, alpha, max_extra_length=8, n_best=n_best)(network, src))
            steps[search] += sum(network.rows_per_step)
        assert results[0] == results[1]
    assert steps[BeamSearch] < 0.9 * steps[NeverEarly]


def test_beam_size_finished_hypotheses_may_miss_the_best():
    """Guards the test above: with networks like its own, stopping too soon would be seen."""
    worse = 0
    for seed in range(15):
        network, src = PrefixNetwork(9, seed, eos_bias=1.0), sources(3, 5, 1, seed=seed)
        exact = BeamSearch(2, length_penalty=2.0, max_extra_length=8)(network, src)
        early = BeamSearch(2, length_penalty=2.0, max_extra_length=8, stop_early=True)(network, src)
        worse += sum(b[0].score < a[0].score for a, b in zip(exact, early, strict=True))
    assert worse > 0


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n_best", [1, 2, 3])
def test_stops_in_the_first_step_in_which_no_open_hypothesis_can_win(alpha, n_best):
    for seed in range(10):
        network, src = PrefixNetwork(9, seed, eos_bias=1.0), sources(4, seed=seed)
        BeamSearch(3, alpha, max_extra_length=6, n_best=n_best)(network, src)
        source, cap, penalty = real_tokens(src)[0], 10, gnmt(alpha)
        for length in range(1, cap + 1):
            finished, best_open = plain_beam_search(network, source, cap, 3, penalty, last_step=length)
            hopes = [best_open / penalty(later) for later in range(length + 1, cap + 1)]
            if len(finished) >= n_best and all(hope <= finished[n_best - 1][0] for hope in hopes):
                break
        assert len(network.rows_per_step) == length


@pytest.mark.parametrize("search", [BeamSearch(3, n_best=3, max_extra_length=4), GreedySearch(max_extra_length=4)])
def test_a_result_depends_neither_on_neighbours_nor_on_padding(search):
    for seed in range(5):
        network, src = PrefixNetwork(9, seed), sources(2, 6, 1, 4, 3, seed=seed)
        together = search(network, src)
        padded = torch.nn.functional.pad(src, (0, 3), value=PAD_ID)
        assert search(network, padded) == together
        assert search(network, src.flip(0)) == together[::-1]
        for row, source in enumerate(real_tokens(src)):
            assert search(network, torch.tensor([source])) == [together[row]]


def test_rows_stay_grouped_by_sentence_in_ascending_order():
    network, src = PrefixNetwork(9, seed=5, eos_bias=0.5), sources(7, 2, 4, 3, seed=5)
    BeamSearch(3, max_extra_length=2)(network, src)
    order = real_tokens(src)
    sentences_seen = []
    for rows in network.selections:
        groups = [[source for source, _ in rows[start : start + 3]] for start in range(0, len(rows), 3)]
        assert all(group == [group[0]] * 3 for group in groups)
        numbers = [order.index(group[0]) for group in groups]
        assert numbers == sorted(set(numbers))
        sentences_seen.append(len(numbers))
    assert sentences_seen[0] == 4
    assert sentences_seen[-1] < 4


def test_an_own_penalty_changes_the_ranking():
    class WordReward(BeamSearch):
        def penalty(self, length):
            return length**1.5

    network, src = PrefixNetwork(6, seed=2), sources(3, 2)
    for source, found in zip(real_tokens(src), WordReward(50, max_extra_length=1, n_best=9)(network, src), strict=True):
        assert_same(found, enumerate_all(network, source, len(source) + 1, lambda length: length**1.5)[:9])


def test_an_own_score_changes_the_ranking():
    class PerWord(BeamSearch):
        def score(self, log_prob, length):
            return log_prob + 0.7 * length

    network, src = PrefixNetwork(6, seed=2), sources(3, 2)
    results = PerWord(50, max_extra_length=1, n_best=9)(network, src)
    for source, found in zip(real_tokens(src), results, strict=True):
        every = enumerate_all(network, source, len(source) + 1, lambda length: 1.0)
        expected = sorted(((p + 0.7 * (len(tokens) + 1), p, tokens) for _, p, tokens in every), reverse=True)
        assert_same(found, expected[:9])


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    vocab_size=st.integers(4, 12),
    beam_size=st.integers(1, 6),
    data=st.data(),
)
def test_hypotheses_are_well_formed(lengths, vocab_size, beam_size, data):
    n_best = data.draw(st.integers(1, beam_size))
    extra = data.draw(st.integers(0, 4))
    allow_unknown = data.draw(st.booleans())
    network = PrefixNetwork(
        vocab_size, data.draw(st.integers(0, 99)), eos_bias=data.draw(st.sampled_from([-9.0, 0.0, 3.0]))
    )
    src = sources(*lengths)
    results = BeamSearch(beam_size, 0.6, extra, n_best, allow_unknown)(network, src)
    assert len(results) == len(lengths)
    for length, found in zip(lengths, results, strict=True):
        assert 1 <= len(found) <= n_best
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert len({tuple(h.tokens) for h in found}) == len(found)
        banned = {PAD_ID, BOS_ID, EOS_ID} | (set() if allow_unknown else {UNK_ID})
        for h in found:
            assert len(h.tokens) + 1 <= length + extra
            assert all(0 <= token < vocab_size and token not in banned for token in h.tokens)
            assert math.isclose(h.score, h.log_prob / gnmt(0.6)(len(h.tokens) + 1), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beam_size": 0}, "beam_size must be 1 or more, got 0"),
        ({"n_best": 0}, "n_best must lie between 1 and beam_size=4, got 0"),
        ({"beam_size": 2, "n_best": 3}, "n_best must lie between 1 and beam_size=2, got 3"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be 0 tokens or more, got -1"),
        ({"length_penalty": math.nan}, "length_penalty must lie between -10 and 10, got nan"),
    ],
)
def test_bad_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        BeamSearch(**arguments)
