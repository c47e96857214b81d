"""Export and import, judged by ``transformers``: ids, logits and translations are equal; what cannot be is said."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import lit
from models import PAIRS, SIZES, random_network
from tiny_run import WORDS, sentences
from tiny_run import tiny_run as tiny_run
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from lit_transformer import SubwordTokenizer, Transformer, Translator
from lit_transformer.decoding import BeamSearch, GreedySearch, length_penalty
from lit_transformer.exchange import export_huggingface, export_torch, import_huggingface
from lit_transformer.exchange.huggingface import generation_config
from lit_transformer.interfaces import InputError
from lit_transformer.vocabulary import PAD_ID

transformers_logging.disable_progress_bar()

AWKWARD = [
    "", " ", "</s> <s> <pad> <unk>", " two  spaces ", "a\tb", "e\u0301 is é", "한국어", "İstanbul 3.14 don't",
    "<2ko> I love cats", "  <2ko> I love cats", "I love <0x41> cats", "🙂",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> SubwordTokenizer:
    tokenizer = SubwordTokenizer(vocab_size=600, tags=["<2ko>"])
    tokenizer.train(PAIRS)
    return tokenizer


class PowerOfLength(BeamSearch):
    """Hugging Face's penalty: the length to the power of alpha."""

    def penalty(self, length: Any) -> Any:
        return length**self.length_penalty


