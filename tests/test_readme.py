"""The README is part of the program: its blocks run, its commands parse, its names and files exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from command_line import lit
from tiny_run import tiny_run as tiny_run

import lit_transformer
from lit_transformer import (
    SubwordTokenizer,
    TeachingCorpus,
    Transformer,
    Translator,
    attention_command,
    average_command,
    compare,
    curves,
    ensemble_command,
    exchange_commands,
    metrics,
    nn,
    quickstart,
    score_command,
    translate_command,
)
from lit_transformer.cli import COMMANDS
from lit_transformer.data import batching
from lit_transformer.exchange import export_huggingface
from lit_transformer.serving import commands as serving_commands

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [code.replace("\\\n", " ") for language, code in BLOCKS if language in ("", "bash", "sh", "console")]
YAML = [code for language, code in BLOCKS if language == "yaml"]
CALLS = [  # the arguments of every lit-transformer in every line, up to a pipe or the end of the command
    call
    for code in SHELL
    for line in code.splitlines()
    for call in re.findall(r"lit-transformer (.+?)(?: \||&&|$)", line)
]
OPTIONS = sorted(set(re.findall(r"`(--[^`]+)`", README)))  # that the text and the tables speak of
WITHOUT_TRAINING = ("translate", "curves", "export", "import", "compare")
OWN_CLASS = next(code for code in PYTHON if "class Warm" in code)


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``export --format huggingface`` writes, of a network that knows nothing yet."""
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = SubwordTokenizer(vocab_size=400)
    tokenizer.train(TeachingCorpus("train", max_rows=50))
    network = Transformer(vocab_size=400, num_layers=1, d_model=16, d_ff=32, num_heads=2, max_length=64)
    export_huggingface(Translator(network, tokenizer), folder)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, marian: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the README assumes it: configs, a run, a package of one's own, an exported model."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my_project.py").write_text(OWN_CLASS)
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text((ROOT / "configs" / "tiny.yaml").read_text(encoding="utf-8"))
    (tmp_path / "marian").symlink_to(marian)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_blocks_of_every_kind() -> None:
    assert len(PYTHON) >= 2
    assert len(YAML) >= 1
    assert {shlex.split(call)[0] for call in CALLS} >= {"quickstart", "fit", "test", "translate"}


PARSERS = {
    "attention": attention_command.attention_parser,
    "quickstart": quickstart.quickstart_parser,
    "curves": curves.curves_parser,
    "compare": compare.compare_parser,
    "export": exchange_commands.export_parser,
    "import": exchange_commands.import_parser,
    "serve": serving_commands.serve_parser,
    "push": exchange_commands.push_parser,
    "translate": translate_command.translate_parser,
    "average": average_command.average_parser,
    "ensemble": ensemble_command.ensemble_parser,
    "score": score_command.score_parser,
}


@pytest.mark.parametrize("call", CALLS)
def test_every_command_parses(call: str, workplace: Path) -> None:
    name, *options = shlex.split(call)
    assert name in COMMANDS
    if name in PARSERS:
        PARSERS[name]().parse_args(options)
    else:
        finished = lit(name, *options, "--print_config")
        assert finished.status == 0, finished.err
        assert yaml.safe_load(finished.out)["model"]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_of_the_text_is_accepted(options: str, workplace: Path) -> None:
    name, *values = shlex.split(options)
    for parser in (
        translate_command.translate_parser(),
        serving_commands.serve_parser(),
        attention_command.attention_parser(),
    ):
        action = parser._option_string_actions.get(name)
        if action is not None and values:
            parser.parse_args(["runs/tiny", name, *values])
        if action is not None:
            return
    configs = "--config", "configs/tiny.yaml", "--config", "configs/data/own_files.yaml"
    finished = lit("fit", *configs, name, *values, "--print_config")
    assert finished.status == 0, finished.err


