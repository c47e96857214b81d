import math

import pytest
import torch
from toy_networks import PrefixNetwork, has_no_repeats, real_tokens, sources

from lit_transformer.decoding import BeamSearch, GreedySearch, SamplingSearch, Search
from lit_transformer.decoding.search import likeliest, next_log_probs, output_caps
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID, UNK_ID

NEVER = -float("inf")


def plain_greedy(network, source, cap, banned=(PAD_ID, BOS_ID), ngram_size=99):
    tokens, total = (), 0.0
    while True:
        log_probs = network.log_probs(source, tokens)
        allowed = [EOS_ID] if len(tokens) + 1 == cap else [t for t in range(network.vocab_size) if t not in banned]
        allowed = [token for token in allowed if has_no_repeats((*tokens, token), ngram_size)]
        best = max(allowed, key=log_probs.__getitem__)
        total += log_probs[best]
        if best == EOS_ID:
            return list(tokens), total
        tokens += (best,)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("eos_bias", [-3.0, 0.0, 2.0])
def test_greedy_equals_a_plain_loop(seed, eos_bias):
    network = PrefixNetwork(vocab_size=9, seed=seed, eos_bias=eos_bias)
    src = sources(3, 1, 5, 2, seed=seed)
    results = GreedySearch(max_extra_length=4)(network, src)
    for source, (hypothesis,) in zip(real_tokens(src), results, strict=True):
        tokens, log_prob = plain_greedy(network, source, len(source) + 4)
        assert hypothesis.tokens == tokens
        assert hypothesis.log_prob == hypothesis.score == pytest.approx(log_prob, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("ngram_size", [1, 2, 3])
def test_greedy_without_repeats_equals_a_plain_loop(ngram_size):
    num_changed = 0
    for seed in range(20):
        network, src = PrefixNetwork(7, seed, eos_bias=-2.0), sources(3, 1, 9, 2, seed=seed)
        search = GreedySearch(max_extra_length=4, no_repeat_ngram_size=ngram_size)
        drawn = SamplingSearch(top_k=1, max_extra_length=4, no_repeat_ngram_size=ngram_size)(network, src)
        for source, (hypothesis,), (other,) in zip(real_tokens(src), search(network, src), drawn, strict=True):
            tokens, log_prob = plain_greedy(network, source, len(source) + 4, ngram_size=ngram_size)
            assert hypothesis.tokens == other.tokens == tokens
            assert hypothesis.log_prob == pytest.approx(log_prob, rel=1e-5, abs=1e-6)
            num_changed += tokens != plain_greedy(network, source, len(source) + 4)[0]
    assert num_changed > 5


def test_what_is_drawn_begins_with_its_prefix():
    network, src = PrefixNetwork(9, seed=2, eos_bias=-1.0), sources(3, 5, 2)
    prefixes = [[5, 7], [], [UNK_ID]]
    drawn = SamplingSearch(n_best=20, max_extra_length=3, allow_unknown=False)(network, src, prefixes)
    for source, found, prefix in zip(real_tokens(src), drawn, prefixes, strict=True):
        assert len({tuple(one.tokens) for one in found}) > 5
        assert all(one.tokens[: len(prefix)] == prefix for one in found)
        assert all(UNK_ID not in one.tokens[len(prefix) :] for one in found)
        for one in found:
            steps = [*one.tokens, EOS_ID]
            total = sum(network.log_probs(source, tuple(one.tokens[:n]))[token] for n, token in enumerate(steps))
            assert one.log_prob == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    "search", [GreedySearch(2), BeamSearch(max_extra_length=2), SamplingSearch(max_extra_length=2)]
)
@pytest.mark.parametrize(
    ("prefixes", "words"),
    [
        ([[5]], "there are 1 prefixes for 2 sentences"),
        ([[], [5] * 4], "the prefix of src row 1 has 4 tokens, but may have 3"),
        ([[5, EOS_ID], []], f"the prefix of src row 0 holds {EOS_ID}, which cannot stand in a translation"),
        ([[9], []], "the prefix of src row 0 holds 9"),
    ],
)
def test_prefixes_that_cannot_be_are_errors(search, prefixes, words):
    with pytest.raises(ValueError, match=words):
        search(PrefixNetwork(9), sources(3, 2), prefixes)


def test_what_is_drawn_repeats_nothing():
    network, src = PrefixNetwork(7, eos_bias=-2.0), sources(3, 9, 5)
    repeats = []
    for ngram_size in (0, 1, 2):
        search = SamplingSearch(n_best=20, max_extra_length=6, no_repeat_ngram_size=ngram_size)
        drawn = [tuple(one.tokens) for found in search(network, src) for one in found]
        repeats.append(sum(not has_no_repeats(tokens, ngram_size or 2) for tokens in drawn))
        assert len(set(drawn)) > 5
    assert repeats[0] > 20
    assert repeats[1:] == [0, 0]


