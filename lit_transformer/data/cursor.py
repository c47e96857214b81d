"""Where a stream stands: plain data that means the same to every process, and goes into checkpoints.

A cursor holds the epoch, the lane whose turn is next, and the place in each lane: the running number of its pool, how
many batches of that pool are done, and where each corpus stood when the pool began.
"""

from __future__ import annotations

from typing import Any

Cursor = dict[str, Any]
Place = dict[str, Any]


def start_of(epoch: int, num_lanes: int = 1) -> Cursor:
    """The place before the first batch of an epoch."""
    return {"epoch": epoch, "turn": 0, "lanes": [lane_start() for _ in range(num_lanes)]}


def lane_start() -> Place:
    """The place before the first batch of a lane."""
    return {"pool": 0, "batch": 0, "sources": None}


def joined(cursors: list[Cursor]) -> Cursor:
    """One cursor out of those of all processes, each of which knows its own lanes.

    Example:
        >>> a, b = {"epoch": 0, "turn": 0, "lanes": [{"pool": 1}, None]}, {"epoch": 0, "turn": 0, "lanes": [None, {}]}
        >>> joined([a, b])["lanes"]
        [{'pool': 1}, {}]
    """
    columns = zip(*(cursor["lanes"] for cursor in cursors), strict=True)
    return {**cursors[0], "lanes": [next(place for place in column if place is not None) for column in columns]}
