"""Fixtures that every test shares; each test starts from the same seed."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(1)