def batch(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    src, tgt_input = torch.randint(4, vocab_size, (4, 9)), torch.randint(4, vocab_size, (4, 7))
    src[1, 4:], src[3, 1:] = PAD_ID, PAD_ID
    return src, tgt_input


@torch.no_grad()
def their_logits(model: Any, src: torch.Tensor, tgt_input: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(
        input_ids=src, attention_mask=(src != PAD_ID).long(), decoder_input_ids=tgt_input
    ).logits
    return logits


def their_translations(folder: Path, lines: list[str], **options: Any) -> list[str]:
    """As somebody would do it who has only ``transformers``."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = model.generate(**tokenizer(lines, return_tensors="pt", padding=True), **options)
    texts: list[str] = tokenizer.batch_decode(found, skip_special_tokens=True)
    return texts


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_decoder_layers": 1, "activation": "gelu", "num_heads": 2, "d_model": 24, "output_bias": True},
        {"norm": "pre", "num_decoder_layers": 1},
        {"activation": "silu", "bias": False, "scale_embedding": False, "max_length": 40, "d_k": 4, "d_v": 4},
    ],
    ids=["paper", "gelu", "pre", "silu"],
)
def test_logits_are_equal_there_and_back(tokenizer: SubwordTokenizer, tmp_path: Path, changes: dict[str, Any]) -> None:
    ours = Translator(random_network(**changes), tokenizer)
    export_huggingface(ours, tmp_path / "there")
    model, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "there", output_loading_info=True)
    assert not any(report.values())
    src, tgt_input = batch(SIZES["vocab_size"])
    with torch.no_grad():
        logits = ours.network(src, tgt_input)
    assert logits.std(dim=(0, 1)).mean() > 0.1  # the scores depend on what was read
    torch.testing.assert_close(their_logits(model, src, tgt_input), logits, atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path / "again")  # which leaves the positions out
    AutoTokenizer.from_pretrained(tmp_path / "there").save_pretrained(tmp_path / "again")
    resaved = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(their_logits(resaved, src, tgt_input), logits, atol=1e-4, rtol=0)
    for folder in ("there", "again"):
        back = import_huggingface(tmp_path / folder)
        assert back.tokenizer.to_state() == tokenizer.to_state()
        with torch.no_grad():
            torch.testing.assert_close(back.network(src, tgt_input), logits, atol=1e-5, rtol=0)
    assert isinstance(back.network, Transformer)
    assert back.network.max_length == changes.get("max_length", 1024)


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"lowercase": True},
        {"model": "unigram", "vocab_size": 900},
        {"model": "wordpiece", "tags": []},
        {"model": "word", "tags": ["<2ko>", "<formal>"]},
    ],
    ids=lambda recipe: "-".join(map(str, recipe.values())) or "bpe",
)
def test_the_tokenizer_gives_the_same_ids_and_texts(tmp_path: Path, recipe: dict[str, Any]) -> None:
    tokenizer = SubwordTokenizer(**{"vocab_size": 600, "tags": ["<2ko>"], **recipe})
    tokenizer.train(PAIRS)
    export_huggingface(Translator(random_network(vocab_size=900), tokenizer), tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    lines = AWKWARD + [side for pair in PAIRS[:100] for side in (pair.src, pair.tgt)]
    draw = random.Random(1)
    lines += ["".join(draw.choices("aB é.<>/s2ko '1\u0301가나🙂", k=draw.randint(1, 30))) for _ in range(300)]
    lines = [line for line in lines if not line.strip().startswith("<2ko>") or recipe.get("tags", True)]
    assert theirs(lines)["input_ids"] == tokenizer.encode_src(lines)
    rows = tokenizer.encode_tgt(lines)
    spoken = [tokenizer.decode([i for i in row if i != 1]) for row in rows]  # special tokens are passed over, <unk> too
    assert theirs.batch_decode(rows, skip_special_tokens=True) == spoken
    assert theirs.vocab_size == tokenizer.num_tokens
    tag_ids = tokenizer.encode_src([f"{tag} a" for tag in tokenizer.tags])
    assert all(theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode_src([i for i in ids if i != 1])
               for ids in tag_ids)  # fmt: skip


def test_a_trained_model_translates_the_same(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "marian"
    finished = lit("export", tiny_run, folder, "--format", "huggingface")
    assert finished.status == 0, finished.err
    assert finished.out.splitlines() == [str(path) for path in sorted(folder.iterdir())]
    lines = sentences(200, seed=9, longest=6)
    bound = {"max_extra_length": 64}  # the network's max_length, so that only that ends a translation
    greedy = Translator.from_pretrained(tiny_run, search=GreedySearch(**bound))(lines)
    assert sum(set(line.split()) <= set(WORDS.values()) for line in greedy) > 150  # it has learned something
    assert their_translations(folder, lines, num_beams=1) == greedy
    lines = sentences(60, seed=9)  # no longer than in training
    for alpha in (0.6, 1.4):
        beam = Translator.from_pretrained(tiny_run, search=PowerOfLength(length_penalty=alpha, **bound))(lines)
        theirs = their_translations(folder, lines, length_penalty=alpha)  # 4 beams, from generation_config.json
        ended = [pair for pair in zip(theirs, beam, strict=True) if len(pair[1].split()) < 20]
        assert len(ended) > 45  # the others run on to the bound, where theirs get EOS for nothing
        assert all(one == other for one, other in ended)
    assert lit("import", folder, tmp_path / "back").status == 0
    assert Translator.from_pretrained(tmp_path / "back")(lines) == Translator.from_pretrained(tiny_run)(lines)


def test_export_is_told_the_search(tiny_run: Path, tmp_path: Path) -> None:
    options = "--beam_size=5", "--length_penalty=1", "--penalty_kind=power"
    assert lit("export", tiny_run, tmp_path / "there", "--format=huggingface", *options).status == 0
    kept = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "there").generation_config
    assert (kept.num_beams, kept.length_penalty) == (5, 1.0)
    for option in options:
        finished = lit("export", tiny_run, tmp_path / "else", option)
        assert finished.status == 1
        assert f"{option.partition('=')[0]} is for --format huggingface" in finished.err
    assert not (tmp_path / "else").exists()


def test_the_search_is_written_as_generate_has_it(tokenizer: SubwordTokenizer, tmp_path: Path) -> None:
    unlike = {"allow_unknown": False, "stop_early": True, "penalty_kind": "power", "no_repeat_ngram_size": 4}
    search = BeamSearch(beam_size=3, length_penalty=1.2, **unlike)
    export_huggingface(Translator(random_network(max_length=40), tokenizer, search=search), tmp_path)
    kept = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config
    assert (kept.num_beams, kept.length_penalty, kept.early_stopping) == (3, 1.2, True)
    assert (kept.suppress_tokens, kept.max_length, kept.forced_eos_token_id) == ([0, 1, 2], 41, 3)
    assert kept.no_repeat_ngram_size == 4


def test_the_penalty_of_the_paper_becomes_the_nearest_power() -> None:
    """Around 20 tokens the power weighs a longer and a shorter hypothesis as the paper's penalty does."""
    alpha = generation_config(BeamSearch(length_penalty=0.6), None)["length_penalty"]
    for length in (19, 20, 21):
        ratio = length_penalty(length + 1, 0.6) / length_penalty(length, 0.6)
        assert length_penalty(length + 1, alpha, "power") / length_penalty(length, alpha, "power") == pytest.approx(
            ratio, abs=1e-3
        )
        assert length_penalty(length + 1, 0.6, "power") / length_penalty(length, 0.6, "power") > ratio + 4e-3


class Warm(Transformer):
    """A network of one's own."""


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Transformer(**SIZES, positions="learned", max_length=9), "positions='learned'"),
        (lambda: Transformer(**SIZES, tie="output"), "tie='output'"),
        (lambda: Transformer(**SIZES, d_k=8), "d_k=8, but heads are d_model / num_heads = 4"),
        (lambda: Transformer(**SIZES, d_v=2), "d_v=2"),
        (lambda: Transformer(**{**SIZES, "num_heads": 3}, d_k=5, d_v=5), "d_k=5"),
        (lambda: Warm(**SIZES), "Warm cannot become a Marian model"),
    ],
)
def test_what_does_not_fit_is_named(
    tokenizer: SubwordTokenizer, tmp_path: Path, make: Callable[[], Transformer], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        export_huggingface(Translator(make(), tokenizer), tmp_path / "new")
    assert words in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_two_vocabularies_do_not_fit(tmp_path: Path) -> None:
    two = SubwordTokenizer(vocab_size=600, joint=False)
    two.train(PAIRS)
    with pytest.raises(InputError, match="joint=False"):
        export_huggingface(Translator(random_network(), two), tmp_path)


def _edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**content, **changes}), encoding="utf-8")

    return edit


