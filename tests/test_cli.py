"""The command line from the first step to the predictions: what is kept, what wins, what a resumed run repeats."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from command_line import Finished, lit, tiny_project
from jsonargparse import Namespace

import lit_transformer
from lit_transformer import (
    BeamSearch,
    LitTransformer,
    ParallelCorpus,
    SentencePair,
    SubwordTokenizer,
    Transformer,
    Translator,
)
from lit_transformer.beginnings import _folder_of_checkpoints
from lit_transformer.callbacks import average_checkpoints
from lit_transformer.interfaces import InputError
from lit_transformer.model_files import write_model
from lit_transformer.parser import PLUGS
from lit_transformer.training_cli import TranslationCLI

NEXT_TO_LAST, LAST = "step=4.ckpt", "step=8.ckpt"
PEAK = (512 * 4000) ** -0.5


class Journey(NamedTuple):
    """A folder in which fit, test and predict have run."""

    folder: Path
    fit: Finished
    test: Finished
    predict: Finished

    @property
    def checkpoints(self) -> Path:
        return self.folder / "run" / "checkpoints"


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    folder = tmp_path_factory.mktemp("journey")
    tiny_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit = lit("fit", "--config", "tiny.yaml")
        test, predict = (lit(command, "--config", "run/config.yaml") for command in ("test", "predict"))
    return Journey(folder, fit, test, predict)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh tiny project, in which the test stands."""
    tiny_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def succeed(*arguments: object) -> Finished:
    finished = lit(*arguments)
    assert finished.status == 0, finished.err
    return finished


