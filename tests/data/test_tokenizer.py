import copy
import json
import logging
import multiprocessing
import os
import pickle
import unicodedata
from collections import Counter
from itertools import combinations, pairwise
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lit_transformer.data.tokenizer import SubwordTokenizer
from lit_transformer.interfaces import InputError, SentencePair
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS, UNK_ID

PAIRS = [
    SentencePair("A man rides a red bike.", "Ein Mann fährt ein rotes Fahrrad."),
    SentencePair("The man reads the paper.", "Der Mann liest die Zeitung."),
    SentencePair("A dog runs in the park.", "Ein Hund rennt im Park."),
    SentencePair("The dogs like the park.", "Die Hunde mögen den Park."),
    SentencePair("L'homme lit le journal.", "남자가 신문을 읽는다."),
    SentencePair("L'été, le chien aime l'eau.", "여름에 개는 물을 좋아한다."),
    SentencePair("He types <pad> and </s> and <0x41>.", "Er tippt <pad> und </s> und <0x41>."),
] * 3
LOSSLESS = ["bpe", "unigram"]
ALL = [*LOSSLESS, "wordpiece", "word"]

HARD_TEXTS = [
    "A man reads.",
    "Fährt der Übermüdete größere Straßen?",
    "L'été, où l’œuvre naît « çà et là »",
    "남자가 신문을 읽는다.",
    unicodedata.normalize("NFD", "남자가 뷁을 읽는다, déjà"),
    "👨‍👩‍👧‍👦 ❤️ 🏴󠁧󠁢󠁳󠁣󠁴󠁿 🇩🇪🇰🇷🇫🇷 👍🏽",
    "می‌خواهم क्षेत्र ไทย 漢字かな",
    "tab\there",
    "many     spaces   ",
    "   leading",
    " one leading",
    "trailing ",
    " ",
    "  ",
    "",
    "two\nlines\r\nand \n more",
    "\u00a0no break\u3000wide\u2028line",
    "a ▁ literal▁mark",
    "<pad> </s> <unk><s> <0x41><0x00>",
    "</s>",
    "<unk>",
    "<0xEC>",
    "##ing ## @@ #",
    "\x00\x01\x7f\ufffd\ufffe",
    "12345678901234567890 3.14 1,000",
    "https://example.org/a?b=c&d=<e>",
    "x" * 3000,
    " " * 3000,
    "'tis 'quoted' don't rock'n'roll '",
]


def trained(model="bpe", vocab_size=400, **arguments):
    tokenizer = SubwordTokenizer(model, vocab_size, **arguments)
    tokenizer.train(PAIRS)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    return {model: trained(model) for model in ALL}


def model_of(tokenizer):
    return json.loads(tokenizer.to_state()["tokenizers"]["tgt"])["model"]


@pytest.mark.parametrize("text", HARD_TEXTS)
@pytest.mark.parametrize("model", LOSSLESS)
def test_decoding_gives_back_the_normalised_text(tokenizers, model, text):
    tokenizer = tokenizers[model]
    ids = tokenizer.encode_tgt([text])[0]
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert tokenizer.decode_src(tokenizer.encode_src([text])[0]) == unicodedata.normalize("NFC", text)
    assert ids[0] == BOS_ID
    assert ids[-1] == EOS_ID
    assert all(len(SPECIAL_TOKENS) <= i < 400 for i in ids[1:-1])


@pytest.mark.parametrize("model", LOSSLESS)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
@example(text="̧ࢗ́")  # a mark younger than the tables of many normalisers
def test_decoding_gives_back_any_text(tokenizers, model, text):
    tokenizer = tokenizers[model]
    ids = tokenizer.encode_tgt([text])[0]
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert len(tokenizer.pieces_tgt(ids)) == len(ids)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=sorted(set("".join(map("".join, PAIRS)))), max_size=30))
def test_word_pieces_lose_nothing_of_known_characters(tokenizers, text):
    tokenizer = tokenizers["wordpiece"]
    assert tokenizer.decode(tokenizer.encode_tgt([text])[0]) == text


@pytest.mark.parametrize(
    ("model", "text", "expected"),
    [
        ("wordpiece", "A  dog\t§ reads", "A  dog <unk> <unk> reads"),
        ("word", "The  man sleeps in the park.", "The <unk> man <unk> in the park."),
    ],
)
def test_what_the_other_models_lose_is_marked(tokenizers, model, text, expected):
    ids = tokenizers[model].encode_tgt([text])[0]
    assert tokenizers[model].decode(ids) == expected
    assert ids.count(UNK_ID) == expected.count("<unk>")


