"""The kinds of words in the teaching corpus, and how its tables of words are written."""

from __future__ import annotations

from typing import NamedTuple

from lit_transformer.data.teaching.english import Agreement, plural


class Noun(NamedTuple):
    """A thing one can do something with.

    Args:
        english: How English names the thing in general: ``cats``, ``bread``, ``the piano``.
        korean: The Korean word.
        singular: The English word for one of them; empty if there is no counting.
        counter: The Korean word that counts them, such as 마리 for animals; empty if there is no counting.
        measure: The English unit, if counting needs one, such as ``cup``.
        group: The group of the lexicon it belongs to.
    """

    english: str
    korean: str
    singular: str = ""
    counter: str = ""
    measure: str = ""
    group: str = ""

    @property
    def general(self) -> str:
        """The Korean word for them in general; only persons show their plural."""
        return self.korean + "들" if self.group in ("people", "friend") else self.korean


class Subject(NamedTuple):
    """Somebody who does something; ``object_form`` is English only (``he``, ``him``)."""

    english: str
    korean: str
    agreement: Agreement = "singular"
    object_form: str = ""
    third_person: bool = True
    is_animal: bool = False


class Verb(NamedTuple):
    """What one can do.

    Args:
        english: The verb in its base form, perhaps with a preposition: ``wait for``.
        korean: The dictionary form.
        objects: Names of the groups of nouns it takes; empty if it takes none.
        places: Names of the places where one does it.
        tools: Names of the tools one does it with.
        particle: The particle of its object.
        is_state: Whether it says how things are (love, know), so that it has no progressive.
    """

    english: str
    korean: str
    objects: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    particle: str = "을/를"
    is_state: bool = False


class Place(NamedTuple):
    """A place: where one is (``at school``), where one goes (``to school``), and the Korean word."""

    at: str
    to: str
    korean: str


def rows(text: str) -> list[tuple[str, str]]:
    """Splits a table written as ``cat 고양이, ice cream 아이스크림`` into pairs, Korean from its first character on."""
    table = []
    for row in text.split(","):
        words = row.split()
        first = next(i for i, word in enumerate(words) if not word.isascii())
        table.append((" ".join(words[:first]), " ".join(words[first:])))
    return table


def things(text: str, counter: str, measure: str = "") -> list[Noun]:
    """Nouns that one can count; those with a measure have no plural of their own."""
    return [Noun(en if measure else plural(en), ko, en, counter, measure) for en, ko in rows(text)]


def stuff(text: str) -> list[Noun]:
    """Nouns that one does not count."""
    return [Noun(en, ko) for en, ko in rows(text)]


def names(text: str) -> tuple[str, ...]:
    """Splits a list of names between commas."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def verb(
    english: str, korean: str, objects: str = "", places: str = "", tools: str = "", particle: str = "을/를"
) -> Verb:
    """A verb from lists written as text; the verbs of states are known by name."""
    is_state = english in ("love", "hate", "know", "remember", "need")
    return Verb(english, korean, tuple(objects.split()), names(places), names(tools), particle, is_state)


def is_same_person(subject: Subject, noun: Noun) -> bool:
    """Whether an object would name the subject once more, or a group it belongs to."""
    names_both = {subject.korean, noun.korean}
    return len(names_both) == 1 or names_both == {"나", "우리"} or subject.korean == noun.general