def read_config(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def printed_config(*arguments: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(succeed("fit", *arguments, "--print_config").out)
    return content


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def log_rows(*folders: Path) -> list[dict[str, str]]:
    """The rows of the training logs of several starts, one after another."""
    rows: list[dict[str, str]] = []
    for folder in folders:
        with (folder / "metrics.csv").open() as file:
            rows += csv.DictReader(file)
    return rows


def by_step(rows: list[dict[str, str]], name: str) -> dict[int, str]:
    return {int(row["step"]): row[name] for row in rows if row.get(name)}


def scores(test: Finished) -> dict[str, float]:
    """The table that ``test`` prints."""
    cells = (line.strip("│ ").split("│") for line in test.out.splitlines() if "│" in line and "test/" in line)
    return {name.strip(): float(value) for name, value in cells}


def test_every_step_of_the_journey_succeeds(journey: Journey) -> None:
    assert [finished.status for finished in (journey.fit, journey.test, journey.predict)] == [0, 0, 0]


def test_the_run_keeps_configuration_tokenizer_logs_and_checkpoints(journey: Journey) -> None:
    names = {path.relative_to(journey.folder / "run").as_posix() for path in (journey.folder / "run").rglob("*.*")}
    assert names >= {"config.yaml", "tokenizer.json", f"checkpoints/{NEXT_TO_LAST}", f"checkpoints/{LAST}"}
    first = (journey.folder / "run" / "logs" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    wanted = {"step", "lr-Adam", "train/loss", "train/perplexity", "val/loss", "val/perplexity", "val/bleu", "val/chrf"}
    assert set(first) >= wanted


def test_the_end_of_fit_says_where_everything_is(journey: Journey) -> None:
    for words in ("10,", "parameters", "run/config.yaml", "lit-transformer test", "lit-transformer translate run"):
        assert words in journey.fit.err


def test_the_kept_configuration_is_complete_and_starts_the_same_run(journey: Journey) -> None:
    config = read_config(journey.folder / "run" / "config.yaml")
    assert config["model"]["init_args"]["network"]["init_args"]["d_ff"] == 32  # given
    assert config["model"]["init_args"]["network"]["init_args"]["norm"] == "post"  # a default, written out
    assert config["seed_everything"] == 3
    assert (config["ckpt_path"], config["overwrite"]) == (None, False)


def test_scoring_and_predicting_leave_the_run_as_it_was(journey: Journey) -> None:
    for name in ("config.yaml", "tokenizer.json"):
        path = journey.folder / "run" / name
        assert path.stat().st_mtime <= (journey.checkpoints / LAST).stat().st_mtime
    assert sorted(path.name for path in journey.checkpoints.iterdir()) == [NEXT_TO_LAST, LAST]


def test_the_checkpoint_loads_as_plain_data_and_as_a_module(journey: Journey) -> None:
    content = load(journey.checkpoints / LAST)
    assert content["global_step"] == 8
    module = LitTransformer.load_from_checkpoint(journey.checkpoints / LAST)
    for name, value in module.state_dict().items():
        assert torch.equal(value, content["state_dict"][name])


def test_test_scores_the_mean_of_the_last_checkpoints(
    journey: Journey, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(journey.folder)
    assert "mean of 2 checkpoints" in journey.test.err
    content = load(journey.checkpoints / LAST)
    content["state_dict"] = average_checkpoints([journey.checkpoints / NEXT_TO_LAST, journey.checkpoints / LAST])
    torch.save(content, tmp_path / "mean.ckpt")
    alone = ("--averaging.num_checkpoints", "1", "--bleu.output_path", tmp_path / "out.txt")
    mean = scores(succeed("test", "--config", "run/config.yaml", "--ckpt_path", tmp_path / "mean.ckpt", *alone))
    last = scores(succeed("test", "--config", "run/config.yaml", *alone))
    assert scores(journey.test) == pytest.approx(mean)
    assert scores(journey.test)["test/loss"] != pytest.approx(last["test/loss"], rel=1e-6)


def test_predict_writes_the_translations_in_order_into_the_run(journey: Journey, tmp_path: Path) -> None:
    lines = (journey.folder / "run" / "predictions.txt").read_text(encoding="utf-8").split("\n")[:-1]
    content = load(journey.checkpoints / LAST)
    content["state_dict"] = average_checkpoints([journey.checkpoints / NEXT_TO_LAST, journey.checkpoints / LAST])
    torch.save(content, tmp_path / "mean.ckpt")
    search = BeamSearch(beam_size=1, max_extra_length=2)
    translator = Translator.from_pretrained(tmp_path / "mean.ckpt", search=search)
    sources = [pair.src for pair in ParallelCorpus(str(journey.folder / "test"), "en", None)]
    assert len(lines) == len(sources) == 8
    assert lines == translator(sources)


def test_another_output_path_wins(journey: Journey, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(journey.folder)
    succeed("predict", "--config", "run/config.yaml", "--writer.output_path", tmp_path / "here.txt")
    here = (tmp_path / "here.txt").read_text(encoding="utf-8")
    assert here == (journey.folder / "run" / "predictions.txt").read_text(encoding="utf-8")


def test_one_leaf_of_the_yaml_changes_the_width_of_the_layer(project: Path) -> None:
    config = read_config(project / "tiny.yaml")
    config["model"]["network"]["d_ff"] = 48
    config["trainer"] |= {"max_steps": 1, "val_check_interval": 1}
    config["checkpoint"]["every_n_train_steps"] = 1
    (project / "wider.yaml").write_text(yaml.safe_dump(config))
    succeed("fit", "--config", "wider.yaml")
    weights = load(project / "run" / "checkpoints" / "step=1.ckpt")["state_dict"]
    widths = {tuple(value.shape) for name, value in weights.items() if "feed_forward." in name and value.dim() == 2}
    assert widths == {(48, 16), (16, 48)}


def test_later_files_and_options_win(project: Path) -> None:
    (project / "later.yaml").write_text("model: {network: {d_ff: 64, dropout: 0.2}}\ntrainer: {max_steps: 5}\n")
    files = ("--config", "tiny.yaml", "--config", "later.yaml")
    config = printed_config(*files, "--model.network.d_ff", "96", "--data.vocab_size=310")
    network = config["model"]["init_args"]["network"]["init_args"]
    assert (network["d_ff"], network["dropout"], network["num_heads"]) == (96, 0.2, 2)
    assert (config["trainer"]["max_steps"], config["trainer"]["val_check_interval"]) == (5, 4)
    config = printed_config("--model.network.d_ff", "96", *files)  # an option before the files loses
    assert config["model"]["init_args"]["network"]["init_args"]["d_ff"] == 64


def test_null_reaches_the_arguments_of_nested_classes(project: Path) -> None:
    config = printed_config("--config", "tiny.yaml", "--data.test.tgt", "null", "--model.network.max_length=null")
    (corpus,) = [config["data"]["init_args"]["test"]]
    corpus = corpus[0] if isinstance(corpus, list) else corpus
    assert corpus["init_args"]["tgt"] is None
    assert config["model"]["init_args"]["network"]["init_args"]["max_length"] is None


def test_the_vocabulary_is_given_once(project: Path) -> None:
    succeed("fit", "--config", "tiny.yaml", "--data.vocab_size", "311", "--trainer.max_steps", "4")
    weights = load(project / "run" / "checkpoints" / NEXT_TO_LAST)["state_dict"]
    assert weights["network.projection.weight"].shape == (311, 16)


def test_a_vocabulary_given_to_the_network_is_refused(project: Path) -> None:
    """It comes from the data, and another would be ignored."""
    short = "model: {network: {vocab_size: 400}}"
    long = "model: {init_args: {network: {init_args: {src_vocab_size: 400}}}}"
    (project / "short.yaml").write_text(short)
    (project / "long.yaml").write_text(long)
    for options, name, size in (
        (("--model.network.vocab_size", "400"), "vocab_size", 300),
        (("--model.init_args.network.init_args.vocab_size=400",), "vocab_size", 300),
        (("--config", "short.yaml"), "vocab_size", 300),
        (("--config=long.yaml",), "src_vocab_size", None),
    ):
        refused = lit("fit", "--config", "tiny.yaml", *options)
        assert (refused.status, refused.err.count("\n")) == (1, 1), refused.err
        assert f"model.network.{name}=400 would have no effect" in refused.err
        assert f"data.{name}={size}: set data.{name} instead" in refused.err
    agreeing = ("--config", "short.yaml", "--data.vocab_size", "400")
    refused = lit("fit", "--config", "tiny.yaml", *agreeing, "--warmup.warmup_steps", "0")
    assert "warmup_steps must be at least 1" in refused.err


def test_a_listed_callback_takes_the_place_of_the_default_one(project: Path) -> None:
    content = read_config(project / "tiny.yaml")
    content["trainer"]["callbacks"] = [
        {"class_path": "lit_transformer.InverseSqrtWarmup", "init_args": {"warmup_steps": 2}},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"every_n_train_steps": 8}},
    ]
    (project / "own.yaml").write_text(yaml.safe_dump(content))
    succeed("fit", "--config", "own.yaml")
    rates = by_step(log_rows(project / "run" / "logs" / "version_0"), "lr-Adam")
    expected = {step: PEAK * min((step + 1) / 2, math.sqrt(2 / (step + 1))) for step in range(8)}
    assert {step: float(rate) for step, rate in rates.items()} == pytest.approx(expected)
    assert [path.name for path in (project / "run").rglob("*.ckpt")] == ["epoch=0-step=8.ckpt"]


def test_the_default_schedule_is_logged_at_its_own_step(journey: Journey) -> None:
    rates = by_step(log_rows(journey.folder / "run" / "logs" / "version_0"), "lr-Adam")
    expected = {step: PEAK * min((step + 1) / 4, math.sqrt(4 / (step + 1))) for step in range(8)}
    assert {step: float(rate) for step, rate in rates.items()} == pytest.approx(expected)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_equals_one_that_never_stopped(project: Path, journey: Journey, num_workers: int) -> None:
    options = ("--config", "tiny.yaml", "--data.num_workers", num_workers)
    succeed("fit", *options, "--trainer.max_steps", "4")
    resumed = succeed("fit", "--config", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "8")
    assert f"run/checkpoints/{NEXT_TO_LAST}" in resumed.err
    assert_same_run(journey, project / "run", ["version_0", "version_1"])
    assert read_config(project / "run" / "config.yaml")["ckpt_path"] is None  # else test would stay with the old one
    tested = succeed("test", "--config", "run/config.yaml", "--averaging.num_checkpoints", "1")
    assert f"run/checkpoints/{LAST}" in tested.err


def test_a_killed_run_goes_on_from_any_checkpoint(project: Path, journey: Journey) -> None:
    checkpoint = journey.checkpoints / NEXT_TO_LAST
    succeed("fit", "--config", "tiny.yaml", "--ckpt_path", checkpoint)
    uninterrupted = by_step(log_rows(journey.folder / "run" / "logs" / "version_0"), "train/loss")
    losses = by_step(log_rows(project / "run" / "logs" / "version_0"), "train/loss")
    assert losses == {step: loss for step, loss in uninterrupted.items() if step >= 4}
    assert_same_weights(journey.checkpoints / LAST, project / "run" / "checkpoints" / LAST)


def assert_same_run(journey: Journey, run: Path, starts: list[str]) -> None:
    expected = log_rows(journey.folder / "run" / "logs" / "version_0")
    got = log_rows(*(run / "logs" / start for start in starts))
    for name in ("train/loss", "train/perplexity", "lr-Adam", "val/loss", "val/bleu"):
        assert by_step(got, name) == by_step(expected, name), name
        assert len(by_step(got, name)) in (2, 8)
    assert_same_weights(journey.checkpoints / LAST, run / "checkpoints" / LAST)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load(one), load(other)
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    moments = [content["optimizer_states"][0]["state"] for content in (first, second)]
    for key, state in moments[0].items():
        for name, value in state.items():
            assert torch.equal(value, moments[1][key][name]), (key, name)


def test_overwrite_starts_anew_and_is_not_remembered(project: Path, journey: Journey) -> None:
    options = ("--config", "tiny.yaml", "--trainer.max_steps", "4")
    shutil.copytree(journey.folder / "run", project / "run")
    succeed("fit", *options, "--overwrite", "true")
    assert [path.name for path in (project / "run" / "checkpoints").iterdir()] == [NEXT_TO_LAST]
    (log,) = (project / "run" / "logs").iterdir()
    assert set(by_step(log_rows(log), "train/loss")) == set(range(4))
    assert read_config(project / "run" / "config.yaml")["overwrite"] is False
    again = lit("fit", "--config", "run/config.yaml")
    assert again.status == 1
    assert "--overwrite" in again.err


PICTURES = ("--trainer.callbacks", "lit_transformer.AttentionPictures", "--trainer.callbacks.sentences", "[one]")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--warmup.cooldown_steps", "3", "--trainer.max_steps", "-1", "--trainer.max_epochs", "1"),
            "cooldown_steps=3 counts back from the last step",
        ),
        ((*PICTURES, "--trainer.callbacks.layer", "7", "--data.vocab_size", "270"), "layer=7"),
    ],
)
def test_a_run_that_cannot_begin_deletes_nothing(
    project: Path, journey: Journey, options: tuple[str, ...], words: str
) -> None:
    shutil.copytree(journey.folder / "run", project / "run")

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (project / "run").rglob("*") if path.is_file()}

    before = files()
    refused = lit("fit", "--config", "tiny.yaml", *options, "--overwrite", "true")
    assert refused.status == 1
    assert words in refused.err
    assert files() == before