@pytest.mark.parametrize("model", ALL)
@pytest.mark.parametrize("spelling", [*SPECIAL_TOKENS, "<0x41>"])
def test_typed_special_tokens_stay_text(tokenizers, model, spelling):
    """The corpus spells some of them often enough to be learned as pieces, which must not happen."""
    tokenizer = tokenizers[model]
    for text in (spelling, f"a{spelling}b", f" {spelling} ", spelling * 2):
        inner = tokenizer.encode_tgt([text])[0][1:-1]
        forbidden = {PAD_ID, BOS_ID, EOS_ID}
        if model in LOSSLESS:
            forbidden |= {UNK_ID, model_ids(tokenizer)["<0x41>"]}
        assert not forbidden & set(inner)


def model_ids(tokenizer):
    vocab = model_of(tokenizer)["vocab"]
    return vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}


@pytest.mark.parametrize("convert", [torch.tensor, np.array, tuple])
def test_ids_of_a_tensor_or_an_array_read_as_those_of_a_list(tokenizers, convert):
    tokenizer = tokenizers["bpe"]
    ids = [*tokenizer.encode_tgt(["ein Hund"])[0], PAD_ID, PAD_ID]
    assert tokenizer.decode(convert(ids)) == tokenizer.decode(ids) == "ein Hund"
    assert tokenizer.decode_src(convert(ids)) == tokenizer.decode_src(ids)
    assert tokenizer.decode_batch(convert([ids, ids])) == ["ein Hund"] * 2
    assert tokenizer.pieces_tgt(convert(ids)) == tokenizer.pieces_tgt(ids)
    with pytest.raises(ValueError, match="ids must be 0 or more, got -1"):
        tokenizer.decode(convert([5, -1]))


@pytest.mark.parametrize("model", ALL)
def test_special_ids_are_fixed(tokenizers, model):
    tokenizer = tokenizers[model]
    assert tokenizer.pieces_tgt([PAD_ID, UNK_ID, BOS_ID, EOS_ID]) == ["<pad>", "<unk>", "<s>", "</s>"]
    assert tokenizer.encode_src([""]) == [[EOS_ID]]
    assert tokenizer.encode_tgt([""]) == [[BOS_ID, EOS_ID]]
    ids = tokenizer.encode_tgt(["A man"])[0]
    assert tokenizer.decode([*ids, PAD_ID, PAD_ID]) == tokenizer.decode(ids[1:-1]) == "A man"
    assert tokenizer.encode_src(["A man", "The dogs"]) == [ids[1:], tokenizer.encode_src(["The dogs"])[0]]


def test_bpe_merges_the_most_frequent_pair_first():
    """Sennrich et al. 2016, algorithm 1, written out on a random corpus where no two best pairs tie."""
    random = Random(2)
    words = {"".join(random.choices("abcd", k=random.randint(3, 9))): random.randint(1, 100) for _ in range(60)}
    tokenizer = SubwordTokenizer(vocab_size=4 + 256 + 5 + 30)  # a space, four letters, thirty merges
    tokenizer.train(SentencePair(word, word) for word, count in words.items() for _ in range(count))

    pieces, merges = {word: [" ", *word] for word in words}, []
    for _ in range(30):
        counts = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                counts[pair] += words[word]
        (best, count), (_, next_count) = counts.most_common(2)
        assert count > next_count  # else either may be taken, and this test needs another seed
        merges.append(list(best))
        pieces = {word: merge(parts, best) for word, parts in pieces.items()}
    assert model_of(tokenizer)["merges"] == merges
    for word, parts in pieces.items():
        assert tokenizer.pieces_src(tokenizer.encode_src([word])[0])[:-1] == [p.replace(" ", "▁") for p in parts]


def merge(parts, pair):
    merged, i = [], 0
    while i < len(parts):
        step = 2 if tuple(parts[i : i + 2]) == pair else 1
        merged.append("".join(parts[i : i + step]))
        i += step
    return merged


def segmentations(word):
    for size in range(len(word)):
        for cuts in combinations(range(1, len(word)), size):
            borders = [0, *cuts, len(word)]
            yield [word[i:j] for i, j in pairwise(borders)]


