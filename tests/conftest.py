"""Fixtures that every test shares; each test starts from the same seed."""

import pytest
import torch

# Programs that tests start, with packages that need not be there; pytest would look for doctests in them.
collect_ignore = ["exchange/onnx_greedy.py", "exchange/round_trips.py", "serving/litserve_server.py"]


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(1)
