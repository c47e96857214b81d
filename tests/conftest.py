"""Fixtures that every test shares: each starts from the same seed and leaves no file in the project's folder."""

import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: threads of one would only wait for those of the other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

ROOT = Path(__file__).parent.parent

# Programs that tests start, with packages that need not be there; pytest would look for doctests in them.
collect_ignore = ["exchange/onnx_greedy.py", "exchange/round_trips.py", "serving/litserve_server.py"]


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(1)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test stands in a folder of its own, where a data module keeps its tokenizer."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def without_mecab(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that cuts Korean into morphemes is not there, as after a plain installation."""
    monkeypatch.setitem(sys.modules, "mecab_ko", None)
    monkeypatch.delitem(sys.modules, "sacrebleu.tokenizers.tokenizer_ko_mecab", raising=False)


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_left_in_the_project() -> Iterator[None]:
    before = _names()
    yield
    left = _names() - before
    assert not left, f"a test has left {', '.join(sorted(left))} in the project's folder"


def _names() -> set[str]:
    """What stands at the top of the project, but for what git is told to ignore."""
    ignored = [line.strip("/\n") for line in (ROOT / ".gitignore").read_text().splitlines()]
    return {name for name in os.listdir(ROOT) if not any(fnmatch(name, pattern) for pattern in ignored)}
