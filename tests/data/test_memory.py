"""Text in memory as a corpus: lists, loaded datasets, and what they must be like."""

import hashlib
import json
from collections import deque

import datasets
import pandas
import pytest

from lit_transformer.data import (
    CorpusError,
    MemoryCorpus,
    PairFilter,
    ParallelCorpus,
    TeachingCorpus,
    TranslationDataModule,
)
from lit_transformer.interfaces import SentencePair

PAIRS = [(f"cat number {n} sleeps", f"Katze Nummer {n} schläft") for n in range(50)]
KINDS = {
    "tuples": PAIRS,
    "lists": [list(pair) for pair in PAIRS],
    "pairs": [SentencePair(*pair) for pair in PAIRS],
    "mappings": [{"en": en, "de": de, "id": 3} for en, de in PAIRS],
    "translations": [{"translation": {"en": en, "de": de}} for en, de in PAIRS],
    "dataset": datasets.Dataset.from_dict({"en": [en for en, _ in PAIRS], "de": [de for _, de in PAIRS]}),
    "nested dataset": datasets.Dataset.from_list([{"translation": {"en": en, "de": de}} for en, de in PAIRS]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_pairs(kind):
    corpus = MemoryCorpus(KINDS[kind])
    assert list(corpus) == PAIRS
    assert corpus.approximate_rows() == len(PAIRS)
    assert [corpus.read_row(row) for rows, _ in corpus.rows(size=7) for row in rows] == PAIRS


@pytest.mark.parametrize("kind", ["tuples", "dataset"])
def test_reading_goes_on_at_any_place_and_in_lanes(kind):
    corpus = MemoryCorpus(KINDS[kind], max_rows=45)
    places = [state for _, state in corpus.rows(size=7)]
    for number, state in enumerate(places, 1):
        rest = [corpus.read_row(row) for rows, _ in corpus.rows(state, size=7) for row in rows]
        assert rest == PAIRS[7 * number : 45]
    lanes = [
        [corpus.read_row(row) for rows, _ in corpus.rows(size=7, lane=lane, num_lanes=2) for row in rows]
        for lane in (0, 1)
    ]
    assert sorted(lanes[0] + lanes[1]) == sorted(PAIRS[:45])
    assert min(map(len, lanes)) > 14


def test_sentences_without_translations():
    assert list(MemoryCorpus(["one", "two"], tgt=None)) == [("one", ""), ("two", "")]


def test_filter_and_tag():
    corpus = MemoryCorpus([("a b c", "d"), ("a", "b")], filter=PairFilter(max_words=2), src_tag="<2de>")
    assert [corpus.examine(row) for rows, _ in corpus.rows() for row in rows] == ["overlong", ("<2de> a", "b")]


def test_the_fingerprint_tells_texts_apart():
    changed = [*PAIRS[:30], ("another", "eine andere"), *PAIRS[31:]]
    marks = [MemoryCorpus(rows).fingerprint() for rows in (PAIRS, changed, PAIRS[:-1])]
    assert len(set(marks)) == 3
    assert MemoryCorpus(list(PAIRS)).fingerprint() == marks[0]
    assert MemoryCorpus(PAIRS, src="de", tgt="en").fingerprint() != marks[0]


def test_training_on_a_list_is_training_on_the_same_file(tmp_path):
    for place, language in enumerate(("en", "de")):
        (tmp_path / f"train.{language}").write_text("".join(f"{pair[place]}\n" for pair in PAIRS))
    seen = []
    for corpus in (MemoryCorpus(PAIRS), ParallelCorpus(str(tmp_path / "train"))):
        data = TranslationDataModule(corpus, vocab_size=300, max_tokens=60, tokenizer_path=str(tmp_path / "tok.json"))
        data.prepare_data()
        data.setup("fit")
        seen.append([batch.tgt.tolist() for batch in data.train_dataloader()])
        (tmp_path / "tok.json").unlink()
    assert seen[0] == seen[1]
    assert len(seen[0]) > 5


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([("a", "b"), ("c",)], {}, r"no column 'de', there are en"),
        ([("a", "b"), 3], {}, r"column 'en' of MemoryCorpus\(text in memory, en-de\) holds int"),
        ([(7, "a", "b")], {}, r"no column 'en', there are 3 fields"),
        (["a", "b"], {}, r"no column 'de', there are en"),
        ([("a", "b")], {"tgt": None}, r"no column 'en', there are 2 fields"),
        ([], {}, r"MemoryCorpus\(text in memory, en-de\) is empty"),
        ([{"english": "a", "de": "b"}], {}, r"no column 'en', there are english, de"),
    ],
)
def test_bad_rows_are_named(rows, settings, message):
    with pytest.raises((CorpusError, ValueError), match=message):
        list(MemoryCorpus(rows, **settings))


FRAME = pandas.DataFrame(PAIRS, columns=["en", "de"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("text", r"got str: list\(rows\) may make one"),
        (iter(PAIRS), r"got list_iterator: list\(rows\)"),
        (deque(PAIRS), r"got deque: list\(rows\)"),
        (datasets.IterableDataset.from_generator(lambda: PAIRS), r"got IterableDataset: list\(rows\)"),
        ({"en": ["a"], "de": ["b"]}, r"got dict: choose a part of it, such as rows\['en'\]"),
        (
            datasets.DatasetDict({"train": KINDS["dataset"]}),
            r"got DatasetDict: choose a part of it, such as rows\['train'\]",
        ),
        (FRAME, r'got DataFrame: rows.to_dict\("records"\) makes one'),
        (FRAME.to_numpy(), r"got ndarray: rows.tolist\(\) makes one"),
    ],
)
def test_what_is_no_list_is_refused(rows, message):
    with pytest.raises(CorpusError, match=f"rows must be a list of pairs or a loaded dataset, {message}"):
        MemoryCorpus(rows)


def test_other_columns_do_not_change_the_text():
    def rows(value):
        return [{"en": en, "de": de, "other": value, ("a", 1): 2} for en, de in PAIRS]

    marks = {MemoryCorpus(rows(value)).fingerprint() for value in (object(), object())}
    assert len(marks) == 1


def test_rows_of_another_shape_are_left_out_and_counted(tmp_path):
    rows = [*PAIRS, ("only",), None, (1, "two", "three"), {"en": "four"}]
    data = TranslationDataModule(MemoryCorpus(rows), vocab_size=300, max_tokens=60, tokenizer_path=str(tmp_path / "t"))
    data.prepare_data()
    data.setup("fit")
    assert sum(len(batch) for batch in data.train_dataloader()) == len(PAIRS)
    assert data.dropped.total() == 4


def test_the_teaching_text_keeps_the_mark_of_its_first_release():
    assert TeachingCorpus("validation").open().fingerprint() == [
        hashlib.sha256(
            json.dumps([{"en": en, "ko": ko} for en, ko in TeachingCorpus("validation")]).encode()
        ).hexdigest()
    ]


def test_several_are_told_apart_by_their_labels():
    talks, news = (MemoryCorpus([("a", "b")], label=label) for label in ("talks", "news"))
    assert (talks.label, news.label) == ("talks", "news")
    assert str(news) == "MemoryCorpus(news, en-de)"
    assert MemoryCorpus([("a", "b")], label="en-de/news").label == "en-de/news"
    with pytest.raises(ValueError, match="label must name the text"):
        MemoryCorpus([("a", "b")], label=" ")
    assert MemoryCorpus([("a", "b")]).label == "text in memory"