@pytest.mark.parametrize("given", ["run", f"run/checkpoints/{LAST}"])
def test_a_run_does_not_delete_what_it_begins_with(project: Path, journey: Journey, given: str) -> None:
    shutil.copytree(journey.folder / "run", project / "run")
    for overwrite in ("true", "false"):
        refused = lit("fit", "--config", "tiny.yaml", "--init_from", given, "--overwrite", overwrite)
        assert refused.status == 1
        assert f"--init_from {given} is part of the earlier run in run, whose place the new one would" in refused.err
        assert (project / "run" / "checkpoints" / LAST).exists()


def test_a_run_does_not_delete_its_teacher_among_checkpoints_elsewhere(project: Path, journey: Journey) -> None:
    shutil.copytree(journey.checkpoints, project / "weights")
    student = ("--model", "lit_transformer.DistilledTransformer", "--model.teachers", f"[weights/{LAST}]")
    where = ("--checkpoint.dirpath", "weights", "--overwrite", "true")
    refused = lit("fit", "--config", "tiny.yaml", *student, *where)
    assert refused.status == 1
    assert f"the teacher weights/{LAST} lies where this run keeps its checkpoints, in" in refused.err
    assert (project / "weights" / LAST).exists()


def test_a_quick_check_of_the_machinery_leaves_no_checkpoints(project: Path) -> None:
    succeed("fit", "--config", "tiny.yaml", "--trainer.fast_dev_run", "true")
    assert not list(project.rglob("*.ckpt"))