def first_tokens(search, network, source, count):
    """How often each first token was drawn, EOS among them."""
    drawn = search(network, source.expand(count // search.n_best, -1))
    counts = torch.zeros(network.vocab_size)
    for found in drawn:
        for one in found:
            counts[one.tokens[0] if one.tokens else EOS_ID] += 1
    return counts / counts.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n_best", [1, 4])
def test_tokens_are_drawn_by_their_probability(temperature, n_best):
    network, source = PrefixNetwork(vocab_size=9, scale=1.0), sources(3)
    scores = torch.tensor(network.log_probs(real_tokens(source)[0], ())) / temperature
    scores[[PAD_ID, BOS_ID]] = NEVER
    expected = scores.softmax(0)
    found = first_tokens(SamplingSearch(temperature, n_best=n_best, max_extra_length=2), network, source, 6000)
    assert found[[PAD_ID, BOS_ID]].tolist() == [0, 0]
    spread = (expected * (1 - expected) / 6000).sqrt()
    assert ((found - expected).abs() <= 4 * spread).all()


@pytest.mark.parametrize(
    ("options", "kept"),
    [({"top_k": 3}, 3), ({"top_p": 0.6}, None), ({"top_k": 4, "top_p": 0.9}, None), ({"top_k": 99}, 7)],
)
def test_only_the_likeliest_are_drawn(options, kept):
    log_probs = torch.tensor([[0.05, 0.3, 0.02, 0.13, 0.25, 0.15, 0.1]]).log()
    likely, nucleus = sorted(log_probs.exp()[0].tolist(), reverse=True)[: options.get("top_k", 99)], []
    for one in likely:  # by definition: until they have the probability together
        if sum(nucleus) < options.get("top_p", 1.0) * sum(likely):
            nucleus.append(one)
    values, probs, tokens = SamplingSearch(**options).candidates(log_probs)
    assert torch.equal(values, log_probs.gather(1, tokens))
    found = torch.zeros(7).scatter_(0, tokens[0], probs[0])
    assert sorted(found[found > 0].tolist(), reverse=True) == pytest.approx([one / sum(nucleus) for one in nucleus])
    assert kept is None or len(nucleus) == kept
    assert (log_probs[0][found > 0].min() > log_probs[0][found == 0].max()) if (found == 0).any() else kept == 7


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}])
def test_drawing_the_likeliest_alone_is_greedy(options):
    network, src = PrefixNetwork(vocab_size=9, seed=4), sources(3, 1, 5, 2)
    assert SamplingSearch(**options, max_extra_length=4)(network, src) == GreedySearch(max_extra_length=4)(network, src)


def test_what_is_drawn_follows_from_the_seed_and_has_the_probability_of_the_network():
    network, src = PrefixNetwork(vocab_size=9, seed=2), sources(3, 5)
    search = SamplingSearch(temperature=3.0, top_k=5, n_best=6, max_extra_length=3)
    found = search(network, src)
    assert found == search(network, src)
    assert found != SamplingSearch(temperature=3.0, top_k=5, n_best=6, max_extra_length=3, seed=1)(network, src)
    for source, drawn in zip(real_tokens(src), found, strict=True):
        assert len({tuple(one.tokens) for one in drawn}) > 1
        assert [one.log_prob for one in drawn] == sorted((one.log_prob for one in drawn), reverse=True)
        for one in drawn:
            steps = [*one.tokens, EOS_ID]
            total = sum(network.log_probs(source, tuple(one.tokens[:n]))[token] for n, token in enumerate(steps))
            assert one.log_prob == one.score == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature must be a number above 0, got 0.0"),
        ({"temperature": math.inf}, "temperature must be a number above 0"),
        ({"top_k": -1}, "top_k must be 0 tokens or more, got -1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"n_best": 0}, "n_best must be 1 or more, got 0"),
        ({"max_extra_length": -1}, "max_extra_length must be 0 tokens or more"),
    ],
)
def test_what_cannot_be_drawn_with_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SamplingSearch(**options)


def test_the_inputs_of_greedy_search_above_reach_the_cap_and_stop_before_it():
    lengths = {
        len(hypothesis.tokens)
        for seed in range(20)
        for bias in (-3.0, 2.0)
        for (hypothesis,) in GreedySearch(4)(PrefixNetwork(9, seed, eos_bias=bias), sources(3, seed=seed))
    }
    assert 3 + 4 - 1 in lengths
    assert 0 in lengths


@pytest.mark.parametrize("search", [GreedySearch(max_extra_length=3), BeamSearch(beam_size=1, max_extra_length=3)])
def test_closed_sentences_leave_the_batch(search):
    network = PrefixNetwork(vocab_size=9, seed=3, eos_bias=1.0)
    src = sources(1, 2, 3, 4, 5, 6, 7, 8, seed=3)
    lengths = [len(hypothesis.tokens) + 1 for (hypothesis,) in search(network, src)]
    assert network.rows_per_step == [sum(length >= step for length in lengths) for step in range(1, max(lengths) + 1)]
    assert len(set(lengths)) > 2


