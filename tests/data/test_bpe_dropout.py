"""BPE dropout: the algorithm of its paper, and a stream that is the same wherever and whenever it is read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from test_datamodule import make_data, run, same_weights, write_corpus

from lit_transformer.data.bpe_dropout import BPEDropout, Units
from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import InputError, SentencePair

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # these runs share a folder on purpose
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

TEXTS = ["the lower lowest newest widest lows", "newer news, wider  wide: don't </s>", "日本 slow slower 12345", ""]


@pytest.fixture(scope="module")
def tokenizer() -> SubwordTokenizer:
    made = SubwordTokenizer(vocab_size=340, min_frequency=1, character_coverage=0.99, tags=["<2de>"])
    made.train([SentencePair(one, other) for one in TEXTS[:2] for other in TEXTS[:3]])
    return made


def segmented(tokenizer: SubwordTokenizer, probability: float, texts: list[str], seed: str = "1") -> list[list[int]]:
    return BPEDropout(tokenizer, probability)(Units(tokenizer.units(texts, "tgt")), "tgt", seed)


def test_units_joined_are_the_ids_of_the_tokenizer(tokenizer: SubwordTokenizer) -> None:
    texts = ["<2de> the lowest", *TEXTS]
    for side, encode in (("src", tokenizer.encode_src), ("tgt", tokenizer.encode_tgt)):
        joined = [[i for unit in sentence for i in unit] for sentence in tokenizer.units(texts, side)]
        assert joined == encode(texts)


def test_without_dropout_it_is_byte_pair_encoding(tokenizer: SubwordTokenizer) -> None:
    assert segmented(tokenizer, 0.0, TEXTS) == tokenizer.encode_tgt(TEXTS)
    texts = ["<2de> slower news", *TEXTS]
    units = Units(tokenizer.units(texts, "src"))
    assert BPEDropout(tokenizer, 0.0)(units, "src", "1") == tokenizer.encode_src(texts)


def test_with_certain_dropout_words_are_spelled(tokenizer: SubwordTokenizer) -> None:
    (ids,) = segmented(tokenizer, 1.0, ["the lowest"])
    assert tokenizer.pieces_tgt(ids) == ["<s>", "▁", *"the", "▁", *"lowest", "</s>"]


def test_the_text_stays_the_same_and_its_cuts_change(tokenizer: SubwordTokenizer) -> None:
    seen = set()
    for seed in range(20):
        rows = segmented(tokenizer, 0.3, TEXTS, str(seed))
        assert tokenizer.decode_batch(rows) == TEXTS
        seen.add(str(rows))
    assert len(seen) == 20


def chances(ids: tuple[int, ...], rules: dict, probability: float) -> Counter:
    """The chance of each cut, by following every branch of algorithm 1: a merge survives, or all are passed over."""
    possible = sorted((*rules[pair], place) for place, pair in enumerate(pairwise(ids)) if pair in rules)
    found: Counter = Counter()
    for passed, (_, made, place) in enumerate(possible):
        chance = probability**passed * (1 - probability)
        after = (*ids[:place], made, *ids[place + 2 :])
        for cut, further in chances(after, rules, probability).items():
            found[cut] += chance * further
    found[ids] += probability ** len(possible)
    return found


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_cuts_are_as_frequent_as_the_algorithm_says(tokenizer: SubwordTokenizer, probability: float) -> None:
    dropout, draw, count = BPEDropout(tokenizer, probability), random.Random(7).random, 20_000
    unit = tokenizer.units(["lowest"], "tgt")[0][1]
    (spelled,) = [BPEDropout(tokenizer, 1.0).cut(unit, "tgt", draw)]
    expected = chances(spelled, tokenizer.merges("tgt"), probability)
    assert sum(expected.values()) == pytest.approx(1)
    assert len(expected) > 3
    got = Counter(dropout.cut(unit, "tgt", draw) for _ in range(count))
    assert got.keys() <= expected.keys()
    for cut, chance in expected.items():
        deviation = (chance * (1 - chance) / count) ** 0.5
        assert got[cut] / count == pytest.approx(chance, abs=5 * deviation + 1e-4)


def literally(ids: list[int], rules: dict, probability: float, draw: Callable[[], float]) -> tuple[int, ...]:
    """Algorithm 1 as it is written: all possible merges are looked at before each one."""
    while True:
        possible = sorted((*rules[pair], place) for place, pair in enumerate(pairwise(ids)) if pair in rules)
        kept = next((merge for merge in possible if draw() >= probability), None)
        if kept is None:
            return tuple(ids)
        ids = [*ids[: kept[2]], kept[1], *ids[kept[2] + 2 :]]


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.6])
def test_long_units_are_cut_as_the_algorithm_says(tokenizer: SubwordTokenizer, probability: float) -> None:
    """Words of repeated parts, whose merges overlap; the same numbers are drawn for the same merges."""
    dropout, source = BPEDropout(tokenizer, probability), random.Random(3)
    for length in (2, 9, 60):
        word = "".join(source.choice(["lowest", "newer", "l", "o", "west", "eee"]) for _ in range(length))
        unit = tokenizer.units([word], "tgt")[0][1]
        (spelled,) = [BPEDropout(tokenizer, 1.0).cut(unit, "tgt", source.random)]
        expected = literally(list(spelled), tokenizer.merges("tgt"), probability, random.Random(length).random)
        assert len(expected) < len(spelled)
        assert dropout.cut(unit, "tgt", random.Random(length).random) == expected


def test_the_variants_of_a_word_are_as_frequent_on_average(tokenizer: SubwordTokenizer) -> None:
    """Over many seeds, so over many times 64 variants, the best cut keeps its chance."""
    units = tokenizer.units(["lowest"] * 200, "tgt")
    best, spelled = units[0][1], BPEDropout(tokenizer, 1.0).cut(units[0][1], "tgt", random.random)
    chance = chances(spelled, tokenizer.merges("tgt"), 0.2)[best]
    rows = [row for seed in range(60) for row in BPEDropout(tokenizer, 0.2, seed)(Units(units), "tgt", str(seed))]
    share = sum(tuple(row[1:-1]) == best for row in rows) / len(rows)
    assert share == pytest.approx(chance, abs=0.04)


def test_each_side_has_cuts_of_its_own() -> None:
    """In two vocabularies the same id is ``ab`` here and ``ba`` there, words that occur on both sides."""
    src, tgt = "ab ba aab", "ba ab bba"
    made = SubwordTokenizer(joint=False, vocab_size=300, src_vocab_size=300, min_frequency=1)
    made.train([SentencePair(src, tgt)] * 3)
    texts = {"src": [" ".join([src] * 99)], "tgt": [" ".join([tgt] * 99)]}  # so that each cut is taken
    units = {side: made.units(texts[side], side) for side in texts}
    shared = {unit for unit in units["src"][0] if unit in units["tgt"][0]}
    assert any(made.pieces_src(unit) != made.pieces_tgt(unit) for unit in shared)
    dropout = BPEDropout(made, 0.3)
    (src_ids,), (tgt_ids,) = (dropout(Units(units[side]), side, "1") for side in texts)
    assert [made.decode_src(src_ids)] == texts["src"]
    assert [made.decode(tgt_ids)] == texts["tgt"]
    assert [tgt_ids] == BPEDropout(made, 0.3)(Units(units["tgt"]), "tgt", "1")


@pytest.mark.parametrize("model", ["unigram", "word"])
def test_other_models_are_refused(model: str) -> None:
    other = SubwordTokenizer(model=model, vocab_size=400, min_frequency=1)
    other.train([SentencePair("a cat and a dog", "eine Katze und ein Hund")] * 3)
    with pytest.raises(InputError, match=f"needs a tokenizer of the bpe model, this one is {model}"):
        BPEDropout(other, 0.1)


def test_out_of_range_and_with_a_cache_it_is_refused(tokenizer: SubwordTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"between 0 and 1, got 1\.5"):
        BPEDropout(tokenizer, 1.5)
    with pytest.raises(ValueError, match=r"between 0 and 1, got -0\.1"):
        make_data(tmp_path, bpe_dropout=-0.1)
    with pytest.raises(ValueError, match="which a cache of ids cannot"):
        make_data(tmp_path, bpe_dropout=0.1, cache_path="cache.arrow")


SETTINGS = {"bpe_dropout": 0.2}


def test_every_epoch_reads_the_same_text_in_other_subwords(tmp_path: Path) -> None:
    val = write_corpus(tmp_path, 20, "val")
    module, data = run(tmp_path, data_settings={**SETTINGS, "val": val}, max_epochs=2)
    first, second = module.seen[:230], module.seen[230:]
    texts = [set(data.tokenizer.decode_batch(rows)) for rows in (first, second)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == len(second) == 230
    assert len(set(first) & set(second)) < 60
    plain = {tuple(ids) for ids in data.tokenizer.encode_tgt(sorted(texts[0]))}
    assert not set(first) <= plain


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2)])
def test_a_resumed_run_cuts_as_one_that_never_stopped(tmp_path: Path, before: int, after: int) -> None:
    whole, _ = run(tmp_path, data_settings={**SETTINGS, "num_workers": before}, max_steps=50)
    settings = {**SETTINGS, "num_workers": after}
    resumed, _ = run(tmp_path, "again", tmp_path / "whole/step=31.ckpt", data_settings=settings, max_steps=50)
    assert resumed.steps_seen == whole.steps_seen[31:]
    assert resumed.losses == whole.losses[31:]
    assert same_weights(whole, resumed)


def test_pairs_that_would_get_too_long_keep_their_cut(tmp_path: Path) -> None:
    settings = {"bpe_dropout": 1.0, "max_length": 40, "max_tokens": 60}
    module, data = run(tmp_path, data_settings=settings, max_epochs=1)
    plain, _ = run(tmp_path, "plain", data_settings={**settings, "bpe_dropout": 0.0}, max_epochs=1)
    assert len(module.seen) == len(plain.seen)  # none is lost
    assert max(map(len, module.seen)) <= 41
    assert set(module.seen) & set(plain.seen)
    assert all(sum(map(len, step)) <= 60 + len(step) for step in module.steps_seen)
    assert data.dropped == Counter()


def test_resuming_needs_the_same_probability(tmp_path: Path) -> None:
    run(tmp_path, max_steps=2)
    with pytest.raises(InputError, match=r"bpe_dropout was 0\.0 and is 0\.2"):
        run(tmp_path, "again", tmp_path / "whole/step=2.ckpt", data_settings=SETTINGS, max_steps=4)
