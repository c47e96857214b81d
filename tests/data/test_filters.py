"""Rows that training does without: filters of a corpus, and counts that survive a resume."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_transformer.data.batching import Ragged
from lit_transformer.data.corpus import ParallelCorpus
from lit_transformer.data.dropped import DroppedRows
from lit_transformer.data.filters import BadRowError, PairFilter
from lit_transformer.data.pools import Pool
from lit_transformer.interfaces import SentencePair


@pytest.mark.parametrize(
    ("settings", "pair", "verdict"),
    [
        ({}, ("a", "b " * 999), None),
        ({"max_words": 3}, ("a b c", "x"), None),
        ({"max_words": 3}, ("x", " a  b c\td"), "overlong"),
        ({"min_words": 2}, ("a b", "c"), "too short"),
        ({"max_chars": 4}, ("abcd", "나는사과"), None),
        ({"max_chars": 4}, ("abcde", "x"), "overlong"),
        ({"max_chars_ratio": 2.5}, ("abcde", "ab"), None),
        ({"max_chars_ratio": 2.5}, ("ab", "abcdef"), "ratio"),
        ({"allow_copies": False}, ("Open", "Open"), "copy"),
        ({"allow_copies": False}, ("Open", "열기"), None),
    ],
)
def test_verdicts(settings, pair, verdict):
    assert PairFilter(**settings).verdict(SentencePair(*pair)) == verdict


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_words": 0}, "min_words must be at least 1, got 0"),
        ({"max_chars_ratio": 0.5}, "max_chars_ratio must be at least 1, got 0.5"),
        ({"min_words": 5, "max_words": 4}, "max_words=4 is below min_words=5"),
    ],
)
def test_bad_bounds(settings, message):
    with pytest.raises(ValueError, match=message):
        PairFilter(**settings)


def test_a_corpus_examines_its_rows_and_evaluation_sees_them_all(tmp_path):
    (tmp_path / "a.en").write_text("one two\n\nthree\nfour five six\n")
    (tmp_path / "a.de").write_text("eins zwei\nleer\ndrei\nvier\n")
    corpus = ParallelCorpus(str(tmp_path / "a"), filter=PairFilter(max_words=2), src_tag="<2de>")
    rows = [row for chunk, _ in corpus.rows() for row in chunk]
    assert corpus.examine(rows[0]) == ("<2de> one two", "eins zwei")
    with pytest.raises(BadRowError, match=r"a, en-de\) has nothing in 'en': source '', target 'leer'") as caught:
        corpus.examine(rows[1])
    assert caught.value.reason == "empty"
    assert corpus.examine(rows[3]) == "overlong"
    assert [pair.src for pair in corpus] == ["<2de> one two", "", "<2de> three", "<2de> four five six"]
    for row, reason in (({"en": "x"}, "missing column"), ({"en": 3, "de": "x"}, "not text")):
        with pytest.raises(BadRowError) as caught:
            corpus.examine(row)
        assert caught.value.reason == reason


def test_filter_and_tag_change_the_fingerprint(tmp_path):
    for side in ("en", "de"):
        (tmp_path / f"a.{side}").write_text("x\n")
    settings = [{}, {"filter": PairFilter()}, {"filter": PairFilter(max_words=9)}, {"src_tag": "<2de>"}]
    prints = [ParallelCorpus(str(tmp_path / "a"), **given).fingerprint() for given in settings * 2]
    assert len(set(prints)) == 4
    assert prints[:4] == prints[4:]


def test_a_filter_with_objects_has_the_same_fingerprint_in_every_process():
    class Fluent(PairFilter):
        def __init__(self, threshold, words=("der", "die", "das"), **bounds):
            super().__init__(**bounds)
            self.model, self._seen, self.threshold, self.words = object(), 0, threshold, frozenset(words)
            self.models = [object()]

    first = Fluent(0.5)
    first._seen = 3
    assert first.fingerprint() == Fluent(0.5).fingerprint()
    name, settings = json.loads(json.dumps(first.fingerprint()))
    assert name.endswith("Fluent")
    assert settings.keys() == {*vars(PairFilter()), "threshold", "words"}
    others = [Fluent(0.6), Fluent(0.5, max_words=3), Fluent(0.5, ["der"]), PairFilter()]
    prints = [filter.fingerprint() for filter in (first, *others)]
    assert all(prints.count(found) == 1 for found in prints)


FINGERPRINT = """
import sys
from lit_transformer.data import PairFilter, ParallelCorpus
class Wordy(PairFilter):
    def __init__(self):
        super().__init__(max_words=9)
        self.model, self.words = object(), set("abcdefgh")
print(ParallelCorpus(sys.argv[1], filter=Wordy()).fingerprint())
"""


def test_two_processes_agree_on_the_fingerprint_of_a_filtered_corpus(tmp_path):
    for side in ("en", "de"):
        (tmp_path / f"a.{side}").write_text("x\n")
    command = [sys.executable, "-c", FINGERPRINT, str(tmp_path / "a")]
    found = {
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": seed}).stdout
        for seed in "12"
    }
    assert len(found) == 1


@pytest.mark.parametrize("tag", ["2de", "<2 de>", "<>", "<->", "</s>", "<pad>", "<0x41>", "<a><b>", ""])
def test_a_tag_is_a_word_in_angle_brackets(tag):
    with pytest.raises(ValueError, match="tags must be words in angle brackets"):
        ParallelCorpus("a", src_tag=tag)


def pool(number, epoch=0):
    place = {"pool": number, "batch": 0, "sources": None}
    return Pool(epoch, 0, place, Ragged([]), Ragged([]), [], Counter({"empty": 1, f"of {number}": 1}))


def at(number, batch, epoch=0):
    return {"epoch": epoch, "turn": 0, "lanes": [{"pool": number, "batch": batch, "sources": None}]}


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2)), max_size=5))
def test_counts_are_the_same_however_often_a_run_is_resumed(ahead, stops):
    """Each start reads the pool that it stands in again, and some more than it trains on."""
    whole = DroppedRows()
    for number in range(12):
        whole.begin(pool(number % 4, number // 4), at(0, 0))
    expected = whole.up_to(at(0, 0, 3))
    assert expected == {"empty": 12, **{f"of {number}": 3 for number in range(4)}}
    counts, place = Counter(), at(0, 0)
    for number, batch in sorted([*stops, (12, 0)]):
        dropped = DroppedRows(dict(counts))
        first = place["epoch"] * 4 + place["lanes"][0]["pool"]
        for read in range(first, min(12, number + ahead)):
            dropped.begin(pool(read % 4, read // 4), place)
        place = at(number % 4, batch, number // 4)
        counts = dropped.up_to(place)
    assert counts == expected
