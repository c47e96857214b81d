"""Every YAML that is shipped: it says what it is for, parses, and where that is possible here, trains."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import lit, write_digits

from lit_transformer import (
    BeamSearch,
    BLEUEvaluation,
    CheckpointAveraging,
    InverseSqrtWarmup,
    LitTransformer,
    Transformer,
    TranslationDataModule,
)
from lit_transformer.defaults import TRAINER_DEFAULTS
from lit_transformer.module import paper_adam

FOLDER = Path(__file__).parent.parent / "configs"
ALL = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*.y*ml"))}
MODELS = [name for name in ALL if "/" not in name or name.startswith("multi30k/")]
DATA = [name for name in ALL if name.startswith("data/")]
TRAINER = [name for name in ALL if name.startswith("trainer/")]
TABLE3 = [name for name in ALL if name.startswith("table3/")]
SEVERAL_CORPORA = ["data/en_ko.yaml", "data/en_de.yaml"]
BEFORE = {name: ["base.yaml"] for name in ("big.yaml", *TABLE3)}  # what a configuration says to put before it
BEFORE["multi30k/ours.yaml"] = ["tiny.yaml"]
TRANSLATIONS = "data/multi30k_en_de_translations.yaml"  # needs what models of ours have written
PARTS = [f"multi30k/{part}.yaml" for part in ("begin", "rdrop", "student")]  # of one recipe
BEFORE |= {name: ["multi30k/wu2021.yaml", *PARTS[:place]] for place, name in enumerate(PARTS)}
SMALL = (
    "--data.vocab_size=300",
    "--data.max_tokens=256",
    "--model.network.num_layers=1",
    "--model.network.d_model=32",
    "--model.network.d_ff=64",
    "--trainer.accelerator=cpu",
    "--trainer.fast_dev_run=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.default_root_dir=run",
)


def configs(*names: str) -> list[str]:
    """Options that take configurations in, each behind those that it builds on."""
    ordered = [one for name in names for one in (*BEFORE.get(name, []), name)]
    return [f"--config={ALL[name]}" for name in ordered]


def printed(*options: str) -> dict[str, Any]:
    finished = lit("fit", *options, "--print_config")
    assert finished.status == 0, finished.err
    content: dict[str, Any] = yaml.safe_load(finished.out)
    return content


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny files under every name that the data configurations read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_digits(tmp_path / "data")
    names = {"valid": "val", "test_2016_flickr": "test"}
    for name, like in names.items():
        for lang in ("en", "de"):
            (tmp_path / "data" / f"{name}.{lang}").write_bytes((tmp_path / "data" / f"{like}.{lang}").read_bytes())
    for name in SEVERAL_CORPORA:
        for path in re.findall(r"\$(?:EN_KO|EN_DE|FLORES)/(\S+?),", ALL[name].read_text(encoding="utf-8")):
            like = "train" if path.endswith("train") else "val"
            for lang, twin in (("en", "en"), ("ko", "de"), ("de", "de")):
                (tmp_path / "data" / f"{path}.{lang}").write_bytes((tmp_path / "data" / f"{like}.{twin}").read_bytes())
    for part in ("train", "val", "test_2016_flickr"):
        for lang, like in (("en", "en"), ("de", "de"), ("fr", "de")):
            for name in (part, f"{part}.lc.norm.tok"):
                content = (tmp_path / "data" / f"{part}.{like}").read_bytes()
                (tmp_path / "data" / f"{name}.{lang}").write_bytes(content)
    for variable in ("MULTI30K", "EN_KO", "EN_DE", "FLORES"):
        monkeypatch.setenv(variable, str(tmp_path / "data"))
    return tmp_path


def test_the_configurations_of_the_issue_are_found() -> None:
    assert set(MODELS) >= {
        "quickstart.yaml",
        "base.yaml",
        "big.yaml",
        "tiny.yaml",
        "small.yaml",
        "multi30k/wu2021.yaml",
        "multi30k/ours.yaml",
        *PARTS,
    }
    wanted = {
        "multi30k_en_de",
        "multi30k_en_de_files",
        "multi30k_en_de_tokens",
        "wmt14_en_de",
        "wmt14_en_fr",
        "en_de",
        "en_ko",
        "own_files",
    }
    wanted |= {f"multi30k_{pair}_{kind}" for pair in ("en_de", "de_en", "en_fr") for kind in ("files", "tokens")}
    wanted.add("multi30k_en_de_translations")
    assert set(DATA) >= {f"data/{name}.yaml" for name in wanted}
    assert set(TRAINER) >= {f"trainer/{name}.yaml" for name in ("one_gpu", "ddp", "fsdp", "bf16")}
    assert set(ALL) == {*MODELS, *DATA, *TRAINER, *TABLE3}


@pytest.mark.parametrize("name", ALL)
def test_each_opens_with_its_command_hardware_time_and_score(name: str) -> None:
    text = ALL[name].read_text(encoding="utf-8")
    head = " ".join(line.lstrip("# ") for line in text.split("\n\n")[0].splitlines() if line.startswith("#"))
    assert text.startswith("# ")
    assert f"--config configs/{name}" in head, "the head should show the command with this very file"
    assert "Hardware" in head
    if name not in TRAINER:
        assert re.search(r"Expected|score", head)
        assert re.search(r"[Tt]ime|hours|minutes|days", head)


@pytest.mark.parametrize("name", ALL)
def test_the_commands_in_the_head_name_files_that_exist(name: str) -> None:
    for path in re.findall(r"configs/[\w/]+\.yaml", ALL[name].read_text(encoding="utf-8")):
        assert (FOLDER.parent / path).is_file(), path


@pytest.mark.parametrize("name", [name for name in ALL if name not in TABLE3])  # those have a test of their own
def test_each_is_accepted_by_the_parser(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that need a GPU or the Hub: nothing is built."""
    content = printed(*([] if name in MODELS else configs("tiny.yaml", "data/own_files.yaml")), *configs(name))
    given = yaml.safe_load(ALL[name].read_text(encoding="utf-8"))
    for key, value in given.get("trainer", {}).items():
        found = content["trainer"][key]
        if not isinstance(value, (dict, list)):
            assert found == value
            continue
        for one, other in zip(*(each if isinstance(each, list) else [each] for each in (found, value)), strict=True):
            assert one["class_path"] == other["class_path"]
            assert one["init_args"].items() >= other["init_args"].items()  # other arguments have their defaults


