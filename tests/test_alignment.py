"""Word alignments: links of hand-made attention, word numbers of real tokenizers, files of the command."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from command_line import lit
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import WORDS, sentences, tiny_run, translated  # noqa: F401

from lit_transformer import SentencePair, SubwordTokenizer, Transformer, Translator
from lit_transformer.alignment import AttentionAligner, hard_alignment, pharaoh
from lit_transformer.data.side import word_numbers
from lit_transformer.interfaces import InputError

TEXTS = ["ein Hund und eine Katze, ja", "Straßenbahn  fährt\tspät .", "나는 고양이를 좋아해요!", "x", " - "]


def test_each_target_token_is_linked_to_its_heaviest_source_token() -> None:
    weights = torch.tensor(
        [
            [0.6, 0.2, 0.1, 0.1],  # the -> die
            [0.1, 0.5, 0.3, 0.1],  # cat + s: both parts of one word
            [0.1, 0.1, 0.2, 0.6],  # EOS is heaviest, but belongs to no word
        ]
    )
    assert hard_alignment(weights, [0, 1, 1, None], [0, 1, 2]) == [(0, 0), (1, 1), (1, 2)]


def test_words_are_linked_if_any_of_their_tokens_are_and_only_once() -> None:
    weights = torch.eye(4)
    assert hard_alignment(weights, [0, 0, 1, 2], [0, 0, 0, 1]) == [(0, 0), (1, 0), (2, 1)]
    assert hard_alignment(torch.ones(1, 2), [None, None], [0]) == []
    assert hard_alignment(torch.eye(2), [0, 1], [None, 0]) == [(1, 0)]
    assert hard_alignment(torch.ones(0, 2), [0, 1], []) == []


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"weights must be \(1, 2\), a row for each target token .*; got \(2, 1\)"):
        hard_alignment(torch.ones(2, 1), [0, 1], [0])


def test_pharaoh_is_source_dash_target() -> None:
    assert pharaoh([(0, 1), (12, 3)]) == "0-1 12-3"
    assert pharaoh([]) == ""


@given(st.text(alphabet=" \t\u3000ab,.-é한", max_size=30))
def test_single_characters_are_numbered_as_split_counts(text: str) -> None:
    numbers = word_numbers(text, [(place, place + 1) for place in range(len(text))])
    words = text.split()
    for character, number in zip(text, numbers, strict=True):
        if number is None:
            assert not character.isalnum()
        else:
            assert character in words[number]
    assert {number for number in numbers if number is not None} == set(range(len(words)))


@pytest.mark.parametrize("model", ["bpe", "unigram", "wordpiece", "word"])
def test_tokens_of_every_tokenizer_know_their_words(model: str) -> None:
    tokenizer = SubwordTokenizer(model=model, vocab_size=330, joint=False, tags=["<2de>"], min_frequency=1)  # type: ignore[arg-type]
    tokenizer.train([SentencePair(text, text) for text in TEXTS])
    for text in TEXTS:
        ids, words = tokenizer.words_tgt([text])[0]
        assert ids == tokenizer.encode_tgt([text])[0]
        assert words[0] is words[-1] is None
        assert {word for word in words if word is not None} == set(range(len(text.split())))
        assert [word for word in words if word is not None] == sorted(word for word in words if word is not None)
        for number, word in enumerate(text.split()):  # the pieces of a word spell it, apart from attached signs
            mine = tokenizer.decode([one for one, place in zip(ids, words, strict=True) if place == number])
            assert mine.strip() in (word, word.rstrip(",!"), "<unk>"), (model, word)
        src_ids, src_words = tokenizer.words_src([f"<2de> {text}"])[0]
        assert src_ids == tokenizer.encode_src([f"<2de> {text}"])[0]
        assert (src_words[0], src_words[-1]) == (None, None)
        assert src_words[1:] == tokenizer.words_src([text])[0][1]


class _Pointing(Transformer):
    """Looks, in layer 2, at the source token with the number that the diagonal says; elsewhere at the first one."""

    asked: list[int]

    def cross_attention(self, src: torch.Tensor, tgt_input: torch.Tensor, layer: int) -> torch.Tensor:
        self.asked.append(src.numel())
        rows = torch.arange(tgt_input.size(1)).clamp(max=src.size(1) - 1)
        pointed = torch.nn.functional.one_hot(rows if layer == 1 else rows * 0, src.size(1)).float()
        return pointed.expand(len(src), 2, -1, -1)


def _pointing(num_layers: int = 3) -> Translator:
    tokenizer = SubwordTokenizer(model="word", vocab_size=40)
    tokenizer.train([SentencePair("a b c d", "e f g h")] * 3)
    network = _Pointing(vocab_size=40, num_layers=num_layers, d_model=16, d_ff=16, num_heads=2)
    network.asked = []
    return Translator(network, tokenizer, max_tokens=12)


def test_the_penultimate_layer_is_the_default() -> None:
    translator, pairs = _pointing(), [("a b c", "e f g"), ("", "e"), ("a", " "), ("a b", "e f g h"), ("d", "h")]
    diagonal = [[(0, 0), (1, 1), (2, 2)], [], [], [(0, 0), (1, 1)], [(0, 0)]]
    found = list(translator.align(pairs))
    assert [[link for link in links if link[0] == link[1]] for links in found] == diagonal
    assert list(translator.align(pairs, layer=2)) == found
    assert next(iter(translator.align(pairs, layer=1))) == [(0, 0), (0, 1), (0, 2)]
    for layer in (4, -1):
        with pytest.raises(InputError, match=f"the alignment layer must be between 1 and 3, got {layer}"):
            translator.align(pairs, layer=layer)


def test_alignment_is_a_stream_of_bounded_batches() -> None:
    translator, draw = _pointing(), random.Random(1)
    lengths = [draw.randint(1, 4) for _ in range(3000)]
    read = itertools.count()
    pairs = ((" ".join("abcd"[:n]), " ".join("efgh"[:n])) for n in lengths if next(read) >= 0)
    links = translator.align(pairs)
    assert [len(next(links)) for _ in range(10)] == lengths[:10]
    assert next(read) <= 1025  # it has not read on to the end
    assert [len(one) for one in links] == lengths[10:]
    assert max(translator.network.asked) <= 12  # type: ignore[arg-type, type-var]


def test_long_sentences_are_cut() -> None:
    aligner = AttentionAligner(_pointing().network, _pointing().tokenizer, max_length=3)
    assert list(aligner([("a b c d", "e f g h")])) == [[(0, 0)]]  # a b EOS, BOS e EOS


def test_translations_that_are_longer_than_their_source_may_be_keep_their_links() -> None:
    translator = _pointing()
    translator.max_length = 3
    assert list(translator.align([("a b", "e f g h")])) == list(_pointing().align([("a b", "e f g h")]))


def test_a_translation_that_fills_the_network_keeps_its_last_link() -> None:
    translator = _pointing()
    translator._longest = 5  # as of a network of so many positions: e f g h EOS
    assert list(translator.align([("a b c d", "e f g h")])) == list(_pointing().align([("a b c d", "e f g h")]))


def test_layers_count_from_one() -> None:
    with pytest.raises(InputError, match=r"the alignment layer must be between 1 and .*, got 0"):
        _pointing().align([("a", "e")], layer=0)


def test_a_network_without_attention_is_refused() -> None:
    translator = _pointing()
    del (network := torch.nn.Linear(1, 1)).bias
    with pytest.raises(InputError, match="Linear has no cross_attention, so it cannot align words"):
        AttentionAligner(network, translator.tokenizer)  # type: ignore[arg-type]


def test_one_layer_alone_equals_that_layer_of_all_maps() -> None:
    network = Transformer(vocab_size=32, num_layers=3, d_model=16, d_ff=32, num_heads=2).eval()
    src, tgt = torch.tensor([[5, 6, 7, 3], [8, 3, 0, 0]]), torch.tensor([[2, 8, 9], [2, 4, 0]])
    with torch.inference_mode():
        maps = network.attention_maps(src, tgt)
        for layer in (0, 1, -1):
            torch.testing.assert_close(network.cross_attention(src, tgt, layer), maps.cross[layer], rtol=0, atol=0)


def test_the_command_writes_a_line_for_each_line(tiny_run: Path, tmp_path: Path) -> None:  # noqa: F811
    lines = [*sentences(30, seed=9), "", "one two"]
    out, links = tmp_path / "out.txt", tmp_path / "new" / "links.txt"
    finished = lit(
        "translate", tiny_run, "--output", out, "--alignment", links, stdin="".join(f"{line}\n" for line in lines)
    )
    assert finished.status == 0, finished.err
    written = links.read_text(encoding="utf-8").split("\n")[:-1]
    texts = out.read_text(encoding="utf-8").split("\n")[:-1]
    assert len(written) == len(texts) == len(lines)
    assert written[-2] == ""
    right = total = 0
    for source, target, line in zip(lines, texts, written, strict=True):
        pairs = [tuple(map(int, link.split("-"))) for link in line.split()]
        assert all(s < len(source.split()) and t < len(target.split()) for s, t in pairs)
        if target == translated(source):  # word by word, so the true alignment is the diagonal
            right += sum(s == t or source.split()[s] == source.split()[t] for s, t in pairs)
            total += len(pairs)
    assert total > 40
    assert right >= 0.9 * total


def test_alignments_of_the_n_best_and_to_standard_output(tiny_run: Path, tmp_path: Path) -> None:  # noqa: F811
    links = tmp_path / "links.txt"
    finished = lit("translate", tiny_run, "one cat", "two", "--n_best", 3, "--alignment", links)
    rows = [line.split("\t") for line in finished.out.split("\n")[:-1]]
    written = links.read_text().split("\n")[:-1]
    assert len(rows) == len(written) == 6
    pairs = [(["one cat", "two"][int(number) - 1], text) for number, _, text in rows]
    assert written == [pharaoh(found) for found in Translator.from_pretrained(tiny_run).align(pairs)]


def test_alignment_options_are_checked(tiny_run: Path, tmp_path: Path) -> None:  # noqa: F811
    for options, words in (
        (["--alignment_layer", "1"], "--alignment_layer 1 needs --alignment FILE"),
        (["--alignment_layer", "9", "--alignment", tmp_path / "x"], "must be between 1 and 1, got 9"),
        (["--alignment", tmp_path], "--alignment"),
        (["--alignment", "-"], "--alignment and --output are both -; give one of them another file"),
    ):
        finished = lit("translate", tiny_run, "one", *options)
        assert finished.status == 1
        assert words in finished.err
        assert finished.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