def test_commands_that_need_no_training_run_in_their_order(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    for name in ("news.en", "base.txt", "better.txt", "test.de"):
        (tmp_path / name).write_text("one red cat sees two dogs\nthree\n")
    monkeypatch.chdir(tmp_path)
    calls = [shlex.split(call) for call in CALLS]
    # tags need a model that was trained with them, scores a run of test, names of the Hub a network; ONNX takes long
    elsewhere = {"--src_tag", "me/tiny-en-de", "opus-mt-en-de", "onnx", "torch"}
    calls = [call for call in calls if call[0] in WITHOUT_TRAINING and not elsewhere & set(call)]
    calls = [call for call in calls if not any(word.endswith(".json") or "quickstart" in word for word in call)]
    assert {call[0] for call in calls} == set(WITHOUT_TRAINING)
    for call in calls:
        finished = lit(*call)
        extra_is_missing = "lit-transformer[" in finished.err
        assert finished.status == 0 or extra_is_missing, f"{call}: {finished.err}"
    for made in ("news.de", "runs/tiny/curves.png", "exported", "marian", "back"):
        assert (tmp_path / made).exists(), made


def test_every_extra_of_the_text_exists() -> None:
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    lists = re.findall(r"\"(?:lit-transformer|\.)\[([\w,]+)\]\"", README)
    named = {extra for names in lists for extra in names.split(",")}
    assert named
    assert named <= set(known)


def test_the_class_of_ones_own_is_what_the_command_trains(workplace: Path) -> None:
    call = next(call for call in CALLS if "my_project." in call)
    printed = yaml.safe_load(lit(*shlex.split(call), "--print_config").out)
    assert printed["model"]["init_args"]["network"]["class_path"] == "my_project.WarmTransformer"


@pytest.mark.parametrize("code", YAML)
def test_every_yaml_block_is_accepted(code: str, workplace: Path) -> None:
    (workplace / "block.yaml").write_text(code)
    finished = lit("fit", "--config", "configs/tiny.yaml", "--config", "block.yaml", "--print_config")
    assert finished.status == 0, finished.err


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_every_python_block_runs_in_small(number: int, workplace: Path) -> None:
    """The same code on a part of the text."""
    smaller = PYTHON[number].replace('TeachingCorpus("train"', 'TeachingCorpus("train", max_rows=400')
    smaller = smaller.replace('TeachingCorpus("validation"', 'TeachingCorpus("validation", max_rows=8')
    run_block(smaller)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_every_python_block_runs(number: int, workplace: Path) -> None:
    run_block(PYTHON[number])


def run_block(code: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "print(" not in code or out.getvalue().strip()


def readme_command(name: str) -> str:
    """A marked command, found by the very function of the gate."""
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    function = re.search(r"^readme_command\(\) \{.*?^\}", gate, re.S | re.M)
    assert function, ".ci/run has no function readme_command"
    script = f"{function.group(0)}\nreadme_command {name}"
    return subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("name", "ending"),
    [("main-command", "lit-transformer quickstart"), ("test-command", "-m pytest -q -n 2 --dist worksteal")],
)
def test_the_gate_finds_the_marked_commands(name: str, ending: str) -> None:
    command = readme_command(name)
    assert command.count("\n") == 1, "a command to paste is one line"
    assert command.strip().endswith(ending)
    assert command.strip() in {code.strip() for code in SHELL}
    assert "-c constraints.txt" in command


def table_rows(heading: str) -> Iterator[list[str]]:
    """The rows of the table whose head begins with ``heading``."""
    _, _, rest = README.partition(f"| {heading} |")
    assert rest, f"there is no table that begins with {heading}"
    for line in rest.splitlines()[2:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_every_seam_of_the_table_exists() -> None:
    homes = (lit_transformer, nn, batching, metrics)
    seen = 0
    for _, cell in table_rows("to change"):
        owner: object = None
        for name in re.findall(r"`([^`]+)`", cell):
            base, _, member = re.sub(r"\(.*", "", name).partition(".")
            if base[0].isupper():
                owner = next(getattr(home, base) for home in homes if hasattr(home, base))
                if member:
                    assert hasattr(owner, member), name
                if argument := re.search(r"\((\w+)=", name):
                    assert argument.group(1) in owner.__init__.__annotations__, name  # type: ignore[misc]
            else:
                assert hasattr(owner or lit_transformer.LitTransformer, base) or base in (
                    lit_transformer.LitTransformer.__init__.__annotations__
                ), name
            seen += 1
    assert seen >= 15


def mentioned_paths() -> set[str]:
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", README)
    plain = re.findall(r"(?:configs|tests|docs|benchmarks)/[\w./-]+", README)
    quoted = re.findall(r"`(constraints\.txt|CHANGELOG\.md|LICENSE)`", README)
    return {path.rstrip(".") for path in (*links, *plain, *quoted)}


@pytest.mark.parametrize("path", sorted(mentioned_paths()))
def test_every_file_that_is_mentioned_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_no_placeholder_is_left() -> None:
    assert not re.search(r"^[A-Z]{4,}$|TODO|FIXME|XXX", README, re.M)