@pytest.mark.parametrize("name", [name for name in MODELS if name != PARTS[-1]])  # which has no teachers yet
def test_models_take_a_training_step(name: str, texts: Path) -> None:
    text = [f"--data.{part}.max_rows=60" for part in ("train", "val")]  # of its own
    if "train" not in yaml.safe_load(ALL[name].read_text(encoding="utf-8")).get("data", {}):
        text = configs("data/own_files.yaml")
    finished = lit("fit", *configs(name), *text, *SMALL)
    assert finished.status == 0, finished.err


def test_the_parts_of_a_recipe_go_on_from_each_other(texts: Path) -> None:
    """As the heads of the files say it, in small."""
    small = [option for option in SMALL if "fast_dev_run" not in option and "default_root_dir" not in option]
    small += ["--trainer.max_steps=2", "--warmup.cooldown_steps=1"]

    def train(name: str, data: str, run: str, *options: str) -> None:
        content = configs(name, f"data/multi30k_{data}.yaml")
        finished = lit("fit", *content, *small, f"--trainer.default_root_dir=runs/multi30k/{run}", *options)
        assert finished.status == 0, finished.err

    def translate(model: str, source: str, output: str) -> None:
        files = f"--input=data/train.lc.norm.tok.{source}", f"--output=runs/multi30k/{output}"
        assert lit("translate", f"runs/multi30k/{model}", *files, "--max_extra_length=3").status == 0

    train(PARTS[0], "en_de_tokens", "begin1")
    train(PARTS[1], "en_de_tokens", "rdrop", "--init_from=runs/multi30k/begin1")
    for number in (1, 2, 3):
        averaged = f"runs/multi30k/rdrop{number}.ckpt"
        assert lit("average", "runs/multi30k/rdrop", "--last", "1", "--output", averaged).status == 0
    train(PARTS[0], "de_en_tokens", "reverse")
    translate("reverse", "de", "back.en")
    translate("rdrop1.ckpt", "en", "forth.de")
    often = "--checkpoint.every_n_train_steps=2", "--trainer.val_check_interval=1"
    train(PARTS[2], "en_de_translations", "student", "--init_from=runs/multi30k/rdrop1.ckpt", *often)
    models = "begin1/checkpoints/step=2.ckpt", "rdrop1.ckpt", "student/checkpoints/step=2.ckpt"
    plans = [torch.load(f"runs/multi30k/{path}", weights_only=True)["hyper_parameters"]["network"] for path in models]
    assert [plan["init_args"]["dropout"] for plan in plans] == [0.1, 0.2, 0.2]


