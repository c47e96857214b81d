"""Fixtures that every test shares: each starts from the same seed and leaves no file in the project's folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

# Programs that tests start, with packages that need not be there; pytest would look for doctests in them.
collect_ignore = ["exchange/onnx_greedy.py", "exchange/round_trips.py", "serving/litserve_server.py"]


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(1)


@pytest.fixture(autouse=True)
def _nothing_is_left_in_the_project() -> Iterator[None]:
    before = set(os.listdir(ROOT))
    yield
    assert not {name for name in set(os.listdir(ROOT)) - before if not name.startswith(".")}
