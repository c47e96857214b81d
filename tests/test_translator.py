"""Translator: equal results from file, run and export; every line in its place; one sentence for what is broken."""

import gzip
import json
import logging
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from command_line import lit
from tiny_run import sentences
from tiny_run import tiny_run as tiny_run
from torch import nn

from lit_transformer import translator as translator_file
from lit_transformer.checkpoints import CheckpointError
from lit_transformer.data import ParallelCorpus, SubwordTokenizer, TranslationDataModule
from lit_transformer.decoding import BeamSearch, GreedySearch, Search
from lit_transformer.decoding.search import require_finite
from lit_transformer.decoding.workers import possible_workers
from lit_transformer.interfaces import Hypothesis, InputError, SentencePair, Translation, TranslationBatch
from lit_transformer.lines import read_lines
from lit_transformer.model_files import build_network
from lit_transformer.module import LitTransformer
from lit_transformer.nn import Transformer
from lit_transformer.translator import Translator
from lit_transformer.vocabulary import EOS_ID

SMALL: dict[str, Any] = {"num_layers": 1, "d_model": 16, "d_ff": 32, "num_heads": 2}
LINES = sentences(12, seed=5)


@pytest.fixture
def translator(tiny_run: Path) -> Translator:
    return Translator.from_pretrained(tiny_run)


def content_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / "step=150.ckpt", weights_only=True)
    return content


# Where it comes from


def test_the_run_has_learned_its_language(translator: Translator) -> None:
    assert translator("one cat") == ["eins Katze"]
    assert translator(["two", "blue"]) == ["zwei", "blau"]


def test_file_run_and_export_translate_alike(tiny_run: Path, tmp_path: Path) -> None:
    newest = tiny_run / "checkpoints" / "step=150.ckpt"
    expected = Translator.from_pretrained(newest)(LINES)
    assert expected != Translator.from_pretrained(tiny_run / "checkpoints" / "step=50.ckpt")(LINES)
    shutil.copy(newest, tmp_path / "copied.ckpt")
    exported = Translator.from_pretrained(str(newest)).save(tmp_path / "a" / "b")
    assert {path.name for path in exported.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    for place in (tiny_run, tiny_run / "checkpoints", tmp_path, exported, str(exported)):
        assert Translator.from_pretrained(place)(LINES) == expected


@pytest.mark.parametrize("options", [{}, {"tie": "output"}, {"tie": "none"}, {"norm": "pre", "bias": False}])
def test_an_export_is_the_same_network(tiny_run: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    network = Transformer(400, **SMALL, **options)
    folder = Translator(network, Translator.from_pretrained(tiny_run).tokenizer).save(tmp_path)
    loaded = Translator.from_pretrained(folder).network
    assert type(loaded) is Transformer
    assert loaded.spec == network.spec
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), rtol=0, atol=0)
    ways = {name: parameter.data_ptr() for name, parameter in loaded.named_parameters(remove_duplicate=False)}
    embeddings = ("projection.weight", "tgt_embedding.weight", "src_embedding.weight")
    assert len({ways[name] for name in embeddings}) == {"all": 1, "output": 2, "none": 3}[options.get("tie", "all")]
    on_disk = safetensors.torch.load_file(folder / "model.safetensors")
    size = sum(tensor.numel() for tensor in on_disk.values())
    assert size == sum(parameter.numel() for parameter in network.parameters())  # what is tied is there once


def test_saving_again_replaces_and_leaves_nothing_else(translator: Translator, tmp_path: Path) -> None:
    Translator(Transformer(400, **SMALL), translator.tokenizer).save(tmp_path)
    translator.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert Translator.from_pretrained(tmp_path)(LINES) == translator(LINES)


def test_it_is_ready_for_inference(translator: Translator) -> None:
    assert not any(part.training for part in translator.network.modules())
    assert not any(parameter.requires_grad for parameter in translator.network.parameters())
    assert translator.to("cpu") is translator


def test_a_compiled_network_loads(tiny_run: Path, tmp_path: Path) -> None:
    content = content_of(tiny_run)
    weights = content["state_dict"].items()
    content["state_dict"] = {key.replace("network.", "network._orig_mod."): value for key, value in weights}
    torch.save(content, tmp_path / "x.ckpt")
    assert Translator.from_pretrained(tmp_path / "x.ckpt")(LINES) == Translator.from_pretrained(tiny_run)(LINES)


# Lines


def test_empty_lines_stay_empty(translator: Translator) -> None:
    lines = ["", "one", "  ", "\t", "two", "\u3000", ""]
    assert translator(lines) == ["", "eins", "", "", "zwei", "", ""]
    assert next(translator.translate([""])) == [Translation("", 0.0)]
    assert translator([]) == []


def test_a_thousand_lines_keep_their_order(tiny_run: Path) -> None:
    greedy = Translator.from_pretrained(tiny_run, search=GreedySearch())
    known = ["one", "two", "red", "blue", "one cat", ""]
    alone = {line: greedy([line])[0] for line in known}
    assert len(set(alone.values())) == len(known)
    draw = random.Random(1)
    lines = draw.choices(known, k=1000)
    assert greedy(lines) == [alone[line] for line in lines]