@pytest.mark.parametrize("name", [name for name in DATA if "$" in ALL[name].read_text() or "own" in name])
def test_data_from_files_takes_a_training_step(name: str, texts: Path) -> None:
    if name == TRANSLATIONS:  # of which the test above makes true ones
        Path("runs/multi30k").mkdir(parents=True)
        for lang, translated in (("en", "back.en"), ("de", "forth.de")):
            Path("runs/multi30k", translated).write_bytes(Path(f"data/train.lc.norm.tok.{lang}").read_bytes())
        first = [option for option in SMALL if "fast_dev_run" not in option and "default_root_dir" not in option]
        first += ["--trainer.max_steps=1", "--warmup.cooldown_steps=0", "--trainer.log_every_n_steps=1"]
        options = *configs("tiny.yaml", "data/multi30k_en_de_tokens.yaml"), *first
        assert lit("fit", *options, "--trainer.default_root_dir=runs/multi30k/begin1").status == 0
    finished = lit("fit", *configs("tiny.yaml", name), *SMALL)
    assert finished.status == 0, finished.err


@pytest.mark.parametrize("name", [name for name in DATA if "$" in ALL[name].read_text()])
def test_data_from_files_says_which_variable_is_missing(
    name: str, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = re.findall(r"\$(\w+)/", ALL[name].read_text(encoding="utf-8"))[0]
    monkeypatch.delenv(variable)
    finished = lit("fit", *configs("tiny.yaml", name), *SMALL)
    assert finished.status == 1
    assert f"${variable}, which is not set" in finished.err


@pytest.mark.parametrize("name", SEVERAL_CORPORA)
def test_several_corpora_are_tested_on_other_text(name: str, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training runs without the folder of the test set, and the test set is none of the validation files."""
    monkeypatch.delenv("FLORES")
    (texts / "data" / "flores.dev.en").unlink()
    finished = lit("fit", *configs("tiny.yaml", name), *SMALL)
    assert finished.status == 0, finished.err
    data = yaml.safe_load(ALL[name].read_text(encoding="utf-8"))["data"]
    assert data["test"] not in data["val"]


def test_bfloat16_takes_a_training_step_on_a_cpu(texts: Path) -> None:
    finished = lit("fit", *configs("tiny.yaml", "data/own_files.yaml", "trainer/bf16.yaml"), *SMALL)
    assert finished.status == 0, finished.err
    assert "bf16" in finished.err or "bfloat16" in finished.err


@pytest.mark.network
@pytest.mark.parametrize("name", [name for name in DATA if "$" not in ALL[name].read_text() and "own" not in name])
def test_data_of_the_hub_takes_a_training_step(name: str, texts: Path) -> None:
    limits = [f"--data.{part}.max_rows=50" for part in ("train", "val", "test")]
    finished = lit("fit", *configs("tiny.yaml", name), *SMALL, "--data.num_workers=0", *limits)
    assert finished.status == 0, finished.err


NETWORK = {  # Table 3 of the paper
    "num_layers": (6, 6),
    "d_model": (512, 1024),
    "d_ff": (2048, 4096),
    "num_heads": (8, 16),
    "d_k": (64, 64),
    "d_v": (64, 64),
    "dropout": (0.1, 0.3),
    "norm": ("post", "post"),
    "positions": ("sinusoidal", "sinusoidal"),
    "activation": ("relu", "relu"),
    "tie": ("all", "all"),
}
ELSEWHERE = {  # where the keys lead, what the paper says of the base and of the big model, and its section
    "model.init_args.label_smoothing": (0.1, 0.1),  # 5.4
    "model.init_args.optimizer.init_args.betas": ([0.9, 0.98], [0.9, 0.98]),  # 5.3
    "model.init_args.optimizer.init_args.eps": (1e-9, 1e-9),
    "warmup.warmup_steps": (4000, 4000),
    "warmup.d_model": (512, 1024),
    "data.init_args.vocab_size": (37_000, 37_000),  # 5.1
    "data.init_args.max_tokens": (25_000, 25_000),
    "bleu.beam_size": (4, 4),  # 6.1
    "bleu.length_penalty": (0.6, 0.6),
    "bleu.max_extra_length": (50, 50),
    "averaging.num_checkpoints": (5, 20),
    "checkpoint.save_top_k": (5, 20),
    "trainer.max_steps": (100_000, 300_000),  # 5.2
}
PARAMETERS = {"base.yaml": 65e6, "big.yaml": 213e6}  # Table 3, for a vocabulary of about 37,000


def leaf(content: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        content = content[key]
    return content


@pytest.mark.parametrize(("name", "column"), [("base.yaml", 0), ("big.yaml", 1)])
def test_the_values_are_those_of_the_paper(name: str, column: int) -> None:
    content = printed(*configs(name))
    network = leaf(content, "model.init_args.network.init_args")
    assert {key: network[key] for key in NETWORK} == {key: values[column] for key, values in NETWORK.items()}
    got = {path: leaf(content, path) for path in ELSEWHERE}
    assert got == {path: values[column] for path, values in ELSEWHERE.items()}
    peak = (network["d_model"] * content["warmup"]["warmup_steps"]) ** -0.5  # equation 3 at step 4000
    assert leaf(content, "model.init_args.optimizer.init_args.lr") == pytest.approx(peak, rel=1e-12)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_networks_have_the_size_that_the_paper_reports(name: str) -> None:
    network = leaf(printed(*configs(name)), "model.init_args.network.init_args")
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in Transformer(**network, vocab_size=37_000).parameters())
    assert size == pytest.approx(PARAMETERS[name], rel=0.05)


def test_every_value_of_the_base_model_is_written_out() -> None:
    written = yaml.safe_load(ALL["base.yaml"].read_text(encoding="utf-8"))
    assert set(written["model"]["network"]) == set(NETWORK)


def defaults_of(plug: Any) -> dict[str, Any]:
    parameters = inspect.signature(plug).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def test_the_defaults_of_the_package_are_the_base_model() -> None:
    base = {key: values[0] for key, values in NETWORK.items()}
    network = defaults_of(Transformer)
    assert {key: network[key] for key in base if key not in ("d_k", "d_v")} == {
        key: value for key, value in base.items() if key not in ("d_k", "d_v")
    }
    assert network["d_k"] is network["d_v"] is None  # d_model / num_heads, which is 64
    assert defaults_of(LitTransformer)["label_smoothing"] == 0.1
    assert defaults_of(InverseSqrtWarmup)["warmup_steps"] == 4000
    assert defaults_of(CheckpointAveraging)["num_checkpoints"] == 5
    data = defaults_of(TranslationDataModule)
    assert (data["vocab_size"], data["max_tokens"]) == (37_000, 25_000)
    for search in (defaults_of(BeamSearch), defaults_of(BLEUEvaluation)):
        assert (search["beam_size"], search["length_penalty"], search["max_extra_length"]) == (4, 0.6, 50)
    assert TRAINER_DEFAULTS["max_steps"] == 100_000
    group = paper_adam([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.9, 0.98), 1e-9)
    assert group["lr"] == pytest.approx((512 * 4000) ** -0.5)


def test_configurations_reach_an_installed_package() -> None:
    """The wheel carries them beside the code, where ``quickstart`` looks for its own."""
    from lit_transformer.quickstart import config_file

    assert os.path.samefile(config_file("quickstart.yaml"), ALL["quickstart.yaml"])
