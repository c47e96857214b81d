"""Mixing: shares that hold within a chunk, corpora that begin again, exact places, and one order on all lanes."""

import itertools
import json
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lanes import Numbers

from lit_transformer.data.corpus import CorpusError
from lit_transformer.data.cursor import lane_start
from lit_transformer.data.filters import BadRowError
from lit_transformer.data.memory import MemoryCorpus
from lit_transformer.data.mixing import MixedRows, Mixing

SIZES = st.lists(st.integers(1, 400), min_size=2, max_size=4)


def corpora(sizes):
    return [Numbers(size, "abcd"[number]) for number, size in enumerate(sizes)]


def lane_of(mixed, lane=0, place=None):
    return list(mixed.pools(place or lane_start(), lane))


def texts(pools, mixed):
    return [mixed.corpora[part.corpus].read_row(row).tgt for _, parts in pools for part in parts for row in part.rows]


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(5, 60), st.sampled_from([1, 2, 5]))
def test_by_default_each_row_comes_once(sizes, pool, lanes):
    mixed = MixedRows(corpora(sizes), pool, lanes)
    seen = [text for lane in range(lanes) for text in texts(lane_of(mixed, lane), mixed)]
    assert Counter(seen) == Counter(text for corpus in corpora(sizes) for text in corpus.texts())


@settings(max_examples=40, deadline=None)
@given(SIZES, st.data(), st.integers(5, 60), st.sampled_from([1, 3]))
def test_shares_hold_within_a_chunk_and_no_row_is_missed(sizes, data, pool, lanes):
    weights = data.draw(st.lists(st.sampled_from([0.5, 1, 2, 7]), min_size=len(sizes), max_size=len(sizes)))
    mixed = MixedRows(corpora(sizes), pool, lanes, Mixing(weights))
    seen: Counter[str] = Counter()
    for lane in range(lanes):
        drawn = [0] * len(sizes)
        for part in itertools.chain.from_iterable(parts for _, parts in lane_of(mixed, lane)):
            drawn[part.corpus] += len(part.rows)
            for count, weight in zip(drawn, weights, strict=True):
                assert count <= weight / sum(weights) * sum(drawn) + mixed.chunk
                assert count >= weight / sum(weights) * sum(drawn) - mixed.chunk * (len(sizes) - 1)
        seen.update(texts(lane_of(mixed, lane), mixed))
    assert set(seen) == {text for corpus in corpora(sizes) for text in corpus.texts()}
    if lanes == 1:  # the epoch is over when the last corpus is: that one was read exactly once
        assert min(max(seen[text] for text in corpus.texts()) for corpus in corpora(sizes)) == 1


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(5, 60), st.sampled_from([1, 3]), st.sampled_from([Mixing(), Mixing(temperature=3)]))
def test_a_resumed_lane_goes_on_as_the_uninterrupted_one(sizes, pool, lanes, mixing):
    mixed = MixedRows(corpora(sizes), pool, lanes, mixing)
    for lane in range(lanes):
        whole = lane_of(mixed, lane)
        for number, (place, _) in enumerate(whole):
            again = MixedRows(corpora(sizes), pool, lanes, mixing)
            assert lane_of(again, lane, json.loads(json.dumps(place))) == whole[number:]
            assert len(json.dumps(place)) < 150 * (len(sizes) + 1)


def test_temperature_is_the_root_of_the_sizes():
    sizes = [10_000, 100, 1]
    for temperature in (1.0, 2.0, 5.0, math.inf):
        got = Mixing(temperature=temperature).shares(corpora(sizes))
        assert got == pytest.approx([size ** (1 / temperature) for size in sizes])
    assert not Mixing(temperature=1).repeats


class Untold(Numbers):
    """A stream that does not tell its size."""

    def approximate_rows(self):
        return None


def test_a_temperature_needs_sizes():
    mixing, unknown = Mixing(temperature=2), [Numbers(400, "a"), Untold(400, "b")]
    with pytest.raises(CorpusError, match=r"^the size of Untold\(numbers, en-de\) is not known: give weights instead"):
        lane_of(MixedRows(unknown, 10, 1, mixing))
    assert mixing.shares(unknown, [400, 100]) == [20, 10]
    assert mixing.shares(unknown, [400, 0]) == [20, 1]
    assert Mixing([3, 1]).shares(unknown) == [3, 1]


def test_by_default_an_unknown_size_is_guessed_and_each_row_comes_once():
    unknown = [Untold(300, "a"), Numbers(90, "b"), Untold(60, "c")]
    unknown[2].max_rows = 60
    assert Mixing().shares(unknown) == [1_000_000, 90, 60]
    mixed = MixedRows(unknown, 50)
    seen = Counter(texts(lane_of(mixed), mixed))
    assert seen == Counter(text for corpus in unknown for text in corpus.texts())


def test_passes_of_a_small_corpus_share_its_rows_among_the_lanes():
    mixed = MixedRows(corpora([3000, 40]), 10, 4, Mixing([1, 1]))
    for lane in range(4):
        seen = Counter(text for text in texts(lane_of(mixed, lane), mixed) if text.startswith("b"))
        assert len(seen) == 40  # also in the lanes that have no part of so few rows
        assert max(seen.values()) - min(seen.values()) <= 1


@pytest.mark.parametrize("lanes", [1, 2])
def test_of_all_bad_rows_only_the_first_of_a_corpus_stops_a_run_that_skips_them(lanes):
    rows = [{"en": f"a{number}", "de": f"b{number}"} for number in range(30)]
    for bad in (10, 20):  # each begins a chunk
        del rows[bad]["de"]
    left = Counter(f"a{number}" for number in range(30) if number not in (10, 20))
    assert MixedRows([MemoryCorpus(rows)], 10, lanes).chunk == 10
    for mixing in (Mixing(), Mixing([1])):
        mixed = MixedRows([MemoryCorpus(rows)], 10, lanes, mixing)
        assert set(pair.src for pair in mixed.pairs()) == set(left)
    assert Counter(pair.src for pair in MixedRows([MemoryCorpus(rows)], 10, lanes).pairs()) == left
    with pytest.raises(BadRowError, match="has no column 'de'"):
        list(MixedRows([MemoryCorpus(rows[10:])], 10, lanes).pairs())


@pytest.mark.parametrize("lanes", [1, 4])
def test_an_empty_corpus_is_an_error_and_no_endless_loop(lanes):
    mixed = MixedRows(corpora([50, 0]), 10, lanes, Mixing([1, 1]))
    with pytest.raises(CorpusError, match="is empty"):
        lane_of(mixed, lanes - 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 0.0],), r"weights must be numbers above 0, one for each corpus, got \[1.0, 0.0\]"),
        (([float("inf"), 1.0],), r"weights must be numbers above 0, one for each corpus, got \[inf, 1.0\]"),
        (([],), r"weights must be numbers above 0, one for each corpus, got \[\]"),
        ((None, 0.5), "temperature must be at least 1, got 0.5"),
        ((None, math.nan), "temperature must be at least 1"),
        (([1.0, 2.0], 3.0), "give either weights or temperature=3.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixing(*arguments)