def test_the_stream_is_read_in_windows(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translator_file, "_WINDOW", 4)
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "one" if taken % 2 else "two"

    results = Translator.from_pretrained(tiny_run, search=GreedySearch()).translate(endless())
    assert taken == 0
    seen = []
    for best in islice(results, 6):
        seen.append((best[0].text, taken))
    assert seen == [("eins", 4), ("zwei", 4), ("eins", 4), ("zwei", 4), ("eins", 8), ("zwei", 8)]


@pytest.mark.parametrize("max_tokens", [1, 7, 30])
def test_the_budget_changes_nothing_but_the_batches(tiny_run: Path, max_tokens: int) -> None:
    class Spy(GreedySearch):
        shapes: list[tuple[int, int]] = []  # noqa: RUF012

        def __call__(self, network: Any, src: Any) -> Any:
            self.shapes.append(tuple(src.shape))
            return super().__call__(network, src)

    spy = Spy()
    spy.shapes = []
    lines = [*sentences(25, seed=6), "", *sentences(5, seed=7)]
    found = list(Translator.from_pretrained(tiny_run, search=spy, max_tokens=max_tokens).translate(lines))
    whole = list(Translator.from_pretrained(tiny_run, search=GreedySearch(), max_tokens=10**6).translate(lines))
    assert [best[0].text for best in found] == [best[0].text for best in whole]
    assert [best[0].score for best in found] == pytest.approx([best[0].score for best in whole], abs=1e-4)
    assert all(rows == 1 or rows * width <= max_tokens for rows, width in spy.shapes)
    assert sum(rows for rows, _ in spy.shapes) == sum(bool(line) for line in lines)


def test_n_best(tiny_run: Path) -> None:
    several = Translator.from_pretrained(tiny_run, search=BeamSearch(n_best=3))
    for line, found in zip(LINES, several.translate(LINES), strict=True):
        assert len(found) == 3
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True)
        assert len({one.text for one in found}) == 3
        (best,) = next(Translator.from_pretrained(tiny_run).translate([line]))
        assert (best.text, best.score) == (found[0].text, pytest.approx(found[0].score, abs=1e-4))


def test_a_score_is_the_log_probability_over_the_penalty(translator: Translator) -> None:
    (found,) = next(translator.translate(["one cat"]))
    src = torch.tensor(translator.tokenizer.encode_src(["one cat"]))
    tgt = torch.tensor(translator.tokenizer.encode_tgt([found.text]))
    log_probs = translator.network(src, tgt[:, :-1]).log_softmax(-1)
    total = log_probs.gather(2, tgt[:, 1:, None]).sum().item()
    assert found.score == pytest.approx(total / ((5 + tgt.size(1) - 1) / 6) ** 0.6, abs=1e-4)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("search", [BeamSearch(n_best=2), GreedySearch()])
def test_translations_begin_as_they_are_told_to(tiny_run: Path, num_workers: int, search: Any) -> None:
    translator = Translator.from_pretrained(tiny_run, search=search, num_workers=num_workers)
    lines = ["one cat", "two", "", "red and blue", "one cat"]
    prefixes = ["Hund", "", "Haus", "  rot und rot ", "Ka"]
    found = list(translator.translate(lines, iter(prefixes)))
    free = list(translator.translate(lines))
    assert [found[1], found[2]] == [free[1], free[2]]
    for place in (0, 3, 4):
        prefix = prefixes[place].strip()
        assert all(one.text.startswith(prefix) for one in found[place])
        assert not free[place][0].text.startswith(prefix)
        (alone,) = translator.translate([lines[place]], [prefix])
        assert [one.text for one in alone] == [one.text for one in found[place]]
        assert [one.score for one in alone] == pytest.approx([one.score for one in found[place]], abs=1e-4)
    ids = translator.tokenizer.encode_tgt(["Hund"])[0][1:-1]
    src = torch.tensor(translator.tokenizer.encode_src(["one cat"]))
    (expected,) = search(translator.network, src, [ids])
    assert [one.score for one in found[0]] == pytest.approx([one.score for one in expected], abs=1e-4)


