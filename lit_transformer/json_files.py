"""JSON out of files that others may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: str | Path) -> Any:
    """What a file holds.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds no JSON, or JSON that is nested too deeply to be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