def test_unknown_words_can_be_ruled_out():
    src = sources(2, 3, 4)
    for seed in range(10):
        network = PrefixNetwork(vocab_size=6, seed=seed, eos_bias=-2.0)
        for source, (hypothesis,) in zip(
            real_tokens(src), GreedySearch(2, allow_unknown=False)(network, src), strict=True
        ):
            assert hypothesis.tokens == plain_greedy(network, source, len(source) + 2, (PAD_ID, BOS_ID, UNK_ID))[0]


def test_caps_count_real_tokens_and_respect_the_network():
    src = sources(1, 4, 2)
    assert output_caps(PrefixNetwork(6), src, 50).tolist() == [51, 54, 52]
    assert output_caps(PrefixNetwork(6, max_length=52), src, 50).tolist() == [51, 52, 52]


@pytest.mark.parametrize("search", [GreedySearch(max_extra_length=9), BeamSearch(max_extra_length=9)])
def test_no_search_runs_past_the_length_of_the_network(search):
    network = PrefixNetwork(vocab_size=8, eos_bias=-6.0, max_length=5)  # its step checks the bound, too
    results = search(network, sources(3, 2))
    assert [len(found[0].tokens) + 1 for found in results] == [5, 5]


def test_next_log_probs_keeps_the_network_s_own_probabilities():
    logits = torch.randn(3, 7)
    expected = torch.log(logits.exp() / logits.exp().sum(dim=1, keepdim=True))
    log_probs = next_log_probs(logits, at_cap=torch.tensor([False, True, False]), allow_unknown=False)
    allowed = torch.tensor([[3, 4, 5, 6], [3, 3, 3, 3], [3, 4, 5, 6]])
    torch.testing.assert_close(log_probs.gather(1, allowed), expected.gather(1, allowed))
    assert (log_probs == NEVER).sum(dim=1).tolist() == [3, 6, 3]


def test_next_log_probs_works_in_float32_and_leaves_the_scores_alone():
    logits = torch.randn(2, 50, dtype=torch.float16)
    before = logits.clone()
    log_probs = next_log_probs(logits)
    assert log_probs.dtype is torch.float32
    torch.testing.assert_close(log_probs[:, 3:], logits.double().log_softmax(1)[:, 3:].float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("search", [GreedySearch(), BeamSearch()])
def test_no_sentences_no_hypotheses(search: Search):
    assert search(PrefixNetwork(6), torch.zeros(0, 4, dtype=torch.long)) == []


@pytest.mark.parametrize(
    "search", [GreedySearch(2), BeamSearch(max_extra_length=2), SamplingSearch(max_extra_length=2)]
)
def test_a_row_of_padding_is_an_error(search: Search):
    src = torch.tensor([[5, EOS_ID], [PAD_ID, PAD_ID]])
    with pytest.raises(ValueError, match="src row 1 holds nothing but padding"):
        search(PrefixNetwork(6), src)


@pytest.mark.parametrize(
    "search", [GreedySearch(2), BeamSearch(max_extra_length=2), SamplingSearch(max_extra_length=2)]
)
@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_broken_scores_are_an_error(search: Search, scale: float):
    with pytest.raises(ValueError, match=r"src row 0 no translation of finite log_prob; its logits hold NaN"):
        search(PrefixNetwork(8, scale=scale), sources(3, 2))


@pytest.mark.parametrize(
    "search", [GreedySearch(2), BeamSearch(max_extra_length=2), SamplingSearch(max_extra_length=2)]
)
def test_a_network_that_never_ends_is_an_error(search: Search):
    with pytest.raises(ValueError, match="src row 0 no translation of finite log_prob"):
        search(PrefixNetwork(8, eos_bias=NEVER), sources(3, 2))


def test_negative_extra_length_is_an_error():
    with pytest.raises(ValueError, match="max_extra_length must be 0 tokens or more, got -1"):
        GreedySearch(max_extra_length=-1)
    with pytest.raises(ValueError, match="max_extra_length must be 0 tokens or more, got -2"):
        BeamSearch(max_extra_length=-2)
    with pytest.raises(ValueError, match="no_repeat_ngram_size must be 0 tokens or more, got -3"):
        GreedySearch(no_repeat_ngram_size=-3)


@pytest.mark.parametrize("vocab_size", [9, 640, 1000, 1024])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("num_rows", [1, 130])
def test_the_likeliest_are_what_topk_finds(vocab_size, count, num_rows):
    log_probs = torch.randn(num_rows, vocab_size).log_softmax(dim=1)
    log_probs[:, 3] = -float("inf")
    log_probs[-1, 5:] = -float("inf")  # as at the cap: few are possible
    values, indices = likeliest(log_probs, count)
    torch.testing.assert_close(values, log_probs.topk(count, dim=1).values, rtol=0, atol=0)
    torch.testing.assert_close(log_probs.gather(1, indices), values, rtol=0, atol=0)
    assert all(len(set(row)) == count for row in indices.tolist())