def test_prefixes_that_cannot_be_are_told(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Search):
        def __call__(self, network: Any, src: Any) -> Any:
            return GreedySearch()(network, src)

    monkeypatch.setattr(translator_file, "_WINDOW", 2)
    own = Translator.from_pretrained(tiny_run, search=Own())
    assert own(["one cat"]) == ["eins Katze"]
    with pytest.raises(InputError, match="Own begins no translation with a prefix"):
        own.translate(["one"], ["eins"])
    translator = Translator.from_pretrained(tiny_run, search=GreedySearch(max_extra_length=1))
    with pytest.raises(InputError, match="takes a list of sentences"):
        translator.translate(["one"], "eins")
    for workers in (1, 2):  # what was finished before is not lost
        translator.num_workers = workers
        for prefixes, words, finished in (
            (["eins", "zwei", "rot"], "line 4 has no prefix", 2),
            (["eins", "zwei", "rot", "blau", "und"], "more prefixes than sentences, which are 4", 4),
        ):
            found = translator.translate(["one", "two", "red", "blue"], prefixes)
            assert [next(found)[0].text for _ in range(finished)] == prefixes[:finished]
            with pytest.raises(InputError, match=words):
                next(found)
    with pytest.raises(InputError, match="more prefixes than sentences, which are 3"):
        list(translator.translate(["one", "two", "red"], ["", "", "", ""]))
    tokenizer = SubwordTokenizer(vocab_size=300, byte_fallback=False)
    tokenizer.train([SentencePair("one", "eins"), SentencePair("two", "zwei")])
    network = Transformer(tokenizer.num_tokens, num_layers=1, d_model=8, d_ff=8, num_heads=1)
    with pytest.raises(InputError, match=r"line 2: the prefix 'ж' holds what the model has no token for"):
        list(Translator(network, tokenizer).translate(["one", "two"], ["eins", "ж"]))
    with pytest.raises(InputError, match=r"line 3: the prefix has 4 tokens, and the translation may have 2; shorten"):
        list(translator.translate(["one", "two", "red"], ["", "", "eins eins eins eins"]))


