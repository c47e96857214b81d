"""Streams and caches of any shape: each sentence once, budgets kept, resumed as if never interrupted."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated import Letters, Numbers, ranks, sequence, texts

from lit_transformer.data.batching import LengthLimits, TokenBudgetBatches
from lit_transformer.data.cache import write_or_open_cache
from lit_transformer.data.cached_pools import CachedPools
from lit_transformer.data.cursor import joined, start_of
from lit_transformer.data.pools import PoolStream

shapes = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(1, 400), min_size=1, max_size=3),
        "budget": st.integers(16, 200),
        "pool": st.integers(1, 150),
        "lanes": st.sampled_from([1, 2, 3, 8]),
        "world": st.sampled_from([1, 2, 3, 8]),
        "workers": st.integers(0, 3),
    }
)


def make_corpora(sizes):
    return [Numbers(size, "abc"[index]) for index, size in enumerate(sizes)]


@pytest.fixture(params=["stream", "cache"])
def maker(request, tmp_path):
    """Gives for a shape what makes the pools of each process, and the number of lanes."""

    def make(shape):
        corpora, settings = make_corpora(shape["sizes"]), (TokenBudgetBatches(shape["budget"]), LengthLimits(60))
        settings = (*settings, shape["pool"], 7)
        if request.param == "stream":
            lanes = shape["lanes"]
            return lanes, lambda rank: PoolStream(make_corpora(shape["sizes"]), Letters(), *settings, num_lanes=lanes)
        cache = write_or_open_cache(tmp_path / "text.arrow", corpora, Letters())
        return 1, lambda rank: CachedPools(cache, *settings)

    return make


same_folder = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@same_folder
@given(shape=shapes)
def test_one_epoch_shows_each_sentence_once_within_the_budget(maker, shape):
    lanes, make_pools = maker(shape)
    results = ranks(make_pools, shape["world"], workers=shape["workers"])
    seen = Counter(text for batch in sequence(results) for text in batch)
    assert seen == Counter(text for corpus in make_corpora(shape["sizes"]) for text in corpus.texts())
    assert len(set(map(len, results))) == 1
    for batch in (batch for result in results for batch in result):
        assert max(batch.src.numel(), batch.tgt_input.numel()) <= shape["budget"]
    assert all(result[-1].cursor == start_of(1, lanes) for result in results)
    assert sequence(results) == sequence(ranks(make_pools, 1))


@same_folder
@given(shape=shapes, stop=st.integers(1, 59), other_workers=st.integers(0, 3))
def test_resumed_equals_uninterrupted(maker, shape, stop, other_workers):
    _, make_pools = maker(shape)
    whole = ranks(make_pools, shape["world"], steps=60, workers=shape["workers"])
    start = joined([result[stop - 1].cursor for result in whole])
    rest = ranks(make_pools, shape["world"], start, 60 - stop, other_workers)
    assert [[texts(b) for b in result] for result in rest] == [[texts(b) for b in result[stop:]] for result in whole]
    assert [[b.cursor for b in result] for result in rest] == [[b.cursor for b in result[stop:]] for result in whole]


@same_folder
@given(shape=shapes, after=st.sampled_from([1, 2, 8]), data=st.data())
def test_another_number_of_processes_goes_on_in_the_epoch(maker, shape, after, data):
    _, make_pools = maker(shape)
    before = ranks(make_pools, shape["world"])
    stop = data.draw(st.integers(1, len(before[0])))
    start = joined([result[stop - 1].cursor for result in before])
    seen = sequence([result[:stop] for result in before])
    if start["epoch"] == 0:
        seen += sequence(ranks(make_pools, after, start))
    expected = Counter(text for corpus in make_corpora(shape["sizes"]) for text in corpus.texts())
    assert Counter(text for batch in seen for text in batch) == expected
