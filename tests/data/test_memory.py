"""Text in memory as a corpus: lists, loaded datasets, and what they must be like."""

import datasets
import pytest

from lit_transformer.data import CorpusError, MemoryCorpus, PairFilter, ParallelCorpus, TranslationDataModule
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
        ([("a", "b"), ("c",)], {}, r"row 1 in memory is \('c',\), expected en and de, or a mapping with columns"),
        ([("a", "b"), 3], {}, r"row 1 in memory is 3, expected en and de"),
        (["a", "b"], {}, r"row 0 in memory is 'a', expected en and de"),
        ([("a", "b")], {"tgt": None}, r"row 0 in memory is \('a', 'b'\), expected a sentence"),
        ([], {}, r"MemoryCorpus\(text in memory, en-de\) is empty"),
        ([{"english": "a", "de": "b"}], {}, r"no column 'en', there are english, de"),
    ],
)
def test_bad_rows_are_named(rows, settings, message):
    with pytest.raises((CorpusError, ValueError), match=message):
        list(MemoryCorpus(rows, **settings))


@pytest.mark.parametrize(
    "rows", ["text", {"en": ["a"], "de": ["b"]}, iter(PAIRS), datasets.IterableDataset.from_generator(lambda: PAIRS)]
)
def test_what_is_no_list_is_refused(rows):
    with pytest.raises(CorpusError, match="rows must be a list or a dataset with a length, got"):
        MemoryCorpus(rows)