def test_a_long_line_is_cut_and_named(tiny_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Spy(GreedySearch):
        def __call__(self, network: Any, src: Any) -> Any:
            seen.append(src.tolist())
            return super().__call__(network, src)

    seen: list[list[list[int]]] = []
    short = Translator.from_pretrained(tiny_run, search=Spy(), max_length=4)
    tokens = short.tokenizer.encode_src(["one two three four red"])[0]
    with caplog.at_level(logging.WARNING, "lit_transformer"):
        found = short(["one", "", "one two three four red"])
    assert [record.getMessage() for record in caplog.records] == [f"line 3 has {len(tokens)} tokens and is cut to 4"]
    assert [*tokens[:3], EOS_ID] in [row for rows in seen for row in rows]
    assert len(found) == 3
    assert found[1] == ""


def test_a_line_number_counts_the_windows_before(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(translator_file, "_WINDOW", 2)
    with caplog.at_level(logging.WARNING, "lit_transformer"):
        Translator.from_pretrained(tiny_run, search=GreedySearch(), max_length=3)(["one", "", "", "", "one two three"])
    (record,) = caplog.records
    assert record.getMessage().startswith("line 5 has ")


def test_the_network_may_be_shorter(tiny_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Translator.from_pretrained(tiny_run).max_length == 64  # of the network
    assert Translator.from_pretrained(tiny_run, max_length=10).max_length == 10
    with caplog.at_level(logging.WARNING, "lit_transformer"):
        (found,) = Translator.from_pretrained(tiny_run)([" ".join(["one"] * 5000)])
    assert found
    assert "line 1 has 5001 tokens and is cut to 64" in caplog.text


def test_line_breaks_never_come_out(translator: Translator) -> None:
    ids = translator.tokenizer.encode_tgt(["a\nb\r\nc"])[0]

    class Fixed(GreedySearch):
        def __call__(self, network: Any, src: Any) -> Any:
            found = super().__call__(network, src)
            return [[best._replace(tokens=ids[1:-1]) for best in one] for one in found]

    assert Translator(translator.network, translator.tokenizer, Fixed())("one") == ["a b  c"]


def test_a_single_sentence_is_for_the_call(translator: Translator) -> None:
    with pytest.raises(InputError, match="translate takes a list of sentences; for a single one call the translator"):
        translator.translate("one cat")


def test_a_network_that_translates_can_be_trained_on(translator: Translator) -> None:
    network = translator.network.requires_grad_(True)
    assert Translator(network, translator.tokenizer)("one cat") == ["eins Katze"]
    network.train()(torch.tensor([[5, EOS_ID]]), torch.tensor([[2, 5]])).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# What every head looks at


def test_attention_of_a_given_pair(translator: Translator) -> None:
    view = translator.attention("one cat", "eins Katze")
    src = translator.tokenizer.encode_src(["one cat"])
    tgt = translator.tokenizer.encode_tgt(["eins Katze"])
    expected = translator.network.attention_maps(torch.tensor(src), torch.tensor(tgt)[:, :-1])  # type: ignore[operator]
    torch.testing.assert_close(view.maps.cross, expected.cross, rtol=0, atol=0)
    assert (view.target, view.beams) == ("eins Katze", [])
    assert (len(view.src_tokens), len(view.tgt_tokens)) == (len(src[0]), len(tgt[0]))


def test_attention_of_its_own_translation(tiny_run: Path) -> None:
    translator = Translator.from_pretrained(tiny_run, search=BeamSearch(n_best=2))
    view = translator.attention("one cat")
    assert view.target == "eins Katze"
    assert [beam.text for beam in view.beams] == [one.text for one in next(translator.translate(["one cat"]))]
    assert view.maps.cross[0].shape == (1, 2, len(view.tgt_tokens) - 1, len(view.src_tokens))


def test_attention_needs_text_and_maps(translator: Translator) -> None:
    with pytest.raises(InputError, match="the source sentence is empty"):
        translator.attention(" ")
    translator.network.attention_maps = None  # type: ignore[assignment]
    with pytest.raises(InputError, match="Transformer has no attention_maps"):
        translator.attention("one")


# What is broken


def small_tokenizer(joint: bool = True, **options: Any) -> SubwordTokenizer:
    tokenizer = SubwordTokenizer(vocab_size=300, joint=joint, **options)
    tokenizer.train([SentencePair("one two", "eins zwei")] * 3)
    return tokenizer


def test_white_space_is_read_as_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither drops any: text that has it was learned with it, and each of these lines has ids of its own."""
    lines = ["one two", "one  two", "one two ", " one two", "one\ttwo", "one\u00a0two", "one two\u3000"]
    for side in ("en", "de"):
        (tmp_path / f"train.{side}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    tokenizer = small_tokenizer()
    data = TranslationDataModule(ParallelCorpus(str(tmp_path / "train")), tokenizer=tokenizer, vocab_size=300)
    data.setup("fit")
    trained = {tuple(filter(None, row)) for row in next(iter(data.train_dataloader())).src.tolist()}
    read: list[list[int]] = []
    translator = Translator(Transformer(300, **SMALL), tokenizer)

    def decode(src: torch.Tensor, *_: Any) -> list[list[Hypothesis]]:
        read.extend(src.tolist())
        return [[Hypothesis([], 0.0, 0.0)]] * len(src)

    monkeypatch.setattr(translator, "_decode", decode)
    with ExitStack() as stack:
        list(translator.translate(read_lines(stack, str(tmp_path / "train.en"))))
    assert {tuple(filter(None, row)) for row in read} == trained
    assert len(trained) == len(lines)


def test_arguments_are_checked() -> None:
    for name in ("max_tokens", "max_length"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1 token, got 0"):
            Translator(Transformer(400, **SMALL), small_tokenizer(), **{name: 0})  # type: ignore[arg-type]


def test_a_tokenizer_that_does_not_fit() -> None:
    tokenizer = small_tokenizer()
    size = tokenizer.num_tokens
    Translator(Transformer(size, **SMALL), tokenizer)
    with pytest.raises(CheckpointError, match=f"has {size} source tokens but the network only {size - 1}: they were"):
        Translator(Transformer(size - 1, **SMALL), tokenizer)
    both = small_tokenizer(joint=False, src_vocab_size=320)
    network = Transformer(both.num_tokens - 1, both.num_src_tokens, tie="output", **SMALL)
    with pytest.raises(CheckpointError, match=f"has {both.num_tokens} target tokens but"):
        Translator(network, both)
    network = Transformer(both.num_tokens, both.num_src_tokens - 1, tie="output", **SMALL)
    with pytest.raises(CheckpointError, match=f"has {both.num_src_tokens} source tokens but"):
        Translator(network, both)


def test_no_such_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match=r"runs/gone does not exist, and is not looked for on the Hub, since"):
        Translator.from_pretrained("runs/gone")
    with pytest.raises(CheckpointError, match=r"checkpoint .*gone does not exist; give a .ckpt file, the folder"):
        Translator.from_pretrained(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"no readable checkpoint \(\*.ckpt\) in"):
        Translator.from_pretrained(tmp_path)
    (tmp_path / "x.ckpt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"x.ckpt is not a checkpoint file"):
        Translator.from_pretrained(tmp_path / "x.ckpt")


def test_a_damaged_newest_gives_way(tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (50, 100, 150):
        shutil.copy(tiny_run / "checkpoints" / f"step={step}.ckpt", tmp_path)
    os.truncate(tmp_path / "step=150.ckpt", 1000)
    expected = Translator.from_pretrained(tmp_path / "step=100.ckpt")(LINES)
    with caplog.at_level(logging.WARNING, "lit_transformer"):
        assert Translator.from_pretrained(tmp_path)(LINES) == expected
    assert "step=150.ckpt is not a checkpoint file" in caplog.text


def change_spec(**spec: Any) -> Any:
    return lambda content: content["hyper_parameters"]["network"].update(spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("TranslationDataModule"), r"x.ckpt holds no tokenizer, so it cannot translate by itself"),
        (lambda c: c.pop("hyper_parameters"), r"x.ckpt does not say how to build its network"),
        (lambda c: c.update(hyper_parameters=[1]), r"x.ckpt does not say how to build its network"),
        (lambda c: c["hyper_parameters"].update(network="x"), r"x.ckpt does not say how to build its network"),
        (lambda c: c["TranslationDataModule"].update(tokenizer={}), r"x.ckpt is damaged: not the state of a Subword"),
        (change_spec(class_path="os.system"), r"x.ckpt cannot be used: 'os.system' is not a TranslationNetwork"),
        (change_spec(class_path="torch.nn.Linear"), r"'torch.nn.Linear' is not a TranslationNetwork, so"),
        (change_spec(class_path="no_such_package.Network"), r"cannot be imported .*no_such_package.*install its"),
        (change_spec(class_path="lit_transformer.Transfomer"), r"'lit_transformer.Transfomer' cannot be imported"),
        (change_spec(class_path="__main__.Own"), r"'__main__.Own' was defined in a script.*move it into a module"),
        (change_spec(class_path=None), r"'None' cannot be imported"),
        (change_spec(class_path=".Transformer"), r"'.Transformer' cannot be imported"),
        (change_spec(init_args={"d_modl": 4}), r"Transformer does not accept the stored arguments: .*d_modl"),
        (change_spec(init_args=[1]), r"Transformer does not accept the stored arguments"),
        (change_spec(init_args={"d_model": 30, "num_heads": 4}), r"Transformer does not accept .*d_model"),
        (change_spec(init_args={"vocab_size": 400, **SMALL}), r"the weights in .*x.ckpt do not fit .*: size mismatch"),
        (lambda c: c["state_dict"].popitem(last=False), r"the weights in .*x.ckpt do not fit .*: Missing key"),
        (lambda c: c.update(state_dict={}), r"the weights in .*x.ckpt do not fit the network it describes"),
    ],
)  # fmt: skip
def test_a_broken_checkpoint_is_named(tiny_run: Path, tmp_path: Path, change: Any, message: str) -> None:
    content = content_of(tiny_run)
    change(content)
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=message) as caught:
        Translator.from_pretrained(tmp_path / "x.ckpt")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_run_does_not_fit(tiny_run: Path, tmp_path: Path) -> None:
    content = content_of(tiny_run)
    big = SubwordTokenizer(vocab_size=500)
    big.train([SentencePair(f"word{number}", f"Wort{number}") for number in range(200)] * 3)
    assert big.num_tokens > 400
    content["TranslationDataModule"]["tokenizer"] = big.to_state()
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"but the network only 400: they were not trained together"):
        Translator.from_pretrained(tmp_path / "x.ckpt")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff\xfe", b'{"a": 1}'])
def test_an_incomplete_or_damaged_folder(
    translator: Translator, tmp_path: Path, name: str, content: bytes | None
) -> None:
    translator.save(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = f"is not a complete model folder: it has no {name}" if content is None else f"{tmp_path.name} (is|cannot)"
    with pytest.raises(CheckpointError, match=message):
        Translator.from_pretrained(tmp_path)


def test_weights_of_another_export(translator: Translator, tmp_path: Path) -> None:
    translator.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["init_args"]["d_ff"] = 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="do not fit the network it describes: size mismatch"):
        Translator.from_pretrained(tmp_path)


class Holder(Transformer):
    """Takes an argument that JSON cannot hold."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(400, **SMALL)
        self.part = part


def test_a_network_that_json_cannot_describe_is_not_saved(tmp_path: Path) -> None:
    translator = Translator(Holder(nn.Linear(2, 2)), small_tokenizer())
    with pytest.raises(ValueError, match=r"Holder has arguments that JSON cannot hold: .*Linear"):
        translator.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_build_network_gives_the_described_one() -> None:
    network = Transformer(64, norm="pre", **SMALL)
    built = build_network(json.loads(json.dumps(network.spec)))
    assert built.spec == network.spec
    assert math.isclose(sum(p.numel() for p in built.parameters()), sum(p.numel() for p in network.parameters()))


# Speed


class NamesItsProcess(GreedySearch):
    """Says which process has searched."""

    def __call__(self, network: Any, src: Any) -> Any:
        found = super().__call__(network, src)
        return [[one._replace(score=float(os.getpid())) for one in each] for each in found]


def test_the_prepared_network_finds_what_the_plain_one_finds(tiny_run: Path) -> None:
    """On 500 sentences, and also where the network cannot be prepared."""
    lines = sentences(500, seed=11, longest=9)
    for search in (BeamSearch(n_best=2), GreedySearch()):
        fast, plain = (Translator.from_pretrained(tiny_run, search=search, num_workers=1) for _ in range(2))
        plain.network.encoder.register_forward_hook(lambda *_: None)
        expected = list(plain.translate(lines))
        assert plain._prepared is None
        for ours, theirs in zip(fast.translate(lines), expected, strict=True):
            assert [one.text for one in ours] == [one.text for one in theirs]
            assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-4)
        assert fast._prepared is not None


def test_weights_that_change_are_noticed(tiny_run: Path) -> None:
    translator, other = (Translator.from_pretrained(tiny_run) for _ in range(2))
    before = translator(LINES)
    with torch.no_grad():
        for parameter in translator.network.parameters():
            parameter.mul_(-0.5)
    other.network.load_state_dict(translator.network.state_dict())
    assert translator(LINES) == other(LINES) != before


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_lower_precisions_translate_nearly_alike(tiny_run: Path, precision: Any) -> None:
    lines = sentences(200, seed=12)
    expected = Translator.from_pretrained(tiny_run, num_workers=1)(lines)
    found = Translator.from_pretrained(tiny_run, num_workers=1, precision=precision)(lines)
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 180


def test_precisions_of_a_network_that_cannot_be_prepared(tiny_run: Path) -> None:
    def hooked(precision: Any) -> Translator:
        translator = Translator.from_pretrained(tiny_run, precision=precision)
        translator.network.encoder.register_forward_hook(lambda *_: None)
        return translator

    assert hooked("bf16")("one cat") == ["eins Katze"]
    with pytest.raises(InputError, match="int8 is not possible for this network: it has forward hooks; use bf16"):
        hooked("int8")("one cat")


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize(
    "num_workers", [1, pytest.param(2, marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux"))]
)
def test_compiled_steps_translate_alike(tiny_run: Path, num_workers: int) -> None:
    lines = sentences(100, seed=15)
    expected = Translator.from_pretrained(tiny_run, num_workers=1)(lines)
    assert Translator.from_pretrained(tiny_run, num_workers=num_workers, compile=True)(lines) == expected


def test_a_network_that_cannot_be_compiled_is_named(tiny_run: Path) -> None:
    with pytest.raises(
        InputError, match="the network cannot be compiled: compiled steps are float32 or int8, not bf16"
    ):
        Translator.from_pretrained(tiny_run, compile=True, precision="bf16")("one cat")


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_workers_find_the_same_in_the_same_order(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translator_file, "_WINDOW", 40)
    lines = [*sentences(70, seed=13), "", *sentences(30, seed=14)]
    alone, together = (
        [best[0] for best in Translator.from_pretrained(tiny_run, num_workers=number, max_tokens=60).translate(lines)]
        for number in (1, 2)
    )
    assert [best.text for best in together] == [best.text for best in alone]
    scores = [best.score for best in alone]  # two threads add in another order than one
    assert [best.score for best in together] == pytest.approx(scores, abs=1e-5)
    spy = Translator.from_pretrained(tiny_run, search=NamesItsProcess(), num_workers=2, max_tokens=20)
    processes = {best[0].score for best in spy.translate(lines) if best[0].text}
    assert float(os.getpid()) not in processes
    assert 1 <= len(processes) <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_workers_read_one_window_ahead_and_end_with_their_reader(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translator_file, "_WINDOW", 4)
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "one"

    results = Translator.from_pretrained(tiny_run, search=GreedySearch(), num_workers=2).translate(endless())
    assert [next(results)[0].text for _ in range(4)] == ["eins"] * 4
    assert taken == 8
    children = multiprocessing.active_children()
    assert len(children) >= 1
    results.close()  # type: ignore[attr-defined]
    assert not any(child.is_alive() for child in children)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.skipif("sys.platform != 'linux'"))])
def test_lines_before_one_that_cannot_be_read_are_not_lost(
    tiny_run: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translator_file, "_WINDOW", 2)

    def lines() -> Iterator[str]:
        yield from ["one", "two", "one", "two", "one"]
        raise InputError("line 6 is not UTF-8")

    found = Translator.from_pretrained(tiny_run, search=GreedySearch(), num_workers=workers).translate(lines())
    assert [next(found)[0].text for _ in range(5)] == ["eins", "zwei", "eins", "zwei", "eins"]
    with pytest.raises(InputError, match="line 6 is not UTF-8"):
        next(found)


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_a_worker_that_dies_is_named(tiny_run: Path) -> None:
    class Fatal(GreedySearch):
        def __call__(self, network: Any, src: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError, match="a worker process has died"):
        Translator.from_pretrained(tiny_run, search=Fatal(), num_workers=2)(["one"])


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.skipif("sys.platform != 'linux'"))])
def test_a_line_without_translation_is_named(tiny_run: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    class Blind(GreedySearch):
        """Has no number for what begins with red."""

        def __call__(self, network: Any, src: Any) -> Any:
            found = super().__call__(network, src)
            broken = [Hypothesis([], float("nan"), float("nan"))]
            red = src[:, 0] == translator.tokenizer.encode_src(["red"])[0][0]
            return require_finite([broken if bad else row for bad, row in zip(red.tolist(), found, strict=True)])

    monkeypatch.setattr(translator_file, "_WINDOW", 3)
    translator = Translator.from_pretrained(tiny_run, search=Blind(), num_workers=num_workers)
    found = translator.translate(["one", "two", "blue", "one two two", "", "red", "one"])
    assert [next(found)[0].text for _ in range(3)] == ["eins", "zwei", "blau"]
    with pytest.raises(InputError, match=r"^network gave line 6 no translation of finite log_prob"):
        next(found)
    with pytest.raises(InputError, match=r"^network gave the sentence no translation"):
        translator.attention("red")


def test_workers_are_started_for_many_lines_only(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translator_file, "possible_workers", lambda: 3)
    translator = Translator.from_pretrained(tiny_run)
    assert translator._suitable_workers(["one"] * 255) == 1
    assert translator._suitable_workers(["one"] * 256) == 3
    translator.network.to("meta")
    assert translator._suitable_workers(["one"] * 256) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"precision": "fp4"}, "precision must be one of float32, bf16, int8, got 'fp4'"),
    ],
)
def test_bad_options_of_speed_are_errors(tiny_run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Translator.from_pretrained(tiny_run, **options)


@pytest.mark.skipif("MULTI30K" not in os.environ, reason="MULTI30K names no folder with test_2016_flickr.en")
def test_500_real_sentences_have_the_same_hypotheses(translator: Translator) -> None:
    path = Path(os.environ["MULTI30K"]) / "test_2016_flickr.en"
    with path.open(encoding="utf-8") if path.is_file() else gzip.open(f"{path}.gz", "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in islice(file, 500)]
    assert len(lines) == 500
    torch.manual_seed(1)
    network = Transformer(400, num_layers=2, d_model=64, d_ff=128, num_heads=4, tie="none")
    nn.init.normal_(network.projection.weight, std=0.5)  # away from near ties
    hooked = Transformer(**network.init_args)
    hooked.load_state_dict(network.state_dict())
    hooked.encoder.register_forward_hook(lambda *_: None)
    for search in (BeamSearch(max_extra_length=5), GreedySearch(max_extra_length=5)):
        fast, plain = (Translator(one, translator.tokenizer, search, num_workers=1) for one in (network, hooked))
        expected = plain(lines)
        assert fast(lines) == expected
        assert len(set(expected)) > 400


def test_bfloat16_on_a_cpu_that_has_none_is_told_once(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lit_transformer.translator.has_fast_bfloat16", lambda: False)
    translator = Translator.from_pretrained(tiny_run, precision="bf16", num_workers=1)
    for _ in range(2):
        translator(["a b"])
    translator.network.register_forward_hook(lambda *_: None)  # which cannot be prepared
    translator(["a b"])
    assert [record.getMessage()[:39] for record in caplog.records] == ["torch has no fast bfloat16 on this CPU:"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": '{"model_type": "marian"}', "model.safetensors": ""}, "lit-transformer import first"),
        (
            {"config.json": "{}", "model.bin": "", "shared_vocabulary.json": "[]"},
            "here the checkpoint that it was made of",
        ),
        ({"config.json": "{}", "encoder.onnx": ""}, "cannot be read back"),
    ],
    ids=["huggingface", "ctranslate2", "onnx"],
)
def test_a_folder_for_others_says_what_it_is(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=words):
        Translator.from_pretrained(tmp_path)


# Folders that bring code along


def test_code_in_the_folder_of_a_model_is_not_run(
    translator: Translator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = translator.save(tmp_path / "model")
    (model / "config.json").write_text(json.dumps({"class_path": "module_of_a_stranger.Net", "init_args": {}}))
    trap = "from pathlib import Path\nPath('ran').touch()\nfrom lit_transformer import Transformer as Net\n"
    (model / "module_of_a_stranger.py").write_text(trap)
    monkeypatch.chdir(model)
    finished = lit("translate", ".", "one")
    assert finished.status == 1
    assert "code that comes with a model is not run" in finished.err
    assert not (model / "ran").exists()
    (model / "module_of_a_stranger.py").rename(tmp_path / "module_of_a_stranger.py")
    monkeypatch.chdir(tmp_path)
    lit("translate", "model", "one")  # of whoever calls the command
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("what", ["folder", "run", "test"])
def test_code_in_a_folder_below_the_current_one_is_not_run(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """``strangers`` is no package until Python finds the folder of that name."""
    monkeypatch.chdir(tmp_path)
    model = Path("strangers") / "x"
    if what == "folder":
        Translator.from_pretrained(tiny_run).save(model)
        (model / "config.json").write_text(json.dumps({"class_path": "strangers.x.inside.Net", "init_args": {}}))
    else:
        content = content_of(tiny_run)
        content["hyper_parameters"]["network"]["class_path"] = "strangers.x.inside.Net"
        (model / "checkpoints").mkdir(parents=True)
        torch.save(content, model / "checkpoints" / "step=1.ckpt")
        shutil.copy(tiny_run / "config.yaml", model)
    trap = "from pathlib import Path\nPath('ran').touch()\nfrom lit_transformer import Transformer as Net\n"
    (model / "inside.py").write_text(trap)
    scored = ["test", "--config", f"{model}/config.yaml", "--ckpt_path", f"{model}/checkpoints/step=1.ckpt"]
    finished = lit(*(scored if what == "test" else ["translate", str(model), "one"]))
    assert finished.status == 1
    assert "code that comes with a model is not run" in finished.err
    assert not Path("ran").exists()


# A network that is trained at the same time


def test_weights_that_a_fused_step_has_changed_are_taken_up(tiny_run: Path) -> None:
    translator = Translator.from_pretrained(tiny_run, num_workers=1)
    before = translator(LINES)
    module = LitTransformer(translator.network, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.3))
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    optimizer: Any = module.configure_optimizers()
    assert optimizer.param_groups[0]["fused"]
    batch = TranslationBatch(torch.tensor([[5, 6, 3]]), torch.tensor([[2, 7, 8, 3]]))
    module.train().compute_loss(batch).loss.backward()
    optimizer.step()
    anew = Translator(translator.network, translator.tokenizer, num_workers=1)
    module.train()
    assert translator(LINES) == anew(LINES) != before
    assert all(part.training for part in module.network.modules())


def test_dropout_rests_while_a_network_translates_that_cannot_be_prepared(tiny_run: Path) -> None:
    translator = Translator.from_pretrained(tiny_run, num_workers=1)
    expected = translator(LINES)
    translator.network.register_forward_hook(lambda *_: None)
    translator.network.embedding_dropout.p = 0.9
    translator.network.train()
    assert translator(LINES) == expected
    assert translator.network.training


def test_dropout_rests_while_somebody_looks_inside_a_network_in_training(tiny_run: Path) -> None:
    translator = Translator.from_pretrained(tiny_run, num_workers=1)
    pair = (LINES[0], translator(LINES[:1])[0])
    maps, links = translator.attention(*pair).maps, list(translator.align([pair]))
    translator.network.train()
    for module in translator.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    again = translator.attention(*pair).maps
    assert all(torch.equal(one, other) for one, other in zip(maps.cross, again.cross, strict=True))
    assert list(translator.align([pair])) == links
    assert all(module.training for module in translator.network.modules())


def test_short_lines_are_searched_by_the_hundred_not_by_the_thousand(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All scores of a step stand in memory at once: sentences x beam x vocabulary."""
    translator = Translator.from_pretrained(tiny_run, num_workers=1)
    sizes: list[int] = []
    search = translator.search

    def counted(network: Any, src: torch.Tensor) -> Any:
        sizes.append(len(src))
        return search(network, src)

    counted.beam_size = 4  # type: ignore[attr-defined]
    translator.search = counted
    expected = Translator.from_pretrained(tiny_run, num_workers=1)(["a"] * 50)
    monkeypatch.setattr("lit_transformer.translator._MAX_SCORES", 4 * translator.tokenizer.num_tokens * 20)
    assert translator(["a"] * 50) == expected
    assert sizes == [20, 20, 10]


# Workers in all circumstances


def _translate_many(run: Path) -> list[str]:
    return Translator.from_pretrained(run, search=GreedySearch())(LINES * 30)


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
@pytest.mark.parametrize(
    ("quota", "workers"),
    [("max 100000", 16), ("200000 100000", 2), ("250000 100000", 3), ("5000 100000", 1), ("9900000 100000", 16),
     ("", 16), (None, 16)],
)  # fmt: skip
def test_a_container_with_a_quota_has_fewer_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, workers: int
) -> None:
    monkeypatch.setattr("lit_transformer.decoding.workers.os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("lit_transformer.decoding.workers._QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert possible_workers() == workers


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_a_daemonic_process_searches_by_itself(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_transformer.decoding.workers.os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("lit_transformer.decoding.workers._QUOTA", Path("there/is/none"))
    assert possible_workers() == 2
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    assert possible_workers() == 1
    assert _translate_many(tiny_run) == Translator.from_pretrained(tiny_run, num_workers=1)(LINES) * 30
    with pytest.raises(InputError, match="2 workers cannot be started from a daemonic process"):
        next(Translator.from_pretrained(tiny_run, num_workers=2).translate(["one"]))


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_workers_outlive_the_thread_that_began_them(tiny_run: Path) -> None:
    translator = Translator.from_pretrained(tiny_run, search=GreedySearch(), num_workers=2, max_tokens=20)
    results, first = translator.translate(LINES * 400), []
    thread = threading.Thread(target=lambda: first.append(next(results)))
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert [one[0].text for one in [*first, *results]] == translator(LINES) * 400


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_workers_compute_in_the_precision_asked_for(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lit_transformer.translator.has_fast_bfloat16", lambda: False)

    class NamesItsPrecision(GreedySearch):
        def __call__(self, network: Any, src: torch.Tensor) -> Any:
            is_bf16 = torch.is_autocast_enabled("cpu")
            return [[one._replace(score=float(is_bf16)) for one in found] for found in super().__call__(network, src)]

    for workers in (1, 2):
        own = Translator.from_pretrained(tiny_run, search=NamesItsPrecision(), precision="bf16", num_workers=workers)
        own.network.register_forward_hook(lambda *_: None)  # so that it cannot be prepared for bfloat16
        caplog.clear()
        assert {found[0].score for found in own.translate(LINES)} == {1.0}
        assert "torch has no fast bfloat16 on this CPU" in caplog.text


@pytest.mark.parametrize("options", [{}, {"precision": "int8"}], ids=["float32", "int8"])
def test_a_network_in_training_is_looked_at_anew(tiny_run: Path, options: dict[str, Any]) -> None:
    translator, other = (Translator.from_pretrained(tiny_run, **options) for _ in range(2))
    before = translator(LINES)
    for parameter in translator.network.parameters():
        parameter.data.mul_(-0.5)  # leaves no trace
    other.network.load_state_dict(translator.network.state_dict())
    assert translator(LINES) != other(LINES)
    translator.network.train()
    assert translator(LINES) == other(LINES) != before
    assert translator.network.training
    for parameter in translator.network.eval().parameters():
        parameter.data.mul_(-2)
    translator.notice_new_weights()
    assert translator(LINES) == before