@pytest.mark.parametrize(
    "options",
    [
        ("--data.vocab_size", "290"),
        ("--init_from", Path(lit_transformer.__file__).parent / "tour" / "model"),
        ("--ckpt_path", "last", "--trainer.max_steps", "12"),
    ],
)
def test_a_quick_check_leaves_a_run_as_it_was(project: Path, journey: Journey, options: tuple[object, ...]) -> None:
    shutil.copytree(journey.folder / "run", project / "run")
    before = {path: path.read_bytes() for path in (project / "run").rglob("*") if path.is_file()}
    succeed("fit", "--config", "tiny.yaml", "--trainer.fast_dev_run", "true", *options)
    assert {path: path.read_bytes() for path in (project / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["fit", pytest.param("test", marks=pytest.mark.slow)])
def test_the_help_of_training_explains_every_key_of_ours(command: str) -> None:
    page = succeed(command, "--help").out
    for key in ("model", "model.network", "data", "data.train", "data.tokenizer"):
        names = set(PLUGS[key].__init__.__annotations__) - {"return"}
        for name in names - {"network", "train", "val", "test", "predict", "tokenizer", "seed"}:
            assert f"--{key}.{name} " in page or (key == "model.network" and name.endswith("vocab_size")), (key, name)
    for key in ("warmup.warmup_steps", "bleu.beam_size", "averaging.num_checkpoints", "writer.output_path"):
        assert f"--{key} " in page
    for key in ("checkpoint.every_n_train_steps", "trainer.max_steps", "ckpt_path", "config"):
        assert f"--{key} " in page
    for key in ("overwrite", "init_from"):
        assert (f"--{key} " in page) == (command == "fit")
    assert "examples:" in page
    assert "known subclasses" not in page
    paragraphs = page.split("\n  --")
    assert max(paragraph.count("\n") for paragraph in paragraphs) < 16


def test_the_help_of_predict_offers_nothing_without_an_effect() -> None:
    page = succeed("predict", "--help").out
    for key in ("return_predictions", "overwrite", "init_from"):
        assert key not in page


def test_configurations_come_with_the_package(project: Path) -> None:
    for given in (["--config", "configs/trainer/bf16.yaml"], ["--config=./configs/trainer/bf16.yaml"]):
        finished = succeed("fit", *given, "--print_config")
        assert yaml.safe_load(finished.out)["trainer"]["precision"] == "bf16-mixed"
        told = "there is no configs/trainer/bf16.yaml here: taking the one that comes with lit-transformer, /"
        assert finished.err.startswith(told)
        assert finished.err.endswith("configs/trainer/bf16.yaml\n")
    (project / "configs" / "trainer").mkdir(parents=True)
    (project / "configs" / "trainer" / "bf16.yaml").write_text("trainer: {precision: 64-true}")
    finished = succeed("fit", *given, "--print_config")  # what the user has there wins
    assert yaml.safe_load(finished.out)["trainer"]["precision"] == "64-true"
    assert not finished.err
    for name in ("configs/none.yaml", "other/configs/tiny.yaml"):
        refused = lit("fit", "--config", name)
        assert (refused.status, refused.err.count("\n")) == (2, 1), refused.err
        assert "File does not exist" in refused.err


def test_the_first_page_lists_every_command() -> None:
    page = succeed().out
    assert page == succeed("--help").out
    commands = "quickstart fit validate test predict translate attention curves export import average ensemble score"
    for name in (*commands.split(), "compare"):
        assert f"\n  {name} " in page


def test_validate_scores_the_validation_text(journey: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(journey.folder)
    validated = succeed("validate", "--config", "run/config.yaml", "--averaging.num_checkpoints", "1")
    for name in ("val/loss", "val/perplexity", "val/bleu", "val/chrf", "val/ter"):
        assert name in validated.out
    assert validated.err.count("95 % interval") == 3


def test_test_leaves_scores_and_what_they_rest_on(journey: Journey) -> None:
    run = journey.folder / "run"
    content = json.loads((run / "test.scores.json").read_text(encoding="utf-8"))
    assert {name: score["value"] for name, score in content["scores"].items()} == pytest.approx(
        {name: scores(journey.test)[f"test/{name}"] for name in ("bleu", "chrf", "ter")}
    )
    averaged = {str(Path("run", "checkpoints", name)): step for name, step in ((NEXT_TO_LAST, 4), (LAST, 8))}
    assert content["checkpoint"] == {"path": f"run/checkpoints/{LAST}", "step": 8, "averaged_from": averaged}
    assert (content["seed"], content["num_sentences"]) == (3, 8)
    assert content["config"]["data"]["init_args"]["test"]["init_args"]["path"] == "test"
    assert content["config"]["bleu"]["beam_size"] == content["search"]["beam_size"] == 1
    assert content["network"]["init_args"]["d_ff"] == 32
    hypotheses = (run / content["hypotheses"]).read_text(encoding="utf-8")
    assert hypotheses == (run / "predictions.txt").read_text(encoding="utf-8")
    assert (run / content["references"]).read_text() == (journey.folder / "test.de").read_text()


def test_a_kind_of_bleu_without_its_package_names_the_extra(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    finished = lit(
        "fit", "--config", "tiny.yaml", "--bleu.metric", "lit_transformer.MosesBLEU", "--bleu.metric.lang", "de"
    )
    assert finished.status == 1
    assert 'pip install "lit-transformer[moses]"' in finished.err
    assert finished.err.count("\n") == 1


def test_papers_kinds_of_bleu_are_a_line_of_yaml(journey: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(journey.folder)
    kinds = [
        {"class_path": "lit_transformer.MosesBLEU", "init_args": {"lang": "de", "split_hyphens": True}},
        {"class_path": "lit_transformer.CorpusBLEU", "init_args": {"tokenize": "none", "name": "multi30k"}},
    ]
    (journey.folder / "kinds.yaml").write_text(yaml.safe_dump({"bleu": {"metric": kinds, "output_path": None}}))
    alone = ("--averaging.num_checkpoints", "1")
    tested = succeed("test", "--config", "run/config.yaml", "--config", "kinds.yaml", *alone)
    assert "tok:moses-de+atat" in tested.err
    assert scores(tested).keys() >= {"test/bleu", "test/moses_bleu", "test/multi30k"}
    one = printed_config("--bleu.metric", "lit_transformer.MosesBLEU", "--bleu.metric.lang", "de")["bleu"]["metric"]
    assert (one["class_path"], one["init_args"]["lang"]) == ("lit_transformer.MosesBLEU", "de")


@pytest.mark.parametrize(("precision", "is_said"), [("bf16-mixed", True), ("32-true", False)])
def test_bfloat16_on_a_cpu_that_has_none_is_not_a_silent_loss(
    project: Path, monkeypatch: pytest.MonkeyPatch, precision: str, is_said: bool
) -> None:
    monkeypatch.setattr("lit_transformer.training_cli.has_fast_bfloat16", lambda: False)
    finished = succeed("fit", "--config=tiny.yaml", "--trainer.max_steps=1", f"--trainer.precision={precision}")
    assert ("--trainer.precision 32-true trains many times as fast" in finished.err) is is_said


@pytest.mark.parametrize("switch", ["logger", "enable_checkpointing", "enable_progress_bar"])
def test_what_is_switched_off_takes_its_callback_along(project: Path, switch: str) -> None:
    finished = succeed("fit", "--config", "tiny.yaml", f"--trainer.{switch}=false")
    assert (project / "run" / "logs").exists() == (switch != "logger")
    assert (project / "run" / "checkpoints").exists() == (switch != "enable_checkpointing")
    there = [name for name in ("config.yaml", "checkpoints", "logs") if (project / "run" / name).exists()]
    assert f"The run is in run: {', '.join(there)}." in finished.err
    assert ("lit-transformer test" in finished.err) == ("checkpoints" in there)


def test_with_accumulation_it_is_told_when_validation_comes(project: Path) -> None:
    options = (
        "--trainer.accumulate_grad_batches",
        "4",
        "--trainer.val_check_interval",
        "6",
        "--trainer.max_steps",
        "4",
    )
    told = "validation comes every 1.5 optimizer steps: val_check_interval=6 counts batches, 4 to a step"
    assert told in succeed("fit", "--config", "tiny.yaml", *options).err
    with (project / "run" / "logs" / "version_0" / "metrics.csv").open() as file:
        validated = [row["step"] for row in csv.DictReader(file) if row.get("val/loss")]
    assert len(validated) == 2  # of 16 batches


@pytest.mark.filterwarnings("ignore:You are trying to .self.log")  # Lightning's word that nothing is logged
def test_barebones_trains(project: Path) -> None:
    off = [f"--trainer.{name}=null" for name in ("log_every_n_steps", "val_check_interval", "num_sanity_val_steps")]
    succeed("fit", "--config", "tiny.yaml", "--trainer.barebones", "true", "--trainer.max_steps=2", *off)
    assert not list(project.rglob("*.ckpt"))


def test_a_progress_bar_of_ones_own_replaces_ours(project: Path) -> None:
    succeed("fit", "--config", "tiny.yaml", "--trainer.enable_progress_bar=true", "--trainer.callbacks=TQDMProgressBar")


def test_the_command_after_a_short_run_averages_what_there_is(project: Path) -> None:
    finished = succeed("fit", "--config", "tiny.yaml", "--trainer.max_steps=3", "--averaging.num_checkpoints=4")
    (command,) = re.findall(r"lit-transformer (test .*)", finished.err)
    assert command == "test --config run/config.yaml --averaging.num_checkpoints 1"
    succeed(*command.split())
    refused = lit("test", "--config", "run/config.yaml")
    assert refused.status == 1
    assert "4 checkpoints should be averaged" in refused.err
    assert "--averaging.num_checkpoints" in refused.err


def test_overwrite_leaves_no_score_of_the_earlier_network(project: Path) -> None:
    succeed("fit", "--config", "tiny.yaml")
    succeed("test", "--config", "run/config.yaml")
    assert list((project / "run").glob("test.*"))
    succeed("fit", "--config", "tiny.yaml", "--overwrite", "true")
    assert not list((project / "run").glob("test.*"))


def test_a_score_that_early_stopping_does_not_find_is_one_sentence(project: Path) -> None:
    options = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/blue"]
    finished = lit("fit", "--config", "tiny.yaml", *options)
    assert finished.status == 1
    assert "Early stopping conditioned on metric `val/blue` which is not available" in finished.err
    assert "Traceback" not in finished.err


@pytest.mark.parametrize("every", [0, 2])
def test_early_stopping_by_a_score_of_some_validations_is_refused(project: Path, every: int) -> None:
    options = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/bleu"]
    finished = lit("fit", "--config", "tiny.yaml", *options, "--bleu.every_n_validations", every)
    assert finished.status == 1
    assert f"EarlyStopping watches val/bleu at each validation, but every_n_validations={every} scores" in finished.err
    assert "Traceback" not in finished.err
    assert not list((project / "run").glob("checkpoints/*"))


def test_the_folder_of_a_run_stands_for_its_newest_checkpoint(
    journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(journey.folder)
    finished = succeed("validate", "--config", "run/config.yaml", "--ckpt_path", "run")
    by_name = succeed("validate", "--config", "run/config.yaml", "--ckpt_path", f"run/checkpoints/{LAST}")
    assert re.findall(r"val/bleu.*", finished.err + finished.out) == re.findall(
        r"val/bleu.*", by_name.err + by_name.out
    )
    succeed("export", "run", "exported")
    refused = lit("fit", "--config", "run/config.yaml", "--ckpt_path", "exported")
    assert refused.status == 1
    assert "exported is an exported folder" in refused.err
    assert "--init_from exported" in refused.err


def test_an_exported_folder_is_scored_and_translates_as_it_is(project: Path) -> None:
    folder = Path(lit_transformer.__file__).parent / "tour" / "model"
    corpus = ("--data.test", "lit_transformer.TeachingCorpus", "--data.test.init_args.split")
    finished = succeed("test", "--config", "tiny.yaml", "--ckpt_path", folder, *corpus, "test")
    assert "Warning" not in finished.err
    record = json.loads((project / "run" / "test.scores.json").read_text(encoding="utf-8"))
    assert record["scores"]["bleu"]["value"] > 80  # tiny.yaml's own network would score nothing
    assert record["checkpoint"] == {"path": str(folder), "step": None, "averaged_from": {}}
    assert not (project / "run" / "tokenizer.json").exists()
    succeed("ensemble", folder, folder, "--output", "both")
    succeed("test", "--config", "tiny.yaml", "--ckpt_path", "both", *corpus, "test", "--bleu.output_path", "both.txt")
    assert (project / "both.txt").read_bytes() == (project / "run" / "test.hyp.txt").read_bytes()
    source = ["I love cats", "", "   ", "The dog sleeps"]  # a line without text has no translation
    (project / "news.en").write_text("".join(f"{line}\n" for line in source), encoding="utf-8")
    succeed("predict", "--config", "tiny.yaml", "--ckpt_path", folder, "--data.predict.path", "news")
    lines = (project / "run" / "predictions.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert lines[1:3] == ["", ""]
    assert lines == Translator.from_pretrained(folder, search=BeamSearch(1, max_extra_length=2))(source)
    pair = "--averaging.num_checkpoints", "3"  # of a folder there is no more than one
    validated = succeed("validate", "--config", "tiny.yaml", "--ckpt_path", folder, *pair)
    assert "val/bleu" in validated.err


OWN_PARTS = """
from lit_transformer import LitTransformer, ParallelCorpus, Transformer, TranslationDataModule

class OwnData(TranslationDataModule):
    def __init__(self, vocab_size: int = 1500, max_rows: int = 4):
        super().__init__(test=ParallelCorpus("test", max_rows=max_rows), vocab_size=vocab_size)

class OwnModule(LitTransformer):
    def __init__(self, width: int = 32):
        super().__init__(Transformer(300, num_layers=1, d_model=width, num_heads=2))
"""


def test_a_folder_that_cannot_be_scored_says_why(project: Path) -> None:
    model = Path(lit_transformer.__file__).parent / "tour" / "model"
    (project / "own_parts.py").write_text(OWN_PARTS)
    (project / "hf").mkdir()
    (project / "hf" / "config.json").write_text('{"model_type": "marian"}')
    for options, words in {
        ("--init_from", model): f"--init_from is for fit: let test take the model by --ckpt_path {model}",
        ("--ckpt_path", "hf"): "lit-transformer import first",
        ("--ckpt_path", "https://example.com/x.ckpt"): "https://example.com/x.ckpt is an address",
        ("--ckpt_path", model, "--data", "own_parts.OwnData"): "own_parts.OwnData takes no tokenizer_path",
        ("--ckpt_path", model, "--model", "own_parts.OwnModule"): "own_parts.OwnModule takes no network",
    }.items():
        refused = lit("test", "--config", "tiny.yaml", *options)
        assert (refused.status, refused.err.count("\n")) == (1, 1), refused.err
        assert words in refused.err
    refused = lit("fit", "--config", "tiny.yaml", "--init_from", model, "--trainer.default_root_dir", model)
    assert refused.status == 1
    assert f"{model} is the folder of a model, not of a run" in refused.err


def test_small_vocabularies_of_words_are_scored_too(project: Path) -> None:
    recipe = SubwordTokenizer("word", vocab_size=30, min_frequency=1, byte_fallback=False)
    recipe.train([SentencePair("a b c", "c b a")])
    folder = write_model(Transformer(recipe.vocab_size, num_layers=1, d_model=16, num_heads=2, d_ff=16), recipe, "word")
    succeed("test", "--config", "tiny.yaml", "--ckpt_path", folder)


def test_a_run_does_not_branch_among_its_own_checkpoints(project: Path, journey: Journey) -> None:
    shutil.copytree(journey.folder / "run", project / "run")
    earlier = project / "run" / "checkpoints" / NEXT_TO_LAST
    options = ("--config", "run/config.yaml", "--ckpt_path", earlier, "--warmup.cooldown_steps", "4")
    refused = lit("fit", *options)
    assert refused.status == 1
    assert "also holds checkpoints of later steps, up to 8, which would be mixed with those that follow" in refused.err
    assert read_config(project / "run" / "config.yaml")["warmup"]["cooldown_steps"] == 0
    options = (*options, "--trainer.default_root_dir")
    succeed("fit", *options, "branch")
    tested = succeed("test", "--config", "branch/config.yaml", "--averaging.num_checkpoints", "1")
    assert f"branch/checkpoints/{LAST}" in tested.err
    shutil.copytree(journey.folder / "run", project / "other")
    assert "already holds checkpoints of another run" in lit("fit", *options, "other").err
    succeed("fit", *options, "other", "--overwrite", "true")
    assert [path.name for path in (project / "other" / "checkpoints").iterdir()] == [LAST]


OWN_NETWORK = """
from lit_transformer import Transformer

class SharpTransformer(Transformer):
    def forward(self, src, tgt_input):
        return 3 * super().forward(src, tgt_input)
"""


def test_training_goes_on_with_a_network_of_the_same_class(project: Path, journey: Journey) -> None:
    (project / "own_network.py").write_text(OWN_NETWORK)
    shutil.copytree(journey.folder / "run", project / "run")
    path = project / "run" / "checkpoints" / LAST
    options = ("--config", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "10")
    refused = lit("fit", *options, "--model.network", "own_network.SharpTransformer")
    assert (refused.status, refused.err.count("\n")) == (1, 1), refused.err
    assert (
        "holds a network of the class lit_transformer.nn.transformer.Transformer, but the configuration" in refused.err
    )
    assert "says own_network.SharpTransformer; continue with the configuration" in refused.err
    content = load(path)
    content["hyper_parameters"]["network"]["class_path"] = "own_network.Transformer"  # another way to the same class
    torch.save(content, path)
    succeed("fit", *options)
    content["hyper_parameters"]["network"]["class_path"] = "own_network.SharpTransformer"
    torch.save(content, path)
    for later in path.parent.glob("*.ckpt"):
        if later != path:
            later.unlink()
    refused = lit("fit", *options)
    assert (refused.status, refused.err.count("\n")) == (1, 1), refused.err
    assert "holds a network of the class own_network.SharpTransformer, but the configuration says" in refused.err


def test_the_best_checkpoint_is_found(project: Path) -> None:
    monitored = ("--checkpoint.monitor", "val/loss", "--checkpoint.save_top_k", "1", "--bleu.every_n_validations", "0")
    succeed("fit", "--config", "tiny.yaml", *monitored, "--model.optimizer.init_args.lr", "0.3")
    kept = [load(path) for path in sorted((project / "run" / "checkpoints").iterdir())]
    (state,) = [state for name, state in kept[-1]["callbacks"].items() if name.startswith("StepCheckpoint")]
    rows = by_step(log_rows(project / "run" / "logs" / "version_0"), "val/loss")
    least = min(float(loss) for loss in rows.values())
    assert float(state["best_model_score"]) == pytest.approx(least)
    shutil.move(project / "run", project / "moved")
    here = ("--config", "moved/config.yaml", "--trainer.default_root_dir", "moved")
    scored = succeed("validate", *here, "--ckpt_path", "best", "--averaging.num_checkpoints", "1")
    assert f"moved/checkpoints/{Path(state['best_model_path']).name}" in scored.err
    told = re.search(r"val/loss\D+([\d.]+)", scored.out)
    assert told
    assert float(told[1]) == pytest.approx(least, rel=1e-4)
    succeed("fit", "--config", "tiny.yaml", "--trainer.default_root_dir", "plain")
    unknown = lit("test", "--config", "plain/config.yaml", "--ckpt_path", "best")
    assert "plain knows no best checkpoint: train with --checkpoint.monitor val/bleu, or give a file" in unknown.err


def score_without_own_search(project: Path) -> None:
    """Trains and scores a run whose module has no search, so that it is that of ``bleu``."""
    content = read_config(project / "tiny.yaml")
    del content["model"]["search"]
    content["bleu"] |= {"beam_size": 3, "length_penalty": 2.0, "penalty_kind": "power"}
    content["bleu"] |= {"stop_early": True, "allow_unknown": False, "no_repeat_ngram_size": 3}
    (project / "own.yaml").write_text(yaml.safe_dump(content))
    fitted = succeed("fit", "--config", "own.yaml")
    given = "--beam_size 3 --length_penalty 2.0 --max_extra_length 2 --no_unknown --stop_early --penalty_kind power"
    assert f"'a sentence' {given} --no_repeat_ngram_size 3\n" in fitted.err
    succeed("test", "--config", "run/config.yaml")


def test_predict_writes_what_test_scores(project: Path) -> None:
    score_without_own_search(project)
    succeed("predict", "--config", "run/config.yaml")
    assert (project / "run" / "predictions.txt").read_text() == (project / "run" / "test.hyp.txt").read_text()


def test_a_listed_evaluation_leaves_its_files_in_the_run(project: Path) -> None:
    content = read_config(project / "tiny.yaml")
    content["trainer"]["callbacks"] = [
        {"class_path": "lit_transformer.BLEUEvaluation"},
        {"class_path": "lit_transformer.TranslationWriter", "init_args": {"output_path": "{run}/own.txt"}},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"},
    ]
    (project / "own.yaml").write_text(yaml.safe_dump(content))
    succeed("fit", "--config", "own.yaml")
    assert list((project / "run" / "checkpoints").glob("*.ckpt"))
    assert "already holds checkpoints" in lit("fit", "--config", "own.yaml").err
    succeed("test", "--config", "run/config.yaml", "--averaging.num_checkpoints", "1")
    succeed("predict", "--config", "run/config.yaml", "--averaging.num_checkpoints", "1")
    assert {"test.hyp.txt", "test.scores.json", "own.txt"} <= {path.name for path in (project / "run").iterdir()}
    assert not (project / "{run}").exists()


def test_a_network_that_is_to_copy_is_told(project: Path) -> None:
    finished = succeed("fit", "--config", "tiny.yaml", "--data.train.tgt", "en", "--data.val.tgt", "en")
    assert "both sides of ParallelCorpus(train, en-en) are 'en': the network is to learn a copy" in finished.err


def test_checkpoints_may_be_kept_elsewhere(project: Path) -> None:
    options = ("--config", "tiny.yaml", "--checkpoint.dirpath", "disk/weights")
    fitted = succeed("fit", *options, "--trainer.max_steps", "4")
    assert f"translate {project / 'disk' / 'weights'} 'a sentence'" in fitted.err
    assert not (project / "run" / "checkpoints").exists()
    assert "weights already holds checkpoints" in lit("fit", *options).err
    succeed("fit", "--config", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "8")
    tested = succeed("test", "--config", "run/config.yaml")
    assert f"weights/{LAST}" in tested.err
    assert succeed("translate", "disk/weights", "a b").out
    (project / "disk" / "weights" / "notes.txt").touch()
    succeed("fit", *options, "--trainer.max_steps", "4", "--overwrite", "true")
    assert sorted(path.name for path in (project / "disk" / "weights").iterdir()) == ["notes.txt", NEXT_TO_LAST]


def test_checkpoints_of_a_listed_callback_are_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project / "home"))
    content = read_config(project / "tiny.yaml")
    own = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "~/own"}}
    (project / "listed.yaml").write_text(
        yaml.safe_dump(content | {"trainer": content["trainer"] | {"callbacks": [own]}})
    )
    (project / "ours.yaml").write_text(yaml.safe_dump(content | {"checkpoint": {"dirpath": "~/ours"}}))
    for name in ("listed", "ours"):
        root = ("--trainer.default_root_dir", name)
        succeed("fit", "--config", f"{name}.yaml", *root)
        tested = succeed("test", "--config", f"{name}/config.yaml", "--averaging.num_checkpoints", "1")
        assert f"home/{name.replace('listed', 'own')}/" in tested.err


@pytest.mark.parametrize(("given", "seed"), [("true", 7), ("false", 7), ("5", 5)])
def test_the_text_has_the_seed_of_everything_else(
    project: Path, monkeypatch: pytest.MonkeyPatch, given: str, seed: int
) -> None:
    """Lightning takes true for a seed of its own choice, and false for none."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    succeed("fit", "--config", "tiny.yaml", "--seed_everything", given, "--trainer.max_steps", "2")
    stored = load(next((project / "run" / "checkpoints").iterdir()))
    assert stored["TranslationDataModule"]["stream"]["seed"] == seed
    succeed("fit", "--config", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "4")


def test_predict_writes_as_many_translations_as_are_asked_for(project: Path) -> None:
    score_without_own_search(project)
    succeed("predict", "--config", "run/config.yaml", "--writer.n_best", "2")
    rows = [line.split("\t") for line in (project / "run" / "predictions.txt").read_text().split("\n")[:-1]]
    best = {number: text for number, text in reversed(rows)}
    assert list(best.values())[::-1] == (project / "run" / "test.hyp.txt").read_text().split("\n")[:-1]
    assert len(rows) > len(best)
    refused = lit("predict", "--config", "run/config.yaml", "--writer.n_best", "4")
    assert "--writer.n_best 4 needs --bleu.beam_size 4 or more, got 3" in refused.err


def test_two_vocabularies_of_one_size_are_not_tied(project: Path) -> None:
    for part in ("train", "val"):
        path = project / f"{part}.de"
        path.write_text(path.read_text().upper())
    size = read_config(project / "tiny.yaml")["data"]["vocab_size"]
    refused = lit("fit", "--config", "tiny.yaml", "--data.src_vocab_size", str(size))
    assert refused.status == 1
    assert (
        "the network has tie=all, one embedding for both sides, but source and target have vocabularies" in refused.err
    )


def test_one_corpus_of_several_is_not_changed_by_an_option(project: Path) -> None:
    """It would be the last one alone, which nobody means by ``--data.train.max_rows``."""
    content = read_config(project / "tiny.yaml")
    content["data"]["train"] = [content["data"]["train"]] * 3
    (project / "three.yaml").write_text(yaml.safe_dump(content))
    for option in ("--data.train.max_rows", "--data.init_args.train.max_rows"):
        refused = lit("fit", "--config", "three.yaml", option, "20")
        assert refused.status == 1
        assert f"{option} would change the last one of 3 corpora of data.train alone: write the list" in refused.err
    succeed("fit", "--config", "tiny.yaml", "--data.train.max_rows", "20", "--trainer.max_steps", "2")


def test_a_run_that_began_with_other_weights_begins_with_them_again(project: Path) -> None:
    succeed("fit", "--config", "tiny.yaml")
    own = ("--trainer.default_root_dir", "own", "--trainer.max_steps", "4")
    succeed("fit", "--config", "tiny.yaml", "--init_from", "run", *own)
    assert read_config(project / "own" / "config.yaml")["init_from"] == "run"
    succeed("fit", "--config", "own/config.yaml", "--trainer.default_root_dir", "again")
    assert_same_weights(*(project / name / "checkpoints" / NEXT_TO_LAST for name in ("own", "again")))
    succeed("fit", "--config", "own/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "6")
    shutil.rmtree(project / "run")
    succeed("test", "--config", "own/config.yaml")
    refused = lit("test", "--config", "own/config.yaml", "--init_from", "again")
    assert "--init_from is for fit: let test take the model by --ckpt_path again" in refused.err


def test_a_run_that_was_moved_says_where_it_is(project: Path) -> None:
    """Its configuration still names the old folder, in which there may be another run."""
    succeed("fit", "--config", "tiny.yaml")
    shutil.move(project / "run", project / "moved")
    succeed("fit", "--config", "tiny.yaml", "--trainer.max_steps", "4")
    for command in (("test",), ("fit", "--ckpt_path", "last")):
        refused = lit(command[0], "--config", "moved/config.yaml", *command[1:])
        assert refused.status == 1
        assert (
            "moved/config.yaml says that its run is in run, but it lies in moved: if the run was moved" in refused.err
        )
    succeed("test", "--config", "moved/config.yaml", "--trainer.default_root_dir", "moved")
    succeed("fit", "--config", "moved/config.yaml", "--overwrite", "true", "--trainer.max_steps", "2")


def test_the_first_callback_that_writes_checkpoints_says_where_they_are(project: Path) -> None:
    content = read_config(project / "tiny.yaml")
    own = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": folder}}
        for folder in ("first", "second")
    ]
    own[1]["init_args"] |= {"every_n_train_steps": 4}  # type: ignore[operator]
    content["trainer"]["callbacks"] = own
    (project / "listed.yaml").write_text(yaml.safe_dump(content))
    told = succeed("fit", "--config", "listed.yaml").err
    assert "ModelCheckpoint of trainer.callbacks takes the place of checkpoint" in told
    tested = succeed("test", "--config", "run/config.yaml", "--averaging.num_checkpoints", "1")
    assert "first/" in tested.err
    succeed("fit", "--config", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "12")
    other = {"class_path": "lightning.pytorch.callbacks.OnExceptionCheckpoint", "init_args": {"dirpath": "crash"}}
    for given, folder in (([other], None), ([other, *own], Path("first"))):
        config = Namespace(trainer=Namespace(callbacks=given), checkpoint=Namespace(dirpath=None))
        assert _folder_of_checkpoints(config) == folder


OWN_SEARCH = """
from lit_transformer import BeamSearch

class OwnSearch(BeamSearch):
    def __init__(self, beam_size: int = 2, weight: float = 0.5):
        super().__init__(beam_size)
"""


@pytest.mark.parametrize(
    ("search", "given"),
    [("lit_transformer.GreedySearch", " --beam_size 1 --max_extra_length 3"), ("own_search.OwnSearch", "")],
)
def test_the_end_of_fit_knows_the_searches_of_the_package(project: Path, search: str, given: str) -> None:
    (project / "own_search.py").write_text(OWN_SEARCH)
    content = read_config(project / "tiny.yaml")
    content["model"]["search"] = {"class_path": search, "init_args": {"max_extra_length": 3} if given else {}}
    (project / "own.yaml").write_text(yaml.safe_dump(content))
    fitted = succeed("fit", "--config", "own.yaml", "--trainer.max_steps", "1")
    assert f"'a sentence'{given}\n" in fitted.err


def test_without_arguments_the_command_line_is_that_of_the_program(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "tiny.yaml", "--init_from", "nowhere"])
    with pytest.raises(InputError, match="checkpoint nowhere does not exist"):
        TranslationCLI()


def test_settings_that_do_not_belong_together_are_told(project: Path) -> None:
    for options, words in [
        (("--warmup.cooldown_steps", "8"), "the learning rate cools down from the first step on and stays low"),
        (("--trainer.val_check_interval", "9"), "no validation comes before the last step, 8: set trainer.val"),
        (("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"), "counts batches within an epoch"),
    ]:
        finished = succeed("fit", "--config", "tiny.yaml", "--overwrite", "true", *options)
        assert words in finished.err
    succeed("fit", "--config", "tiny.yaml", "--overwrite", "true", "--warmup.cooldown_steps", "6")
    again = succeed("fit", "--config", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "16")
    assert "the learning rate rises again, from 0.14 to 1 of its course without a cooldown" in again.err


def test_text_may_come_through_a_pipe_where_it_is_read_once(project: Path) -> None:
    for name in ("one", "two"):
        (project / f"{name}.txt").write_text("a b c d e\nf g h i j\n")
    os.mkfifo(project / "pipe")
    writer = subprocess.Popen(["sh", "-c", "cat one.txt > pipe"], cwd=project)
    assert "100" in succeed("compare", "one.txt", "two.txt", "--reference", "pipe", "--num_resamples", "20").out
    assert writer.wait(timeout=60) == 0