@pytest.mark.parametrize("word", ["man", "dogs", "Hunde", "Fahrrad"])
def test_unigram_takes_the_likeliest_segmentation(tokenizers, word):
    scores = dict(model_of(tokenizers["unigram"])["vocab"])
    likelihoods = [
        sum(scores[piece] for piece in cut)
        for cut in segmentations(f" {word}")
        if all(piece in scores for piece in cut)
    ]
    found = [
        piece.replace("▁", " ")
        for piece in tokenizers["unigram"].pieces_tgt(tokenizers["unigram"].encode_tgt([word])[0][1:-1])
    ]
    assert sum(scores[piece] for piece in found) == pytest.approx(max(likelihoods))


@pytest.mark.parametrize("word", ["dogs", "Parkhund", "reader"])
def test_word_pieces_are_the_longest_that_match(tokenizers, word):
    vocab, rest, expected = model_ids(tokenizers["wordpiece"]), f" {word}", []
    while rest:
        longest = next(rest[:end] for end in range(len(rest), 0, -1) if rest[:end] in vocab)
        expected.append(vocab[longest])
        rest = rest[len(longest) :]
    assert tokenizers["wordpiece"].encode_tgt([word])[0][1:-1] == expected


def test_word_vocabulary_is_the_most_frequent_words():
    tokenizer = SubwordTokenizer("word", vocab_size=4 + 2)
    tokenizer.train([SentencePair("the cat the dog", "the cat the bird")])
    assert list(model_ids(tokenizer)) == [*SPECIAL_TOKENS, " the", " cat"]


@pytest.mark.parametrize("model", ALL)
def test_training_twice_gives_the_same_file(tmp_path, model):
    for name in ("one", "two"):
        trained(model).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_fingerprint_tells_vocabularies_and_recipes_apart(tokenizers):
    same = trained()
    other_data = SubwordTokenizer("bpe", 400)
    other_data.train(PAIRS[:3])
    prints = {
        t.fingerprint for t in (trained(vocab_size=300), other_data, trained(lowercase=True), *tokenizers.values())
    }
    assert len(prints) == 7
    assert same.fingerprint == tokenizers["bpe"].fingerprint in prints


@pytest.mark.parametrize("model", ALL)
@pytest.mark.parametrize("joint", [True, False])
def test_every_id_is_below_the_promised_size(model, joint):
    least = 261 if model in LOSSLESS else 5
    for size in (256 + 4 + 64 if model == "unigram" else least, 330, 2000):
        tokenizer = trained(model, size, joint=joint)
        assert tokenizer.vocab_size == tokenizer.tgt_vocab_size == tokenizer.src_vocab_size == size
        assert tokenizer.num_tokens <= size
        assert tokenizer.num_src_tokens <= size
        rows = tokenizer.encode_src(HARD_TEXTS) + tokenizer.encode_tgt(HARD_TEXTS)
        assert max(map(max, rows)) < size
        if model in LOSSLESS:
            assert tokenizer.decode_batch(tokenizer.encode_tgt(HARD_TEXTS)) == [
                unicodedata.normalize("NFC", text) for text in HARD_TEXTS
            ]
    assert tokenizer.num_tokens < size  # the corpus is too small for 2000
    assert tokenizer.decode([size - 1]) == ""
    assert tokenizer.pieces_tgt([size - 1]) == [f"<{size - 1}>"]


def test_joint_sides_share_ids_and_separate_sides_do_not():
    joint = trained()
    assert joint.encode_src(["Der Park"])[0] == joint.encode_tgt(["Der Park"])[0][1:]
    separate = trained("word", 40, src_vocab_size=30, joint=False)
    assert (separate.src_vocab_size, separate.tgt_vocab_size) == (30, 40)
    assert separate.num_src_tokens <= 30
    assert separate.decode(separate.encode_tgt(["Der Hund"])[0]) == "Der Hund"
    assert separate.decode_src(separate.encode_src(["The Hund"])[0]) == "The <unk>"
    assert separate.pieces_src(separate.encode_src(["The park"])[0]) == ["▁The", "▁park", "</s>"]
    assert separate.pieces_tgt(separate.encode_tgt(["Der Park"])[0]) == ["<s>", "▁Der", "▁Park", "</s>"]


