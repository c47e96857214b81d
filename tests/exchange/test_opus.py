"""Marian folders as OPUS-MT has them, made by sentencepiece and transformers, and read back without either."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import lit
from models import PAIRS
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

from lit_transformer import GreedySearch, SubwordTokenizer, Translator
from lit_transformer.exchange import import_huggingface

sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece, which makes such folders, is missing")

TAG = ">>kor<<"
CONFIG: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "activation_function": "swish", "scale_embedding": True,
    "max_position_embeddings": 64, "max_length": 64, "forced_eos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
LINES = [pair.src for pair in PAIRS[:80]] + [
    "", " ", "  two   spaces ", "a\tb", "ﬁ ①２ Å Å", "I love 한국어 cats", "漢字 and 漢字", 
    "🙂🙂 cats", "▁cats ▁", "don't—stop…",
    f"{TAG} I love cats", f"{TAG}I love",
    "zero\u200bwidth\u00a0space\u3000wide", "ｱｲｳ ｶﾞ ㈜", "x" * 60, "e\u0301", "가", "İ ß", "나는 고양이를",
]  # fmt: skip


def spm_model(folder: Path, name: str, lines: list[str], vocab_size: int, **options: Any) -> Any:
    (folder / "text").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / name), vocab_size=vocab_size, minloglevel=2,
        hard_vocab_limit=False, num_threads=1, **options,
    )  # fmt: skip
    (folder / f"{name}.model").rename(folder / f"{name}.spm")
    (folder / "text").unlink()
    (folder / f"{name}.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))


def write_folder(folder: Path, is_joint: bool = False, lost: int = 5, **options: Any) -> Path:
    """A folder with the conventions of OPUS-MT: ``</s>`` is 0, ``<unk>`` 1, padding last and first in the decoder."""
    folder.mkdir()
    src, tgt = ([getattr(pair, side) for pair in PAIRS] for side in ("src", "tgt"))
    if is_joint:
        models = [spm_model(folder, name, src + tgt, 520, **options) for name in ("source", "target")]
    else:
        more = 256 if options.get("byte_fallback") else 0
        models = [
            spm_model(folder, "source", src, 160 + more, **options),
            spm_model(folder, "target", tgt, 420 + more, **options),
        ]
    pieces = {model.id_to_piece(i) for model in models for i in range(3, model.get_piece_size())}
    kept = sorted(pieces)[:-lost] if lost else sorted(pieces)  # marian's vocabulary lacks what it has never seen
    tokens = ["</s>", "<unk>", *kept, "漢字", TAG, "<pad>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    pad = vocab["<pad>"]
    config = MarianConfig(vocab_size=len(vocab), pad_token_id=pad, decoder_start_token_id=pad, **CONFIG)
    model = MarianMTModel(config).eval()
    model.generation_config.bad_words_ids = [[pad]]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        model.model.shared.weight[pad] = 0.0
        model.final_logits_bias.normal_()
        model.final_logits_bias[0, pad] = 0.0
    model.save_pretrained(folder)
    return folder


def their_tokenizer(folder: Path) -> Any:
    return MarianTokenizer(
        source_spm=str(folder / "source.spm"), target_spm=str(folder / "target.spm"), vocab=str(folder / "vocab.json")
    )


def to_ours(folder: Path) -> dict[int, int]:
    """Their id of each token, ours."""
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    rest = [number for token, number in vocab.items() if token not in ("</s>", "<unk>", "<pad>")]
    return {vocab["<pad>"]: 0, vocab["<unk>"]: 1, vocab["</s>"]: 3} | {old: new for new, old in enumerate(rest, 4)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_joint": True},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"normalization_rule_name": "nfkc_cf", "add_dummy_prefix": False, "byte_fallback": True, "lost": 0},
    ],
    ids=["separate", "joint", "identity", "bytes"],
)
def test_ids_logits_and_translations_are_theirs(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = write_folder(tmp_path / "opus", **options)
    theirs, ours = their_tokenizer(folder), import_huggingface(folder)
    ids, draw = to_ours(folder), random.Random(1)
    lines = LINES + ["".join(draw.choices("aB é.,2㍿한가e\u0301🙂 cats", k=draw.randint(1, 20))) for _ in range(200)]
    assert ours.tokenizer.encode_src(lines) == [[ids[i] for i in row] for row in theirs(lines)["input_ids"]]
    targets = [line for line in [pair.tgt for pair in PAIRS[:60]] + lines[80:] if TAG not in line]
    rows = theirs(text_target=targets)["input_ids"]
    assert [row[1:] for row in ours.tokenizer.encode_tgt(targets)] == [[ids[i] for i in row] for row in rows]
    spoken = [theirs.decode(row, skip_special_tokens=True, use_source_tokenizer=False) for row in rows]
    known = [number for number, row in enumerate(rows) if theirs.unk_token_id not in row]
    assert len(known) > 50
    decoded = ours.tokenizer.decode_batch([[ids[i] for i in row] for row in rows])
    assert [decoded[i].strip() for i in known] == [spoken[i].strip() for i in known]

    model = MarianMTModel.from_pretrained(folder)
    batch = theirs(LINES[:8], return_tensors="pt", padding=True)
    src = torch.tensor([[ids[int(i)] for i in row] for row in batch["input_ids"]])
    tgt = torch.randint(0, len(ids) - 1, (8, 6))
    start = torch.full((8, 1), model.config.decoder_start_token_id)
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=torch.cat((start, tgt), 1)).logits.log_softmax(-1)
        mine = torch.cat((torch.full((8, 1), 2), torch.tensor([[ids[int(i)] for i in row] for row in tgt])), 1)
        found = ours.network(src, mine).log_softmax(-1)
    columns = [ids[old] for old in range(len(ids))]
    torch.testing.assert_close(found[:, :, columns], logits, atol=1e-4, rtol=0)

    generated = model.generate(**batch, num_beams=1, max_new_tokens=12)
    ours.search = GreedySearch(max_extra_length=60)
    texts = ours(LINES[:8])
    expected = theirs.batch_decode(generated, skip_special_tokens=True, use_source_tokenizer=False)
    assert any(expected)
    assert all(mine.startswith(text[:10]) for mine, text in zip(texts, expected, strict=True) if "<unk>" not in mine)


@pytest.mark.parametrize("drops", [True, False])
def test_white_space_is_dropped_where_the_model_says_so(tmp_path: Path, drops: bool) -> None:
    """What is doubled, or at an end, makes no difference to models whose training dropped it, the usual ones."""
    translator = import_huggingface(write_folder(tmp_path / "opus", remove_extra_whitespaces=drops))
    found = translator.translate(["I love cats", "I  love cats ", "  I love   cats", "I love cats  "])
    clean, *others = [[(one.text, round(one.score, 3)) for one in candidates] for candidates in found]
    assert [other == clean for other in others] == [drops] * 3


@pytest.mark.parametrize("rules", ["nmt_nfkc", "identity"])
def test_words_are_those_of_the_text_as_it_was_written(tmp_path: Path, rules: str) -> None:
    tokenizer = import_huggingface(write_folder(tmp_path / "opus", normalization_rule_name=rules)).tokenizer
    plain = "I love cats"
    lines = [
        "I lo\u200bve cats", "I love\u200b cats", "\u200bI love cats", "I love \u200bcats",
        "I lo\u00b4ve cats", "I love\u00b4 cats", "\u00b4I love cats", "  I love\u00b4\u200b   cats ",
    ]  # fmt: skip
    for sentences in (tokenizer.words_src, tokenizer.words_tgt):
        for line in lines:
            ids, words = sentences([line])[0]
            spoken = [number for number in words if number is not None]
            assert spoken == sorted(spoken)
            assert set(spoken) == {0, 1, 2}, line
            if sentences == tokenizer.words_src:  # the last word is found by its own number
                alone = [one for one, number in zip(*sentences([plain])[0], strict=True) if number == 2]
                assert [one for one, number in zip(ids, words, strict=True) if number == 2][-len(alone) :] == alone
    assert {*tokenizer.words_src([f"{TAG} \u00b4 \u200b cats"])[0][1]} >= {2}
    assert {*tokenizer.words_src(["a\x1cb cats"])[0][1]} - {None, 1} == {0, 2}  # nmt_nfkc drops this white space


def test_an_imported_folder_is_translated_with_looked_into_and_trained_on(tmp_path: Path) -> None:
    folder, back = write_folder(tmp_path / "opus"), tmp_path / "back"
    finished = lit("import", folder, back)
    assert finished.status == 0, finished.err
    translator = Translator.from_pretrained(back)
    assert isinstance(translator.tokenizer, SubwordTokenizer)
    assert translator.tokenizer.encode_src([f"{TAG} I"]) == import_huggingface(folder).tokenizer.encode_src(
        [f"{TAG} I"]
    )
    known = translator.tokenizer
    assert known.decode(known.encode_src([f"{TAG} I"])[0]) == known.decode(known.encode_src(["I"])[0])
    assert lit("translate", back, "I love cats", "--beam_size", "2").status == 0
    view = translator.attention("I love 漢字", "나는")
    assert "".join(view.src_tokens) == "▁I▁love▁漢字</s>"
    assert (view.tgt_tokens[0], view.tgt_tokens[-1]) == ("<s>", "</s>")

    for name, rows in (("train", PAIRS[:40]), ("val", PAIRS[40:44])):
        for side in ("src", "tgt"):
            text = "".join(f"{getattr(pair, side)}\n" for pair in rows)
            (tmp_path / f"{name}.{'en' if side == 'src' else 'ko'}").write_text(text, encoding="utf-8")
    config = {
        "data": {
            "train": {"path": str(tmp_path / "train"), "src": "en", "tgt": "ko"},
            "val": {"path": str(tmp_path / "val"), "src": "en", "tgt": "ko"},
            "max_tokens": 128, "max_length": 60,
        },
        "model": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.0}}},
        "checkpoint": {"every_n_train_steps": 2},
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": 2, "val_check_interval": 2, "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "default_root_dir": str(tmp_path / "run"),
        },
    }  # fmt: skip
    (tmp_path / "more.yaml").write_text(json.dumps(config), encoding="utf-8")
    scored = lit("validate", "--config", tmp_path / "more.yaml", "--ckpt_path", back)
    assert scored.status == 0, scored.err
    assert "val/bleu" in scored.err
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.json"))
    dropout = "--model.network.dropout", "0.45"
    finished = lit("fit", "--config", tmp_path / "more.yaml", "--init_from", back, *dropout)
    assert finished.status == 0, finished.err
    trained = Translator.from_pretrained(tmp_path / "run")
    assert trained.network.dropout == 0.45
    assert trained.tokenizer.to_state() == translator.tokenizer.to_state()
    for name, tensor in translator.network.state_dict().items():  # the learning rate was 0
        assert torch.equal(trained.network.state_dict()[name], tensor)
    resumed = lit(
        "fit", "--config", tmp_path / "run" / "config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "4"
    )
    assert resumed.status == 0, resumed.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_type": "bpe"}, "not a unigram model"),
        ({"user_defined_symbols": ["<sep>"]}, "symbols defined by users"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
)
def test_models_that_cannot_be_exact_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    folder = write_folder(tmp_path / "opus", lost=0, **options)
    finished = lit("import", folder, tmp_path / "back")
    assert (finished.status, finished.err.count("\n")) == (1, 1), finished.err
    assert words in finished.err
