"""Counts of the rows that training leaves out, exact over resumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from lit_transformer.data.cursor import Cursor
from lit_transformer.data.pools import Pool


class DroppedRows:
    """Counts the rows left out up to a place in the stream, so that a resumed run goes on counting.

    Pools are read ahead of the training, and one of them is read again after a resume. So the rows of a pool count
    once it has been trained on in part, and not again if that is so already when it is begun.

    Args:
        counts: Rows by reason that an earlier run counted.

    Attributes:
        restored: The same.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.restored = Counter(counts or {})
        self._counts = Counter(self.restored)
        self._ahead: list[tuple[int, int, int, Counter[str]]] = []  # epoch, lane and number of a pool, and its rows

    def begin(self, pool: Pool, cursor: Cursor) -> Counter[str]:
        """Takes note of a pool that is begun while the training stands at ``cursor``; returns all counts so far."""
        place = pool.epoch, pool.lane, int(pool.place["pool"])
        if pool.dropped and not _is_reached(*place, cursor):
            self._ahead.append((*place, pool.dropped))
        return sum((dropped for *_, dropped in self._ahead), self.up_to(cursor))

    def up_to(self, cursor: Cursor) -> Counter[str]:
        """Rows left out, by reason, of all pools that the training has begun with at ``cursor``."""
        waiting, self._ahead = self._ahead, []
        for epoch, lane, number, dropped in waiting:
            if _is_reached(epoch, lane, number, cursor):
                self._counts.update(dropped)
            else:
                self._ahead.append((epoch, lane, number, dropped))
        return Counter(self._counts)


def _is_reached(epoch: int, lane: int, number: int, cursor: Cursor) -> bool:
    place = cursor["lanes"][lane]
    return (epoch, number, 1) <= (cursor["epoch"], place["pool"], min(place["batch"], 1))
