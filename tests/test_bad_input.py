"""What people get wrong: each mistake gives one clear sentence, an exit status, and no debris.

The table runs the real command line in this process; two cases run it as a process of its own.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from command_line import Finished, lit, tiny_project

from lit_transformer import LitTransformer, SentencePair, SubwordTokenizer, Translator
from lit_transformer.callbacks import write_averaged_checkpoint

FIT = "fit --config tiny.yaml --trainer.default_root_dir bad"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in ``run``, and with everything that can be wrong."""
    folder = tmp_path_factory.mktemp("project")
    tiny_project(folder)
    finished = run_process(folder, "fit --config tiny.yaml")
    assert finished.status == 0, finished.err
    (folder / "messages").write_text(finished.err)
    write_bad_files(folder)
    return folder


def run_process(folder: Path, command: str, **environment: str) -> Finished:
    """Runs ``lit-transformer`` as a process of its own."""
    arguments = [sys.executable, "-m", "lit_transformer", *command.split()]
    done = subprocess.run(
        arguments, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=600
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def write_bad_files(folder: Path) -> None:
    good = (folder / "train.en").read_bytes()
    texts: dict[str, bytes] = {
        "unequal.en": b"a b\n" * 5,
        "unequal.de": b"b a\n" * 4,
        "lonely.en": b"a b\n",
        "table.csv": b"english,german\na b,b a\n",
        "numbers.jsonl": b'{"en": 7, "de": "b a"}\n',
        "holes.jsonl": b'{"en": "a b", "de": "b a"}\n' * 3 + b'{"en": "a b"}\n',
        "half.jsonl": b'{"en": "a b", "de": "b a"}\n{"en": "a',
        "table.parquet": b"PAR1 but nothing more",
        "cut.en.gz": gzip.compress(good)[: len(good) // 8],
        "cut.de": good,
        "latin.en": b"a b\nb \xff\xfe a\n",
        "latin.de": b"b a\na b\n",
        "empty.en": b"",
        "empty.de": b"",
        "blank.en": b"\n\n",
        "blank.de": b"\n\n",
        "late.en": b"a b c\n" * 1400 + b"\xff\n",  # behind the rows that are looked at first
        "late.de": b"c b a\n" * 1401,
        "text.ckpt": b"this is no checkpoint",
        "broken.yaml": b"model:\n  network: {num_layers: 1\n",
        "list.yaml": b"- model\n",
        "path.yaml": b"data: {val: val}\n",
        "twice.yaml": b"data: {vocab_size: 300}\ntrainer:\n  max_steps: 3\ndata:\n  max_tokens: 128\n",
        "inside.yaml": b"trainer:\n  callbacks:\n  - class_path: Mine\n    init_args: {mode: min, mode: max}\n",
        "steps.yaml": b"trainer:\n  callbacks:\n  - class_path: GradientAccumulationScheduler\n"
        b"    init_args: {scheduling: {0: 2}}\n",
        "typo.yaml": b"model:\n  network: {dropuot: 0.3}\n",
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    (folder / "nothing").mkdir()
    whole = next((folder / "run" / "checkpoints").glob("*.ckpt")).read_bytes()
    (folder / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    write_averaged_checkpoint(sorted((folder / "run" / "checkpoints").iterdir()), folder / "mean.ckpt")
    for name, size in (("other", 300), ("larger", 320)):
        tokenizer = SubwordTokenizer(vocab_size=size)
        tokenizer.train([SentencePair("quick foxes quickly jump", "lazy dogs lazily sleep")] * 9)
        tokenizer.save(folder / f"{name}.json")
    Translator.from_pretrained(folder / "run").save(folder / "exported")
    mixed = shutil.copytree(folder / "exported", folder / "mixed")
    content = json.loads((mixed / "config.json").read_text())
    content["init_args"]["vocab_size"] = 100
    (mixed / "config.json").write_text(json.dumps(content))


class Case(NamedTuple):
    """A command line and what its one sentence must say; rare ones are tested with the slow tests."""

    command: str
    words: tuple[str, ...]
    is_rare: bool = False


CASES = {
    # text
    "missing file": Case(f"{FIT} --data.train.path some/where/nothere", ("some/where/nothere",)),
    "missing table": Case(f"{FIT} --data.train.path ./some/where/table.csv", ("some/where/table.csv",), is_rare=True),
    "missing validation file": Case(f"{FIT} --data.val.path some/where/nothere", ("some/where/nothere",), is_rare=True),
    "missing src_path": Case(
        f"{FIT} --data.train.path null --data.train.src_path no.en --data.train.tgt_path no.de",
        ("no.en",),
        is_rare=True,
    ),
    "one side missing": Case(f"{FIT} --data.train.path lonely", ("lonely.en", "lonely.de"), is_rare=True),
    "one file instead of the prefix": Case(
        f"{FIT} --data.train.path ./train.en", ("./train.en", "its ending: ./train")
    ),
    "a packed file instead of the prefix": Case(f"{FIT} --data.train.path cut.en.gz", ("cut.en.gz", "ending: cut")),
    "path instead of a corpus": Case(
        f"{FIT} --data.train data/train", ("train: expected a corpus", "train: {path: data/train, src: en, tgt: de}")
    ),
    "path instead of a corpus, in YAML": Case(
        f"{FIT} --config path.yaml", ("val: expected a corpus", "val: {path: val, src: en, tgt: de}")
    ),
    "unequal lengths": Case(f"{FIT} --data.train.path unequal", ("unequal.en", "5 lines", "unequal.de", "4 lines")),
    "unequal validation": Case(
        f"{FIT} --data.val.path unequal", ("unequal.en", "5 lines", "unequal.de", "4 lines"), is_rare=True
    ),
    "wrong column": Case(
        f"{FIT} --data.train.path table.csv --data.train.src englisch", ("table.csv", "'englisch'", "'english'")
    ),
    "column of numbers": Case(
        f"{FIT} --data.train.path numbers.jsonl", ("numbers.jsonl", "'en'", "int", "text"), is_rare=True
    ),
    "broken JSON": Case(f"{FIT} --data.train.path half.jsonl", ("half.jsonl",), is_rare=True),
    "broken parquet": Case(f"{FIT} --data.train.path table.parquet", ("table.parquet",), is_rare=True),
    "broken gzip": Case(f"{FIT} --data.train.path cut", ("cut.en.gz", "line", "cut off")),
    "invalid UTF-8": Case(f"{FIT} --data.train.path latin", ("latin.en", "line 2", "UTF-8")),
    "empty corpus": Case(f"{FIT} --data.train.path empty", ("empty",)),
    "blank lines only": Case(f"{FIT} --data.train.path blank", ("no sentence pair is left", "2 empty")),
    "bad row that is not to be skipped": Case(
        f"{FIT} --data.train.path holes.jsonl --data.on_bad_row error", ("row 4", "holes.jsonl", "'de'", "on_bad_row")
    ),
    "no such way with bad rows": Case(
        f"{FIT} --data.on_bad_row stop", ("on_bad_row", "'skip'", "'error'"), is_rare=True
    ),
    "weights for other corpora": Case(f"{FIT} --data.weights [1,2]", ("2 numbers", "1 training corpora"), is_rare=True),
    "weights and temperature": Case(
        f"{FIT} --data.weights [1] --data.temperature 2", ("weights", "temperature=2"), is_rare=True
    ),
    "tag that is none": Case(f"{FIT} --data.train.src_tag 2de", ("'2de'", "<2de>"), is_rare=True),
    "tag that the model does not know": Case("translate run a --src_tag <2de>", ("<2de>", "it has none")),
    "filter out of range": Case(f"{FIT} --data.train.filter.max_words 0", ("max_words", "0"), is_rare=True),
    "undefined variable": Case(f"{FIT} --data.train.path $NOT_SET_ANYWHERE/train", ("$NOT_SET_ANYWHERE", "not set")),
    "no train corpus": Case(f"{FIT} --data.train null", ("fit", "data.train")),
    "no test corpus": Case("test --config tiny.yaml --data.test null", ("test", "data.test"), is_rare=True),
    "no predict corpus": Case(
        "predict --config tiny.yaml --data.predict null", ("predict", "data.predict"), is_rare=True
    ),
    "train without targets": Case(f"{FIT} --data.train.tgt null", ("train, en", "no target side", "tgt")),
    "test without targets": Case("test --config tiny.yaml --data.test.tgt null", ("tgt",), is_rare=True),
    "in a worker process": Case(
        f"{FIT} --data.train.path late --data.num_workers 1 --data.tokenizer_path run/tokenizer.json",
        ("late.en", "line 1401", "UTF-8"),
    ),
    # tokenizer
    "tokenizer of another run": Case(
        "test --config tiny.yaml --data.tokenizer_path other.json", ("tokenizer", "checkpoint")
    ),
    "tokenizer of another size": Case(f"{FIT} --data.tokenizer_path larger.json", ("320", "300"), is_rare=True),
    "tokenizer that is not one": Case(f"{FIT} --data.tokenizer_path table.csv", ("table.csv",), is_rare=True),
    "tokenizer missing": Case("test --config tiny.yaml --data.tokenizer_path no.json", ("no.json",), is_rare=True),
    "tokenizer too large for the network": Case("translate mixed a", ("mixed",)),
    # checkpoints
    "not a checkpoint, fit": Case("fit --config tiny.yaml --ckpt_path text.ckpt", ("text.ckpt",)),
    "not a checkpoint, test": Case("test --config tiny.yaml --ckpt_path text.ckpt", ("text.ckpt",), is_rare=True),
    "not a checkpoint, translate": Case("translate text.ckpt a", ("text.ckpt",)),
    "not a checkpoint, attention": Case("attention text.ckpt a", ("text.ckpt",), is_rare=True),
    "not a checkpoint, average": Case("average text.ckpt --output new.ckpt", ("text.ckpt",)),
    "half a checkpoint": Case("translate half.ckpt a", ("half.ckpt",), is_rare=True),
    "missing checkpoint": Case("translate no.ckpt a", ("no.ckpt",), is_rare=True),
    "missing checkpoint, test": Case("test --config tiny.yaml --ckpt_path no.ckpt", ("no.ckpt",), is_rare=True),
    "no checkpoints to test": Case("test --config tiny.yaml --trainer.default_root_dir bad", ("bad",), is_rare=True),
    "too few to average": Case("test --config tiny.yaml --averaging.num_checkpoints 9", ("9", "run/checkpoints")),
    "folder of something else": Case("translate nothing a", (".ckpt", "nothing"), is_rare=True),
    "checkpoints in the way": Case(
        "fit --config tiny.yaml", ("run/checkpoints", "--ckpt_path last", "--overwrite true")
    ),
    "resume a mean": Case("fit --config tiny.yaml --ckpt_path mean.ckpt", ("mean.ckpt", "no optimizer")),
    "resume another network": Case(
        "fit --config tiny.yaml --ckpt_path last --model.network.d_ff 64", ("d_ff=32", "64", "config.yaml")
    ),
    "resume with another optimizer": Case(
        "fit --config tiny.yaml --ckpt_path last --model.optimizer.init_args.eps 1e-6", ("eps was", "--init_from")
    ),
    "resume other text": Case(
        "fit --config tiny.yaml --ckpt_path last --data.train.max_rows 50", ("training text is not the same",)
    ),
    "resume with another budget": Case(
        "fit --config tiny.yaml --ckpt_path last --data.max_tokens 64", ("max_tokens was 128 and is 64",), is_rare=True
    ),
    "resume nothing": Case(f"{FIT} --ckpt_path last", ("bad",)),
    "configuration for a run": Case("translate run/config.yaml a", ("name the folder of its run, run, instead",)),
    "configuration for a checkpoint": Case("translate tiny.yaml a", ("name the folder of its run instead",)),
    # values
    "no GPU": Case(f"{FIT} --trainer.accelerator gpu", ("torch sees no GPU here", "one_gpu.yaml", "ddp.yaml")),
    "no CUDA": Case(f"{FIT} --trainer.accelerator cuda", ("torch sees no GPU here",), is_rare=True),
    "heads that do not divide": Case(f"{FIT} --model.network.num_heads 3", ("d_model=16", "num_heads=3")),
    "odd width": Case(f"{FIT} --model.network.d_model 15", ("d_model", "15"), is_rare=True),
    "no layers": Case(f"{FIT} --model.network.num_layers 0", ("num_layers", "0"), is_rare=True),
    "no inner features": Case(f"{FIT} --model.network.d_ff 0", ("d_ff must be at least 1, got 0",), is_rare=True),
    "learning rate out of range": Case(
        f"{FIT} --model.optimizer.lr -1", ("model.optimizer cannot be made", "learning rate: -1.0")
    ),
    "betas out of range": Case(f"{FIT} --model.optimizer.betas [0.9,1.5]", ("beta", "1.5"), is_rare=True),
    "momentum out of range": Case(
        f"{FIT} --model.optimizer lit_transformer.MuonAdam --model.optimizer.momentum 1",
        ("momentum must be at least 0 and below 1",),
        is_rare=True,
    ),
    "seed out of range": Case(f"{FIT} --seed_everything -1", ("seed_everything must be at least 0", "-1")),
    "no batches to a step": Case(
        f"{FIT} --trainer.accumulate_grad_batches 0", ("trainer.accumulate_grad_batches must be above 0, got 0",)
    ),
    "no batches between validations": Case(
        f"{FIT} --trainer.val_check_interval 0", ("trainer.val_check_interval must be above 0, got 0",), is_rare=True
    ),
    "smoothing out of range": Case(f"{FIT} --model.label_smoothing 1.5", ("label_smoothing", "1.5")),
    "warm-up out of range": Case(f"{FIT} --warmup.warmup_steps 0", ("warmup_steps", "0"), is_rare=True),
    "beam out of range": Case(f"{FIT} --bleu.beam_size 0", ("beam_size", "0"), is_rare=True),
    "budget out of range": Case(f"{FIT} --data.max_tokens 0", ("max_tokens", "0"), is_rare=True),
    "unknown tokenization": Case(f"{FIT} --bleu.tokenize 14a", ("14a",), is_rare=True),
    "positions too few": Case(
        f"{FIT} --model.network.positions learned --model.network.max_length 32",
        ("model.network.max_length=32", "data.max_length=256"),
    ),
    "not a number": Case(f"{FIT} --trainer.max_steps many", ("trainer.max_steps", "int", "many")),
    "not a choice": Case(f"{FIT} --model.network.norm mid", ("norm", "'post'", "'pre'", "mid"), is_rare=True),
    "wrong type behind an option that may be empty": Case(
        f"{FIT} --data.train.max_rows many", ("max_rows", "int", "many"), is_rare=True
    ),
    "run folder is a file": Case(
        "fit --config tiny.yaml --trainer.default_root_dir tiny.yaml/run",
        ("tiny.yaml", "Not a directory"),
        is_rare=True,
    ),
    # names
    "unknown class": Case(f"{FIT} --model.network lit_transformer.Transfomer", ("lit_transformer.Transformer",)),
    "unknown module": Case(f"{FIT} --model.network no_such_package.Network", ("no_such_package",)),
    "class without its module": Case(f"{FIT} --model.network Transfomer", ("import path", "Transfomer"), is_rare=True),
    "not a network": Case(f"{FIT} --model.network torch.nn.ReLU", ("network", "torch.nn.ReLU"), is_rare=True),
    "misspelt key in YAML": Case(f"{FIT} --config typo.yaml", ("'dropuot'", "'dropout'")),
    "misspelt option": Case(f"{FIT} --bleu.beam_sise 3", ("--bleu.beam_sise", "'bleu.beam_size'")),
    "abbreviated option": Case(f"{FIT} --trainer.max_step 3", ("--trainer.max_step", "'trainer.max_steps'")),
    "misspelt option of translate": Case("translate run a --beam_sise 2", ("--beam_sise", "beam_size")),
    "unknown command": Case("trian --config tiny.yaml", ("'trian'",)),
    "missing YAML": Case("fit --config no.yaml", ("no.yaml",)),
    "broken YAML": Case(f"{FIT} --config broken.yaml", ("broken.yaml", "line 3", "YAML")),
    "YAML that is a list": Case(f"{FIT} --config list.yaml", ("list.yaml",), is_rare=True),
    "configuration without its option": Case("fit tiny.yaml", ("tiny.yaml. Did you mean --config tiny.yaml?",)),
    "run without its option": Case("test run", ("Did you mean --config run/config.yaml?",)),
    "two configurations behind one option": Case(
        f"{FIT} typo.yaml", ("Did you mean --config typo.yaml?", "Each configuration has --config before it")
    ),
    "key that comes twice": Case(
        f"{FIT} --config twice.yaml", ("twice.yaml has the key data twice, in lines 1 and 4",)
    ),
    "key that comes twice within": Case(
        f"{FIT} --config inside.yaml", ("trainer.callbacks.init_args.mode twice, in lines 4 and 4",), is_rare=True
    ),
    "steps of changing size": Case(
        f"{FIT} --config steps.yaml",
        ("GradientAccumulationScheduler", "leave it out", "set trainer.accumulate_grad_batches instead"),
    ),
    "no configuration": Case("fit --trainer.default_root_dir bad", ("fit", "data.train"), is_rare=True),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=[pytest.mark.slow] if case.is_rare else []) for name, case in CASES.items()],
)
def test_a_mistake_gives_one_sentence(case: Case, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    finished = lit(*case.command.split())
    try:
        check_sentence(finished, case.words)
        check_nothing_written(project, before)
    finally:
        shutil.rmtree(project / "bad", ignore_errors=True)


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_a_pipe_is_no_corpus_for_it_would_lose_the_rows_looked_at(
    command: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    part, tgt = ("predict", "null") if command == "predict" else ("val", "de")
    files = "--data.{0}.path null --data.{0}.src_path {1} --data.{0}.tgt_path {2} --data.{0}.tgt {3}"
    reading, writing = os.pipe()
    try:
        os.write(writing, b"a b\n" * 2000)  # more than are read at once
        os.close(writing)
        pipe = f"/dev/fd/{reading}"
        options = files.format(part, "test.en" if tgt == "de" else pipe, pipe if tgt == "de" else "null", tgt)
        finished = lit(command, "--config", "run/config.yaml", *options.split())
    finally:
        os.close(reading)
    check_sentence(finished, (f"{pipe} is a pipe, which can be read only once: write the text to a file",))


def test_too_little_memory_names_what_needs_less(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.chdir(project)
    monkeypatch.setattr(LitTransformer, "training_step", full)
    try:
        check_sentence(lit(*FIT.split()), ("too little memory", "lower data.max_tokens", "accumulate_grad_batches"))
    finally:
        shutil.rmtree(project / "bad", ignore_errors=True)


def check_sentence(finished: Finished, words: tuple[str, ...]) -> None:
    lines = finished.err.splitlines()
    assert finished.status in (1, 2), finished
    assert [line for line in lines if line.startswith("lit-transformer")] == lines[-1:], finished.err
    sentence = lines[-1]
    for word in words:
        assert word in sentence, sentence
    assert len(sentence) < 330, sentence
    for noise in ("Traceback", "Warning", "Namespace(", "<class", "Union", "\x1b"):
        assert noise not in finished.err, finished.err


def check_nothing_written(project: Path, before: dict[Path, int]) -> None:
    """A complete tokenizer may stay for the next try; nothing else may appear or change."""
    after = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    changed = {path for path in after.keys() | before.keys() if after.get(path) != before.get(path)}
    names = {path.relative_to(project).as_posix() for path in changed}
    assert names <= {"bad/tokenizer.json"}
    if (project / "bad" / "tokenizer.json").exists():
        assert SubwordTokenizer.load(project / "bad" / "tokenizer.json").is_trained


MISSPELT = {
    "model: {network: {dropuot: 0.3}}": "dropout",
    "model: {network: {num_head: 4}}": "num_heads",
    "model: {network: {d_modle: 4}}": "d_model",
    "model: {lable_smoothing: 0.1}": "label_smoothing",
    "model: {netwrok: {num_layers: 1}}": "network",
    "modle: {network: {num_layers: 1}}": "model",
    "model: {optimizer: {class_path: torch.optim.Adam, init_args: {beta: [0.9, 0.98]}}}": "betas",
    "model: {optimizer: {class_path: torch.optim.Adm}}": "torch.optim.Adam",
    "data: {vocab_sise: 300}": "vocab_size",
    "data: {max_token: 300}": "max_tokens",
    "data: {trian: {path: train}}": "train",
    "data: {train: {pth: train}}": "path",
    "data: {train: [{path: train, max_row: 3}]}": "max_rows",
    "data: {train: {path: train, filter: {max_word: 3}}}": "max_words",
    "trainer: {max_step: 3}": "trainer.max_steps",
    "trainer: {devics: 1}": "trainer.devices",
    "trainner: {devices: 1}": "trainer",
    "bleu: {beam_sise: 4}": "bleu.beam_size",
    "warmup: {warmup_step: 10}": "warmup.warmup_steps",
    "averaging: {num_checkpoint: 3}": "averaging.num_checkpoints",
    "checkpoint: {every_n_train_step: 3}": "checkpoint.every_n_train_steps",
    "seed_everthing: 3": "seed_everything",
    "trainer: {callbacks: [{class_path: lit_transformer.InverseSqrtWarmpu}]}": "lit_transformer.InverseSqrtWarmup",
    "model: {class_path: lit_transformer.LitTransfomer}": "lit_transformer.LitTransformer",
    "trainer: {warmup_steps: 3}": "warmup.warmup_steps",  # spelled right, in the wrong place
}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        pytest.param(*pair, id=pair[0], marks=[pytest.mark.slow] if number % 2 else [])
        for number, pair in enumerate(MISSPELT.items())
    ],
)
def test_a_misspelt_key_names_the_nearest_right_one(
    wrong: str, right: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (project / "wrong.yaml").write_text(wrong)
    finished = lit(*FIT.split(), "--config", "wrong.yaml")
    assert finished.status == 2
    assert finished.err.endswith(f"Did you mean '{right}'?\n")
    assert finished.err.count("\n") == 1


STRAY = {
    "model: {optimizer: {class_path: torch.optim.AdamW, lr: 0.1, eps: 1.0e-6}}": ("model.optimizer", "lr, eps"),
    "model: {network: {class_path: lit_transformer.Transformer, d_model: 16}}": ("model.network", "d_model"),
    "trainer: {callbacks: [{class_path: lit_transformer.InverseSqrtWarmup, warmup_steps: 3}]}": (
        "trainer.callbacks[0]",
        "warmup_steps",
    ),
    "data: {class_path: lit_transformer.TranslationDataModule, vocab_size: 300}": ("data", "vocab_size"),
    "data: {train: {class_path: lit_transformer.ParallelCorpus, path: train}}": ("data.train", "path"),
    "data: {train: [{path: train}, {class_path: lit_transformer.TeachingCorpus, split: train}]}": (
        "data.train[1]",
        "split",
    ),
    "data: {init_args: {vocab_size: 300}, max_tokens: 128}": ("data", "max_tokens"),
}


@pytest.mark.parametrize("wrong", STRAY)
def test_arguments_beside_a_class_path_are_named(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(wrong)
    place, names = STRAY[wrong]
    finished = lit("fit", "--config", tmp_path / "wrong.yaml")
    check_sentence(finished, (f"wrong.yaml has {names} beside the ", f" of {place}: ", "stand under init_args"))


def test_an_option_with_arguments_beside_a_class_path_is_told_too(project: Path) -> None:
    given = "{class_path: torch.optim.AdamW, lr: 0.1}"
    finished = lit("fit", "--config", project / "tiny.yaml", "--model.optimizer", given)
    check_sentence(finished, ("'class_path' is not accepted. Arguments of a class stand under init_args",))
    assert "Did you mean" not in finished.err


def test_a_hub_out_of_reach_gives_one_sentence(project: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    finished = run_process(project, f"{FIT} --data.train.path nobody/nothing", HF_HUB_OFFLINE="1")
    check_sentence(finished, ("nobody/nothing.en", "nobody/nothing.de", "no file or folder", "Hub"))
    check_nothing_written(project, before)


def test_a_good_run_says_nothing_alarming(project: Path) -> None:
    messages = (project / "messages").read_text()
    for noise in ("Warning", "warn", "Traceback", "deprecated", "💡", "error"):
        assert noise not in messages
    assert "run/config.yaml" in messages