def test_separate_sides_learn_from_one_pass_over_a_stream():
    seen = []

    def stream():
        for pair in PAIRS:
            seen.append(pair)
            yield pair

    tokenizer = SubwordTokenizer("word", 100, joint=False)
    tokenizer.train(stream())
    assert seen == PAIRS
    assert "▁Zeitung" in [tokenizer.pieces_tgt([i])[0] for i in range(tokenizer.num_tokens)]
    assert "▁Zeitung" not in [tokenizer.pieces_src([i])[0] for i in range(tokenizer.num_src_tokens)]


def test_lower_case_is_given_up_on_request():
    tokenizer = trained(lowercase=True)
    assert tokenizer.decode(tokenizer.encode_tgt(["Der MANN aß ÖL, 남자"])[0]) == "der mann aß öl, 남자"
    assert tokenizer.encode_tgt(["DER"]) == tokenizer.encode_tgt(["der"])


def test_pieces_are_readable(tokenizers):
    tokenizer = tokenizers["bpe"]
    text = unicodedata.normalize("NFD", "남자가 신문을")
    pieces = tokenizer.pieces_tgt(tokenizer.encode_tgt([text])[0])
    assert "".join(pieces[1:-1]) == "▁남자가▁신문을"
    assert tokenizer.pieces_tgt(tokenizer.encode_tgt(["é\n"])[0]) == ["<s>", "▁", "é", "<0x0A>", "</s>"]


def test_rare_characters_are_left_to_bytes():
    pairs = [SentencePair("a" * 98, "b" * 98), SentencePair("cc", "de")]  # 204 with the space before each sentence
    tokenizer = SubwordTokenizer(vocab_size=300, character_coverage=0.97)
    tokenizer.train(pairs)
    assert {piece for piece in model_ids(tokenizer) if len(piece) == 1} == {"a", "b", " "}
    assert tokenizer.decode(tokenizer.encode_tgt(["acde"])[0]) == "acde"
    unspelled = SubwordTokenizer(vocab_size=30, byte_fallback=False)
    unspelled.train(pairs)
    assert {piece for piece in model_ids(unspelled) if len(piece) == 1} == {"a", "b", "c", "d", "e", " "}
    assert unspelled.decode(unspelled.encode_tgt(["aü"])[0]) == "a <unk>"


def test_state_survives_a_checkpoint(tmp_path, tokenizers):
    for tokenizer in (*tokenizers.values(), trained(joint=False)):
        torch.save({"tokenizer": tokenizer.to_state()}, tmp_path / "last.ckpt")
        state = torch.load(tmp_path / "last.ckpt", weights_only=True)["tokenizer"]
        again = SubwordTokenizer.from_state(json.loads(json.dumps(state)))
        assert again.fingerprint == tokenizer.fingerprint
        assert again.recipe == tokenizer.recipe
        assert again.encode_src(HARD_TEXTS) == tokenizer.encode_src(HARD_TEXTS)
        assert again.encode_tgt(HARD_TEXTS) == tokenizer.encode_tgt(HARD_TEXTS)


def test_copies_give_the_same_ids(tokenizers):
    for copied in (pickle.loads(pickle.dumps(tokenizers["bpe"])), copy.deepcopy(tokenizers["bpe"])):
        assert copied.encode_tgt(HARD_TEXTS) == tokenizers["bpe"].encode_tgt(HARD_TEXTS)


def test_encoding_works_in_worker_processes(tokenizers):
    expected = tokenizers["bpe"].encode_src(HARD_TEXTS)  # the threads of the library have run before the fork
    loader = DataLoader(HARD_TEXTS, batch_size=5, num_workers=2, collate_fn=tokenizers["bpe"].encode_src, timeout=60)
    assert [row for rows in loader for row in rows] == expected


