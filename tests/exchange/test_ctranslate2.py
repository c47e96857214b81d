"""Export for CTranslate2, judged by CTranslate2: equal log probabilities and translations."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import lit
from models import PAIRS, random_network, trained_tokenizer
from tiny_run import sentences
from tiny_run import tiny_run as tiny_run
from transformers import AutoTokenizer

from lit_transformer import Translator
from lit_transformer.checkpoints import CheckpointError
from lit_transformer.decoding import BeamSearch, GreedySearch
from lit_transformer.exchange import export_ctranslate2, load_translator
from lit_transformer.exchange.engine import converted
from lit_transformer.interfaces import InputError
from lit_transformer.vocabulary import EOS_ID


@pytest.fixture
def engine() -> Callable[[Path], Any]:
    ctranslate2 = pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")
    return lambda folder: ctranslate2.Translator(
        str(folder), device="cpu", compute_type="float32", inter_threads=1, intra_threads=1
    )


def tokens_of(tokenizer: Any, text: str) -> list[str]:
    tokens: list[str] = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    return tokens


@torch.no_grad()
def log_probs(ours: Translator, src: str, tgt: str) -> torch.Tensor:
    """Of each token of the target, EOS too."""
    src_ids, tgt_ids = (
        torch.tensor(ids) for ids in (ours.tokenizer.encode_src([src]), ours.tokenizer.encode_tgt([tgt]))
    )
    scores = ours.network(src_ids, tgt_ids[:, :-1]).log_softmax(dim=-1)
    return scores.gather(2, tgt_ids[:, 1:, None])[0, :, 0]


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({}, {}),
        ({"norm": "pre", "num_decoder_layers": 1}, {"model": "unigram", "byte_fallback": False}),
        ({"positions": "learned", "max_length": 64, "tie": "none", "activation": "silu"}, {"model": "word"}),
        ({"tie": "output", "activation": "gelu", "bias": False, "scale_embedding": False}, {"lowercase": True}),
    ],
    ids=["paper", "pre", "learned", "gelu"],
)
def test_log_probabilities_are_equal(
    engine: Callable[[Path], Any], tmp_path: Path, changes: dict[str, Any], recipe: dict[str, Any]
) -> None:
    ours = Translator(random_network(**changes), trained_tokenizer(**recipe))
    assert export_ctranslate2(ours, tmp_path) == sorted(tmp_path.iterdir())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = [("<2ko> I love cats", "나는 e\u0301 </s>"), *((pair.src, pair.tgt) for pair in PAIRS[:15])]
    src, tgt = ([tokens_of(tokenizer, text) for text in side] for side in zip(*rows, strict=True))
    found = engine(tmp_path).score_batch(src, [tokens[:-1] for tokens in tgt])
    for (source, target), scored in zip(rows, found, strict=True):
        expected = log_probs(ours, source, target)
        torch.testing.assert_close(torch.tensor(scored.log_probs), expected, atol=1e-4, rtol=0)


def test_a_trained_model_translates_the_same(engine: Callable[[Path], Any], tiny_run: Path, tmp_path: Path) -> None:
    finished = lit("export", tiny_run, tmp_path / "fast", "--format", "ctranslate2")
    assert finished.status == 0, finished.err
    tokenizer, lines = AutoTokenizer.from_pretrained(tmp_path / "fast"), sentences(200, seed=9)
    src = [tokens_of(tokenizer, line) for line in lines]
    found = engine(tmp_path / "fast").translate_batch(src, beam_size=1, max_decoding_length=60)
    theirs = [tokenizer.decode(tokenizer.convert_tokens_to_ids(result.hypotheses[0])) for result in found]
    ours = Translator.from_pretrained(tiny_run, search=GreedySearch())(lines)
    ended = [pair for pair in zip(theirs, ours, strict=True) if len(pair[1].split()) < 20]
    assert len(ended) > 150
    assert all(one == other for one, other in ended)


@pytest.mark.parametrize(
    ("changes", "recipe", "words"),
    [
        ({"d_k": 8}, {}, "d_k=8"),
        ({"src_vocab_size": 620, "tie": "none"}, {}, "src_vocab_size=620"),
        ({}, {"joint": False}, "joint=False"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, changes: dict[str, Any], recipe: dict[str, Any], words: str
) -> None:
    ours = Translator(random_network(**changes), trained_tokenizer(**recipe))
    with pytest.raises(InputError, match=words):
        export_ctranslate2(ours, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    monkeypatch.delitem(sys.modules, "ctranslate2.specs", raising=False)
    finished = lit("export", tiny_run, tmp_path / "fast", "--format", "ctranslate2")
    assert finished.status == 1
    assert 'pip install "lit-transformer[ctranslate2]"' in finished.err
    assert finished.err.count("\n") == 1


# As an engine of translate


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--n_best", "3", "--length_penalty", "1.1"),
        ("--beam_size", "1", "--scores"),
        ("--max_length", "3", "--max_tokens", "40", "--num_workers", "2"),
        ("--max_extra_length", "1"),
    ],
    ids=["beam", "n_best", "greedy", "cut", "short"],
)
def test_translate_gives_the_same_lines(engine: Any, tiny_run: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    lines = [*sentences(60, seed=9), "", "  ", "a stranger's word"]  # some run on to the bound
    (tmp_path / "in").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    said = [
        lit("translate", tiny_run, "--input", tmp_path / "in", "--engine", name, *options)
        for name in ("torch", "ctranslate2", "ctranslate2")
    ]
    assert [one.status for one in said] == [0, 0, 0], said[1].err
    ours, theirs, again = ([line.split("\t") for line in one.out.split("\n")] for one in said)
    assert again == theirs
    assert said[1].err == said[0].err  # the warnings of lines and translations that are cut
    assert len(ours) == len(theirs)
    if options[:1] == ("--n_best",):  # the best of each line: those below may run on, and be finished late
        ours, theirs = ([line for line, last in zip(said, [[""], *said], strict=False) if line[0] != last[0]]
                        for said in (ours, theirs))  # fmt: skip
    for line, other in zip(ours, theirs, strict=True):
        if options[:1] != ("--n_best",) or len(line[-1].split()) < 10:  # further down the list some run on
            assert other[-1] == line[-1]
            assert [float(part) for part in other[:-1]] == pytest.approx([float(part) for part in line[:-1]], abs=1e-2)
    assert len(list((tmp_path / "cache" / "lit_transformer" / "ctranslate2").iterdir())) == 1


@pytest.mark.parametrize("beam_size", ["1", "4"])
def test_no_engine_repeats_what_must_not_be_repeated(engine: Any, tiny_run: Path, beam_size: str) -> None:
    lines = ["big big big red", "red red", "one one two two", "big house big house"]
    options = ("--beam_size", beam_size, "--no_repeat_ngram_size")
    free, *banned = (
        lit("translate", tiny_run, *lines, "--engine", name, *options, size).out.splitlines()
        for name, size in (("torch", "0"), ("torch", "1"), ("ctranslate2", "1"))
    )
    assert any(len({*line.split()}) < len(line.split()) for line in free)
    assert all(len({*line.split()}) == len(line.split()) for found in banned for line in found)
    if beam_size == "1":  # a wider beam depends on probabilities, in which the engine leaves out what is ruled out
        assert banned[0] == banned[1]


def test_a_changed_checkpoint_is_converted_again(engine: Any, tiny_run: Path, tmp_path: Path) -> None:
    lines, cache = sentences(10, seed=3), tmp_path / "cache" / "lit_transformer" / "ctranslate2"
    for step in (50, 150):
        (tmp_path / "now.ckpt").write_bytes((tiny_run / "checkpoints" / f"step={step}.ckpt").read_bytes())
        expected = Translator.from_pretrained(tmp_path / "now.ckpt", search=GreedySearch())(lines)
        assert load_translator(tmp_path / "now.ckpt", "ctranslate2", search=GreedySearch())(lines) == expected
        assert len(list(cache.iterdir())) == 1


def test_a_conversion_that_is_gone_is_named(engine: Any, tiny_run: Path, tmp_path: Path) -> None:
    """As when another process has converted the same checkpoint, which has changed meanwhile."""
    translator = load_translator(tiny_run, "ctranslate2")
    shutil.rmtree(translator.folder)
    with pytest.raises(CheckpointError, match=r"is gone, as when the checkpoint .* has changed; load it again"):
        translator(["a"])


def test_the_checkpoint_that_names_a_conversion_is_the_one_converted(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    last = (run / "checkpoints" / "step=150.ckpt").rename(tmp_path / "step=150.ckpt")
    for other in (run / "checkpoints").glob("last*.ckpt"):
        other.unlink()
    read = Translator.from_pretrained

    def late(path: Path, **options: Any) -> Translator:
        if last.exists():
            last.rename(run / "checkpoints" / "step=150.ckpt")  # the training goes on just now
        return read(path, **options)

    monkeypatch.setattr("lit_transformer.exchange.engine.Translator.from_pretrained", late)
    lines = sentences(10, seed=3)
    found = load_translator(run, "ctranslate2", search=GreedySearch())(lines)
    assert not last.exists()
    assert found == read(tiny_run / "checkpoints" / "step=100.ckpt", search=GreedySearch())(lines)


def test_conversions_of_checkpoints_that_are_gone_are_removed(engine: Any, tiny_run: Path, tmp_path: Path) -> None:
    content = (tiny_run / "checkpoints" / "step=50.ckpt").read_bytes()
    for name in ("one.ckpt", "two.ckpt", "three.ckpt"):
        (tmp_path / name).write_bytes(content)
    one, two = converted(tmp_path / "one.ckpt"), converted(tmp_path / "two.ckpt")
    (tmp_path / "one.ckpt").unlink()
    three = converted(tmp_path / "three.ckpt")
    assert not one.exists()
    assert {*three.parent.iterdir()} == {two, three}


def test_the_number_of_threads_is_settled_once(engine: Any, monkeypatch: pytest.MonkeyPatch, tiny_run: Path) -> None:
    monkeypatch.setattr("lit_transformer.exchange.engine.possible_workers", lambda: 2)
    translator = load_translator(tiny_run, "ctranslate2", search=GreedySearch())
    assert len(translator(["one cat"] * 2050)) == 2050  # two windows, the second with two lines
    assert list(translator._engines) == [2]


def test_the_gpu_that_is_named_is_the_one_used(engine: Any, monkeypatch: pytest.MonkeyPatch, tiny_run: Path) -> None:
    translator, asked = load_translator(tiny_run, "ctranslate2"), []
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: 2)
    monkeypatch.setattr("ctranslate2.get_supported_compute_types", lambda device: {"float32"})
    monkeypatch.setattr("ctranslate2.Translator", lambda folder, **options: asked.append(options))
    translator.to("cuda:1")._engine()
    assert (asked[0]["device"], asked[0]["device_index"]) == ("cuda", 1)
    with pytest.raises(InputError, match="device cuda:2"):
        translator.to("cuda:2")


def test_another_tokenizer_configuration_or_version_is_converted_again(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path
) -> None:
    folder = Translator.from_pretrained(tiny_run).save(tmp_path / "exported")
    seen = [converted(folder)]
    assert converted(folder) == seen[0]
    for name in ("tokenizer.json", "config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text + "\n", encoding="utf-8")
        seen.append(converted(folder))
    for place, value in (
        ("lit_transformer.exchange.engine.version", lambda _: "0.0.0"),
        ("ctranslate2.__version__", "0.0.0"),
    ):
        monkeypatch.setattr(place, value)
        seen.append(converted(folder))
    assert len(set(seen)) == 5
    assert [*seen[0].parent.iterdir()] == [seen[-1]]


def test_the_conversion_of_a_quicker_process_is_kept(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path
) -> None:
    checkpoint, files = tiny_run / "checkpoints" / "step=50.ckpt", []

    def slow(translator: Translator, folder: Path) -> list[Path]:
        monkeypatch.setattr("lit_transformer.exchange.engine.export_ctranslate2", export_ctranslate2)
        files.append((converted(checkpoint) / "model.bin").stat().st_ino)  # another one starts now, and ends first
        return export_ctranslate2(translator, folder)

    monkeypatch.setattr("lit_transformer.exchange.engine.export_ctranslate2", slow)
    folder = converted(checkpoint)
    assert files == [(folder / "model.bin").stat().st_ino]
    assert [*folder.parent.iterdir()] == [folder]
    (folder / "model.bin").unlink()  # half deleted
    assert (converted(checkpoint) / "model.bin").is_file()


def test_an_exported_folder_is_taken_as_it_is(engine: Any, tiny_run: Path, tmp_path: Path) -> None:
    assert lit("export", tiny_run, tmp_path / "fast", "--format", "ctranslate2").status == 0
    said = lit("translate", tmp_path / "fast", "one cat", "--engine", "ctranslate2", "--precision", "int8")
    assert (said.status, said.out) == (0, "eins Katze\n")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "fast" / "tokenizer.json").unlink()
    said = lit("translate", tmp_path / "fast", "one cat", "--engine", "ctranslate2")
    assert said.status == 1
    assert "has no tokenizer.json" in said.err


def test_the_engine_writes_empty_translations_too(engine: Any, tmp_path: Path) -> None:
    """Of a network that would rather end at once."""
    network = random_network(output_bias=True, tie="none")
    with torch.no_grad():
        network.projection.bias[EOS_ID] = 9.0
    export_ctranslate2(Translator(network, trained_tokenizer()), tmp_path)
    search = BeamSearch(beam_size=4, n_best=2)
    theirs = load_translator(str(tmp_path), "ctranslate2", search=search)
    ours = Translator(network, theirs.tokenizer, search)
    lines = [pair.src for pair in PAIRS[:20]]
    for mine, other in zip(ours.translate(lines), theirs.translate(lines), strict=True):
        assert mine[0].text == other[0].text == ""
        assert other[0].score == pytest.approx(mine[0].score, abs=1e-4)


def test_what_the_engine_cannot_do_is_one_sentence(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path
) -> None:
    class Own(BeamSearch):
        pass

    with pytest.raises(InputError, match="no Own"):
        load_translator(tiny_run, "ctranslate2", search=Own())
    with pytest.raises(InputError, match="has no compile"):
        load_translator(tiny_run, "ctranslate2", compile=True)
    translator = load_translator(tiny_run, "ctranslate2", precision="bf16", compile=False)
    with pytest.raises(InputError, match="take the checkpoint"):
        translator.attention("one cat")
    with pytest.raises(InputError, match="takes no prefixes"):
        translator.translate(["one cat"], ["eins"])
    with pytest.raises(InputError, match="device meta"):
        translator.to("meta")
    monkeypatch.setattr("ctranslate2.get_supported_compute_types", lambda device: {"float32"})
    with pytest.raises(InputError, match="no precision bf16"):
        translator(["one cat"])
    for arguments, words in (
        ((tmp_path / "nothing",), "does not exist"),
        ((tiny_run, "--precision", "bf16"), "bf16"),
        ((tiny_run, "--stop_early"), "leave stop_early out"),
    ):
        said = lit("translate", *arguments, "one cat", "--engine", "ctranslate2")
        assert (said.status, said.err.count("\n")) == (1, 1), said.err
        assert words in said.err
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    said = lit("translate", tiny_run, "one cat", "--engine", "ctranslate2")
    assert said.status == 1
    assert said.err == 'lit-transformer: CTranslate2 needs a package: pip install "lit-transformer[ctranslate2]"\n'


@pytest.mark.parametrize("content", [b"", b"junk" * 99, None])
def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path, content: bytes | None) -> None:
    pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")
    export_ctranslate2(Translator(random_network(), trained_tokenizer()), tmp_path / "fast")
    model = tmp_path / "fast" / "model.bin"
    good = model.read_bytes()
    model.write_bytes(good[:100] + b"\xff" * 40 + good[140:] if content is None else content)  # names that are no text
    finished = lit("translate", tmp_path / "fast", "<2ko> I love cats", "--engine", "ctranslate2")
    assert finished.status == 1
    assert finished.err.startswith(f"lit-transformer: {tmp_path / 'fast'} cannot be loaded by CTranslate2: ")
    assert finished.err.endswith("; if it is damaged, export it again\n")
    assert finished.err.count("\n") == 1


def test_a_damaged_conversion_is_to_be_removed(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = converted(tiny_run)
    (folder / "model.bin").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=f"{folder} cannot be loaded .*; if it is damaged, remove the folder, and"
    ):
        load_translator(tiny_run, "ctranslate2")("one")
    shutil.rmtree(folder)
    assert load_translator(tiny_run, "ctranslate2")("one cat") == ["eins Katze"]
