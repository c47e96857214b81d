"""Rows that training does without: those that are no sentence pair, and pairs that a corpus leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Literal

from lit_transformer.data.textfiles import CorpusError
from lit_transformer.interfaces import SentencePair

OnBadRow = Literal["skip", "error"]
_NOT_PLAIN = object()


class BadRowError(CorpusError):
    """A row is no sentence pair.

    Attributes:
        reason: The kind of fault, in few words: ``missing column``, ``not text`` or ``empty``.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class PairFilter:
    """Which sentence pairs of one corpus are left out of training, judged by their text.

    It comes before the limits in tokens of the data module, which hold for all corpora, and never touches validation,
    test or prediction. Words are what white space separates; for languages written without it, count characters.

    A subclass overrides ``verdict``. What its verdicts depend on should be public attributes that hold plain values:
    they are part of ``fingerprint``, which tells whether a cache or a checkpoint still fits.

    Args:
        min_words: Fewest words of each side.
        max_words: Most words of each side; None allows any number.
        max_chars: Most characters of each side; None allows any number.
        max_chars_ratio: Largest ratio of the two sides in characters; None allows any.
        allow_copies: Whether pairs may stay whose two sides are the same text.

    Raises:
        ValueError: If a bound is below 1, or ``max_words`` below ``min_words``.

    Example:
        >>> PairFilter(max_words=3).verdict(SentencePair("a b c d", "x"))
        'overlong'
    """

    def __init__(
        self,
        min_words: int = 1,
        max_words: int | None = None,
        max_chars: int | None = None,
        max_chars_ratio: float | None = None,
        allow_copies: bool = True,
    ) -> None:
        self.min_words, self.max_words, self.max_chars = min_words, max_words, max_chars
        self.max_chars_ratio, self.allow_copies = max_chars_ratio, allow_copies
        for name in ("min_words", "max_words", "max_chars", "max_chars_ratio"):
            bound = getattr(self, name)
            if bound is not None and bound < 1:
                raise ValueError(f"{name} must be at least 1, got {bound}")
        if max_words is not None and max_words < min_words:
            raise ValueError(f"max_words={max_words} is below min_words={min_words}, so no pair could stay")

    def verdict(self, pair: SentencePair) -> str | None:
        """Why a pair is left out, in a word; None if it stays. Override this to judge otherwise.

        Args:
            pair: Two sides with some text in each.
        """
        short, long = sorted(map(len, pair))
        if self.max_chars is not None and long > self.max_chars:
            return "overlong"
        if self.min_words > 1 or self.max_words is not None:
            fewest, most = sorted(len(side.split()) for side in pair)
            if self.max_words is not None and most > self.max_words:
                return "overlong"
            if fewest < self.min_words:
                return "too short"
        if self.max_chars_ratio is not None and long > self.max_chars_ratio * short:
            return "ratio"
        return "copy" if not self.allow_copies and pair.src == pair.tgt else None

    def fingerprint(self) -> list[Any]:
        """What tells this filter from others: the name of its class, and its public attributes with plain values.

        Plain are text, numbers, None, and lists, tuples, sets and dictionaries of them. Attributes whose names begin
        with an underscore, and those that hold other objects, are left out: override this if verdicts depend on them.
        """
        return [type(self).__qualname__, plain_attributes(self)]


def plain_attributes(owner: object, without: Set[str] = frozenset()) -> dict[str, Any]:
    """The public attributes of an object that JSON can hold, by name."""
    names = [name for name in vars(owner) if not name.startswith("_") and name not in without]
    public = {name: _plain(getattr(owner, name)) for name in names}
    return {name: value for name, value in public.items() if value is not _NOT_PLAIN}


def _plain(value: Any) -> Any:
    """The value as JSON can hold it, the same in every process; an object of another kind is ``_NOT_PLAIN``."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        value = sorted(value.items(), key=str)
    elif isinstance(value, Set):
        value = sorted(value, key=str)
    elif not isinstance(value, list | tuple):
        return _NOT_PLAIN
    inside = [_plain(item) for item in value]
    return _NOT_PLAIN if _NOT_PLAIN in inside else inside


def in_words(counts: Mapping[str, int]) -> str:
    """Counts in one readable line, the largest first.

    Example:
        >>> in_words({"empty": 2, "overlong": 1200})
        '1,200 overlong, 2 empty'
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in ordered)
