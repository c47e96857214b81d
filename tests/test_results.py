"""What is kept of the results: logs in the form in which Lightning writes them, and commands that parse."""

import csv
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from string import Template

import pytest
import yaml
from command_line import lit

from lit_transformer.average_command import average_parser
from lit_transformer.curves import read_curves
from lit_transformer.translate_command import translate_parser

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "tests" / "results" / "README.md"
PARSERS = {"average": average_parser, "translate": translate_parser}
LOGS = sorted(path for path in Path(__file__).parent.glob("results/*/*.csv") if path.parent.name != "marian")


def test_there_are_logs() -> None:
    assert len(LOGS) > 10


@pytest.mark.parametrize("log", LOGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_steps_count_from_zero_as_lightning_counts_them(log: Path) -> None:
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    training = [int(row["step"]) for row in rows if row["train/loss"]]
    assert all((step + 1) % 50 == 0 for step in training)
    assert training == sorted(set(training)), "one training, whose steps go on"
    curves = read_curves(log)
    assert max(curves["train/loss"]) == training[-1] + 1
    assert min(curves["val/loss"]) > 1, "no scores of finished models among those of the training"


def commands() -> Iterator[str]:
    """Each command of the page, with its shell variables filled in."""
    variables: dict[str, str] = {}
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[0] == "export" or "=" in words[0]:
                variables |= {
                    name: Template(value).safe_substitute(variables)
                    for name, value in (word.split("=", 1) for word in words if word != "export")
                }
            elif "lit-transformer" in words:
                yield Template(line.strip()).safe_substitute(variables, SEED="1").partition("lit-transformer ")[2]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_of_the_page_parses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for variable in ("MULTI30K", "EN_DE", "EN_KO", "FLORES"):
        monkeypatch.setenv(variable, "path")
    name, *options = shlex.split(command)
    if name in PARSERS:
        PARSERS[name]().parse_args(options)
        return
    for option in options:
        if option.startswith("runs/") and option.endswith("config.yaml"):
            config = Path(option)
            config.parent.mkdir(parents=True)
            config.write_text((ROOT / "configs" / "tiny.yaml").read_text(encoding="utf-8"))
    finished = lit(name, *options, "--print_config")
    assert finished.status == 0, finished.err
    assert yaml.safe_load(finished.out)["model"]


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\]\((?!https?://)([^)]+)\)", PAGE.read_text(encoding="utf-8"))))
)
def test_every_file_that_the_page_names_exists(path: str) -> None:
    assert (PAGE.parent / path).exists()
