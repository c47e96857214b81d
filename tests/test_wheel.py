"""The wheel: built, installed into a clean environment and used from another folder."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

import lit_transformer

ROOT = Path(__file__).parents[1]
# What import lit_transformer takes beyond its two largest parts, in one process, in seconds of processor time.
TIMED = """
import time, torch, lightning
start = time.process_time()
import lit_transformer
plain = time.process_time() - start
lit_transformer.Translator, lit_transformer.LitTransformer, lit_transformer.TranslationDataModule
print(lit_transformer.__file__, plain, time.process_time() - start)
"""
# The command line where a package is not installed: the first argument.
WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == missing else PathFinder.find_spec(name, path, target)

missing = sys.argv.pop(1)
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
runpy.run_module("lit_transformer", run_name="__main__")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel alone; what the wheel needs comes from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run([*build, "-w", folder, ROOT], capture_output=True, text=True, check=False)
    if "hatchling" in done.stderr and done.returncode:
        pytest.skip("hatchling, which builds the wheel, is not installed")
    assert done.returncode == 0, done.stderr
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    done = subprocess.run([*map(str, install)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(ours), encoding="utf-8")
    return python


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [python, "-I", *arguments], cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_the_installed_package_works_from_another_folder(python: Path, tmp_path: Path) -> None:
    said = run(python, tmp_path, "-m", "lit_transformer", "--version").stdout
    assert said == f"lit-transformer {lit_transformer.__version__}\n"
    assert "quickstart" in run(python, tmp_path, "-m", "lit_transformer", "--help").stdout
    place, plain, whole = run(python, tmp_path, "-c", TIMED).stdout.split()
    assert Path(place).is_relative_to(python.parents[1])
    assert float(plain) < 1.0
    assert float(whole) < 10.0  # with datasets, tokenizers, sacrebleu and torchmetrics


@pytest.mark.slow
def test_quickstart_trains_from_the_installed_package(python: Path, tmp_path: Path) -> None:
    run(python, tmp_path, "-m", "lit_transformer", "quickstart", "--max_steps", "3")
    assert (tmp_path / "runs" / "quickstart" / "attention.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("uvicorn", "serve", ["serve", "model"]),
        ("ctranslate2", "ctranslate2", ["translate", "model", "I love cats", "--engine", "ctranslate2"]),
    ],
)
def test_an_extra_that_is_missing_is_named(
    python: Path, tmp_path: Path, missing: str, extra: str, arguments: list[str]
) -> None:
    command = [python, "-I", "-c", WITHOUT, missing, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert f'pip install "lit-transformer[{extra}]"' in done.stderr
    assert done.stderr.count("\n") == 1