def test_save_and_load(tmp_path, tokenizers):
    path = tmp_path / "tokenizer.json"
    tokenizers["unigram"].save(path)
    assert SubwordTokenizer.load(path).fingerprint == tokenizers["unigram"].fingerprint
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch, tokenizers, step):
    path = tmp_path / "tokenizer.json"
    tokenizers["word"].save(path)
    old = path.read_bytes()

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(OSError, match="disk full"):
        tokenizers["bpe"].save(path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_fitting_file_is_reused_and_another_is_trained_anew(tmp_path, caplog):
    path, opened = tmp_path / "deep" / "tokenizer.json", []

    def make_pairs():
        opened.append(1)
        return iter(PAIRS)

    def attempt(vocab_size, data):
        tokenizer = SubwordTokenizer(vocab_size=vocab_size)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            result = tokenizer.train_or_load(path, make_pairs, data)
        assert tokenizer.is_trained
        assert tokenizer.data_fingerprint == data
        assert SubwordTokenizer.load(path).fingerprint == tokenizer.fingerprint
        return result, len(opened)

    assert attempt(300, "data 1") == (True, 1)
    assert attempt(300, "data 1") == (False, 1)
    assert "reusing" in caplog.text
    assert attempt(310, "data 1") == (True, 2)
    assert "another vocab_size" in caplog.text
    assert attempt(310, "data 2") == (True, 3)
    assert "other data" in caplog.text
    assert attempt(310, "data 2") == (False, 3)


def test_a_foreign_file_is_not_overwritten(tmp_path):
    path = tmp_path / "thesis.txt"
    path.write_text("years of work", encoding="utf-8")
    with pytest.raises(ValueError, match="not a JSON file"):
        SubwordTokenizer().train_or_load(path, lambda: PAIRS, "data")
    assert path.read_text(encoding="utf-8") == "years of work"


def race(path, barrier, trainings):
    def make_pairs():
        with trainings.get_lock():
            trainings.value += 1
        return PAIRS * 50

    tokenizer = SubwordTokenizer("word", vocab_size=50)
    barrier.wait(60)
    tokenizer.train_or_load(path, make_pairs, "data")
    if not tokenizer.is_trained:
        raise SystemExit(3)


def test_of_two_processes_one_trains(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, trainings = context.Barrier(2), context.Value("i", 0)
    processes = [context.Process(target=race, args=(tmp_path / "t.json", barrier, trainings)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert trainings.value == 1
    assert [file.name for file in tmp_path.iterdir()] == ["t.json"]


def test_a_lock_file_left_behind_does_not_block(tmp_path):
    (tmp_path / "t.json.lock").touch()
    assert SubwordTokenizer("word", 50).train_or_load(tmp_path / "t.json", lambda: PAIRS, "data")
    assert [file.name for file in tmp_path.iterdir()] == ["t.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "char"}, "model must be one of bpe, unigram, wordpiece, word, sentencepiece, got 'char'"),
        ({"vocab_size": 260}, "vocab_size must be at least 261"),
        ({"vocab_size": 4, "model": "word"}, "vocab_size must be at least 5"),
        ({"joint": False, "src_vocab_size": 0}, "src_vocab_size must be at least 261"),
        ({"src_vocab_size": 8000}, "src_vocab_size=8000 differs from vocab_size=37000"),
        ({"min_frequency": 0}, "min_frequency must be at least 1"),
        ({"character_coverage": 0.0}, "character_coverage must be above 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SubwordTokenizer(**arguments)


def test_use_before_training_is_refused(tmp_path):
    tokenizer = SubwordTokenizer()
    assert not tokenizer.is_trained
    for use in (
        lambda: tokenizer.encode_src(["a"]),
        lambda: tokenizer.encode_tgt(["a"]),
        lambda: tokenizer.decode([5]),
        lambda: tokenizer.pieces_src([5]),
        lambda: tokenizer.num_tokens,
        lambda: tokenizer.fingerprint,
        tokenizer.to_state,
        lambda: tokenizer.save(tmp_path / "t.json"),
    ):
        with pytest.raises(RuntimeError, match="no vocabulary yet"):
            use()
    assert not list(tmp_path.iterdir())


def test_bad_text_and_ids_are_refused(tokenizers):
    with pytest.raises(ValueError, match="list of sentences, got one string"):
        tokenizers["bpe"].encode_src("a man")
    with pytest.raises(ValueError, match="cannot be written as UTF-8"):
        tokenizers["bpe"].encode_src(["a man", "half \ud83d"])
    for ids in ([-1], [5, -2]):
        with pytest.raises(ValueError, match="ids must be 0 or more, got -"):
            tokenizers["bpe"].decode(ids)
        with pytest.raises(ValueError, match="ids must be 0 or more, got -"):
            tokenizers["bpe"].pieces_src(ids)


def test_ids_beyond_the_vocabulary_are_passed_over(tokenizers):
    """As a network with more rows than there are tokens may write them."""
    for tokenizer in tokenizers.values():
        assert tokenizer.decode([9, 100_000, 12]) == tokenizer.decode([9, 12])
        assert tokenizer.pieces_tgt([9, 100_000]) == [*tokenizer.pieces_tgt([9]), "<100000>"]


@pytest.mark.parametrize("model", ALL)
def test_an_empty_corpus_is_refused(model):
    for joint in (True, False):
        with pytest.raises(ValueError, match="no sentence pairs"):
            SubwordTokenizer(model, joint=joint).train([])


def test_unigram_needs_room_for_its_characters():
    with pytest.raises(ValueError, match="too few for the 3 different characters"):
        SubwordTokenizer("unigram", vocab_size=262).train([SentencePair("a", "b")])


def test_an_error_of_the_corpus_comes_through():
    def broken():
        yield PAIRS[0]
        raise KeyError("row 2")

    for joint in (True, False):
        with pytest.raises(KeyError, match="row 2"):
            SubwordTokenizer(joint=joint).train(broken())


def test_unreadable_files_are_named(tmp_path, tokenizers):
    path = tmp_path / "t.json"
    with pytest.raises(InputError, match=r"no tokenizer at .*t\.json"):
        SubwordTokenizer.load(path)
    state = tokenizers["word"].to_state()
    for content, message in (
        ("{", "not a JSON file"),
        ("[]", "expected format"),
        ('{"model": {}}', "expected format"),
        (json.dumps({**state, "version": 99}), "version 99, this release reads 1"),
        (json.dumps({**state, "recipe": {"colour": 1}}), "damaged.*colour"),
        (json.dumps({**state, "tokenizers": {"tgt": "{}"}}), "damaged"),
        (json.dumps({**state, "tokenizers": {}}), "damaged"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message) as caught:
            SubwordTokenizer.load(path)
        assert "t.json" in str(caught.value)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("model", ["bpe", "unigram", "wordpiece", "word"])
def test_tags_are_one_token_before_a_source_sentence_and_nowhere_else(tmp_path, model, joint):
    pairs = [SentencePair(f"<2de> {src}", tgt) for src, tgt in PAIRS]
    tagged = SubwordTokenizer(model, vocab_size=700, joint=joint, tags=["<2de>", "<2ko>", "<2de>"])
    tagged.train(pairs)
    plain = SubwordTokenizer(model, vocab_size=698, src_vocab_size=None if joint else 698, joint=joint)
    plain.train(PAIRS)
    text = PAIRS[0].src
    tagged.save(tmp_path / "tagged.json")
    for tokenizer in (tagged, SubwordTokenizer.load(tmp_path / "tagged.json"), pickle.loads(pickle.dumps(tagged))):
        assert tokenizer.tags == ["<2de>", "<2ko>"]
        bare, one, two, glued = tokenizer.encode_src([text, f"<2de> {text}", f" <2ko> <2de> {text}", f"<2ko>{text}"])
        assert tokenizer.pieces_src(one)[:1] == ["<2de>"]
        assert tokenizer.pieces_src(two)[:2] == ["<2ko>", "<2de>"]
        assert one[1:] == two[2:] == glued[1:] == bare
        assert tokenizer.pieces_src(bare) == plain.pieces_src(plain.encode_src([text])[0])  # learned as without tags
        assert tokenizer.decode_src(one) == tokenizer.decode_src(bare)
        inside, target = tokenizer.encode_src([f"{text} <2de>"])[0], tokenizer.encode_tgt([f"<2de> {text}"])[0]
        assert "<2de>" not in tokenizer.pieces_src(inside) + tokenizer.pieces_tgt(target)
        if model in ("bpe", "unigram"):
            assert tokenizer.decode(target) == f"<2de> {text}"
        if joint:
            assert tokenizer.decode([2, one[0], *tokenizer.encode_tgt([text])[0][1:]]) == tokenizer.decode(bare)


def test_tags_belong_to_the_recipe(tmp_path):
    with pytest.raises(ValueError, match="tags must be words in angle brackets"):
        SubwordTokenizer(tags=["de"])
    SubwordTokenizer(vocab_size=300).train_or_load(tmp_path / "tok.json", lambda: PAIRS, "data")
    tagged = SubwordTokenizer(vocab_size=300, tags=["<2de>"])
    assert tagged.train_or_load(tmp_path / "tok.json", lambda: PAIRS, "data")
    assert not SubwordTokenizer(vocab_size=300, tags=["<2de>"]).train_or_load(tmp_path / "tok.json", list, "data")