def _sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "source.spm").touch()


def _tensors(**changes: Any) -> Callable[[Path], None]:
    """Writes the weights as torch has them, some of them changed; None leaves one out."""

    def change(folder: Path) -> None:
        weights = AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()
        weights |= {name.replace("__", "."): value for name, value in changes.items()}
        torch.save({name: value for name, value in weights.items() if value is not None}, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()

    return change


def _changed_vocabulary(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    first, second = list(vocab)[270:272]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", ["stranger.payload.Subwords", "payload.Subwords"])
def test_code_beside_a_model_is_not_run(
    tokenizer: SubwordTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "stranger"
    export_huggingface(Translator(random_network(), tokenizer), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["lit_transformer"]["class_path"] = name
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "payload.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    monkeypatch.chdir(tmp_path if name.startswith("stranger") else folder)
    finished = lit("import", folder, tmp_path / "back")
    assert finished.status == 1
    assert "code that comes with a model is not run" in finished.err
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_sentencepiece, "it has no target.spm"),
        (_edit("config.json", model_type="bart"), "model_type is 'bart', but only marian and pegasus"),
        (_edit("config.json", model_type="pegasus"), "no tensor model.encoder.layer_norm.weight"),
        (_edit("config.json", decoder_start_token_id=0), "decoder_start_token_id is 0"),
        (_edit("config.json", share_encoder_decoder_embeddings=False), "share_encoder_decoder_embeddings is False"),
        (_edit("config.json", decoder_ffn_dim=64), "decoder_ffn_dim 64"),
        (_edit("config.json", activation_function="tanh"), "activation_function is 'tanh'"),
        (_edit("config.json", encoder_ffn_dim=64, decoder_ffn_dim=64), "size mismatch"),
        (_edit("config.json", d_model=32), "should have 32 features"),
        (_edit("config.json", d_model="wide"), "cannot be imported"),
        (_edit("tokenizer_config.json", lit_transformer=None), "no 'lit_transformer' entry"),
        (_changed_vocabulary, "vocabulary in tokenizer.json has changed"),
        (_edit("tokenizer.json", normalizer=None), "not as lit-transformer wrote it"),
        (_edit("tokenizer.json", decoder={"type": "Sequence", "decoders": ["x"]}), "not as lit-transformer wrote it"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json is damaged"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json is damaged"),
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "model.safetensors is damaged"),
        (_tensors(final_logits_bias=torch.ones(1, 600)), "size mismatch"),
        (_tensors(lm_head__weight=torch.ones(610, 16)), "not one matrix"),
        (_tensors(model__encoder__embed_positions__weight=torch.ones(9, 16)), "no sinusoidal waves"),
        (_tensors(model__encoder__layers__1__fc1__bias=None), "no tensor model.encoder.layers.1.fc1.bias"),
        (shutil.rmtree, "there is no folder"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(
    tokenizer: SubwordTokenizer, tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    folder = tmp_path / "marian"
    export_huggingface(Translator(random_network(), tokenizer), folder)
    spoil(folder)
    finished = lit("import", folder, tmp_path / "back")
    assert finished.status == 1
    assert words in finished.err
    assert str(folder) in finished.err
    assert finished.err.count("\n") == 1
    assert not (tmp_path / "back").exists()


def test_weights_as_torch_saves_them_are_read(tokenizer: SubwordTokenizer, tmp_path: Path) -> None:
    ours = Translator(random_network(), tokenizer)
    export_huggingface(ours, tmp_path)
    _tensors()(tmp_path)
    for name, tensor in import_huggingface(tmp_path).network.state_dict().items():
        assert torch.equal(tensor, ours.network.state_dict()[name])


def test_safetensors_is_the_default_and_nothing_is_overwritten(tiny_run: Path, tmp_path: Path) -> None:
    assert lit("export", tiny_run, tmp_path / "out").status == 0
    lines = sentences(5, seed=3)
    assert Translator.from_pretrained(tmp_path / "out")(lines) == Translator.from_pretrained(tiny_run)(lines)
    for arguments in (("export", tiny_run, tmp_path / "out"), ("import", tmp_path / "out", tmp_path / "out")):
        finished = lit(*arguments)
        assert finished.status == 1
        assert "name a new one" in finished.err
    assert lit("export", tiny_run, tmp_path / "else", "--format", "keras").status == 2


def test_a_network_on_another_device_is_refused(tokenizer: SubwordTokenizer, tmp_path: Path) -> None:
    translator = Translator(Transformer(tokenizer.vocab_size, num_layers=1, d_model=8, d_ff=8, num_heads=2), tokenizer)
    translator.to("meta")
    for write in (export_huggingface, export_torch):
        with pytest.raises(InputError, match=r"is on meta, and is written from the CPU: call translator.to\('cpu'\)"):
            write(translator, tmp_path / "out")
