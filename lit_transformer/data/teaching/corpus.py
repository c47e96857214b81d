"""The teaching corpus: draws sentences from the grammar and holds combinations of words out of training."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Literal, get_args

from lit_transformer.data.teaching import lexicon as lex
from lit_transformer.data.teaching.clauses import Sentence
from lit_transformer.data.teaching.korean import Style
from lit_transformer.data.teaching.phrases import Action
from lit_transformer.data.teaching.sentences import SentenceWriter
from lit_transformer.interfaces import SentencePair

Split = Literal["train", "validation", "test"]

DEMO_SENTENCE = "I love cats"  # held out by hand, so that a demonstration translates something unseen
NUM_DRAWS = 72_000
MAX_WORDS = 12  # of an English sentence
HELD_OUT_PER_MILLE: dict[Split, int] = {"validation": 14, "test": 28}  # of the combinations; the rest is training
NUM_HELD_OUT: dict[Split, int] = {"validation": 500, "test": 1000}
MIN_WORD_COUNT = 20  # training sentences in which every word of a held-out sentence must occur


def teaching_pairs(split: Split, style: Style = "plain") -> list[SentencePair]:
    """Sentence pairs of the English-Korean teaching corpus, the same ones on every machine.

    Validation and test hold sentences whose combination of subject, verb, object, mode and tense never occurs in
    training, in words that do occur there. ``DEMO_SENTENCE`` opens the test set.

    Args:
        split: ``train`` (more than 50,000 pairs), ``validation`` (500) or ``test`` (1,000).
        style: ``plain`` as among friends (해체), or ``polite`` (해요체); training has the same
            English sentences in both.

    Returns:
        The pairs, in a fixed order that mixes all constructions.

    Raises:
        ValueError: If there is no such split or style.

    Example:
        >>> teaching_pairs("test")[0]
        SentencePair(src='I love cats', tgt='나는 고양이를 좋아해')
    """
    for name, value, known in (("split", split, get_args(Split)), ("style", style, get_args(Style))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return list(all_splits(style)[split])


@lru_cache(maxsize=2)
def all_splits(style: Style) -> dict[Split, list[SentencePair]]:
    """Writes the whole corpus once and sorts it into its splits."""
    writer = SentenceWriter(style)
    demo = writer.write(lex.SUBJECTS[0], Action("love cats", "고양이를", "좋아하다", "love cats", is_state=True))
    drawn: dict[str, Sentence] = {demo.english: demo}
    for _ in range(NUM_DRAWS):
        sentence = writer.sentence()
        if sentence.english.count(" ") < MAX_WORDS:
            drawn.setdefault(sentence.english, sentence)
    splits: dict[Split, list[SentencePair]] = {"train": [], "validation": [], "test": []}
    for sentence in drawn.values():
        split = split_of(sentence.keys, demo.keys[0])
        if split:
            splits[split].append(SentencePair(sentence.english, sentence.korean))
    known = known_words(splits["train"])
    for split, number in NUM_HELD_OUT.items():
        splits[split] = [pair for pair in splits[split] if words_of(pair) <= known][:number]
    return splits


def split_of(keys: Iterable[str], demo_key: str) -> Split | None:
    """The split that all combinations in a sentence agree on; None if two held-out ones contradict each other."""
    held_out = {part for key in keys if (part := split_of_key(key, demo_key)) != "train"}
    if len(held_out) > 1:
        return None
    return held_out.pop() if held_out else "train"


@cache
def split_of_key(key: str, demo_key: str) -> Split:
    """The split of one combination, decided by a checksum that is the same everywhere."""
    if key == demo_key:
        return "test"
    number = zlib.crc32(key.encode()) % 1000
    if number < HELD_OUT_PER_MILLE["test"]:
        return "test"
    return "validation" if number < HELD_OUT_PER_MILLE["test"] + HELD_OUT_PER_MILLE["validation"] else "train"


def words_of(pair: SentencePair) -> set[str]:
    """The words of both sides, without case and question mark."""
    return {word.rstrip("?") for text in pair for word in text.lower().split()}


def known_words(pairs: Iterable[SentencePair]) -> set[str]:
    """The words that occur often enough to be learned."""
    counts = Counter(word for pair in pairs for word in words_of(pair))
    return {word for word, count in counts.items() if count >= MIN_WORD_COUNT}
