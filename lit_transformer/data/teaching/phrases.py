"""Noun phrases and actions: the parts from which the sentences of the teaching corpus are put together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from lit_transformer.data.teaching import english, korean
from lit_transformer.data.teaching import lexicon as lex
from lit_transformer.data.teaching.korean import Style, attach
from lit_transformer.data.teaching.words import Noun, Subject, Verb, is_same_person

Item = TypeVar("Item")

OBJECT_FORMS = ("bare", "bare", "bare", "described", "counted", "owned", "shown")
POINTING = ("owned", "shown")
ACTION_KINDS = (*("transitive",) * 6, "intransitive", "motion", "giving")


class Phrase(NamedTuple):
    """A part of a sentence in both languages, and the noun that it is about."""

    english: str = ""
    korean: str = ""
    head: str = ""


class Action(NamedTuple):
    """What somebody does or is.

    Args:
        english: Verb phrase, the verb first and in its base form.
        complements: What stands before the Korean predicate.
        predicate: Korean predicate in its dictionary form.
        key: Verb and noun, by which combinations are held out.
        is_state: Whether there is no progressive.
    """

    english: str
    complements: str
    predicate: str
    key: str
    is_state: bool = False


def join(*parts: str) -> str:
    """The parts with spaces between them, empty ones left out."""
    return " ".join(filter(None, parts))


class PhraseWriter:
    """Draws words and writes phrases in both languages.

    The draws do not depend on the style, so both styles have the same English sentences.

    Args:
        style: ``plain`` (해체, among friends) or ``polite`` (해요체).
        seed: Start of the sequence of draws.
    """

    def __init__(self, style: Style = "plain", seed: int = 2017) -> None:
        self.style = style
        self._random = random.Random(seed).random  # the one method whose sequence Python promises to keep

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items, each as likely as the others."""
        return items[int(self._random() * len(items))]

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability

    def spoken(self, phrase: str) -> str:
        """The phrase with the pronoun of the style; only its first word can be one."""
        if self.style == "plain":
            return phrase
        first, space, rest = phrase.partition(" ")
        return lex.POLITE_WORDS.get(first, first) + space + rest

    def topic(self, subject: Subject) -> str:
        """The subject as the topic of a Korean sentence."""
        return attach(self.spoken(subject.korean), "은/는")

    def subject(self) -> Subject:
        """Somebody, half of the time a pronoun."""
        return self.pick(lex.SUBJECTS if self.chance(0.55) else lex.PEOPLE)

    def noun(self, groups: Sequence[str]) -> Noun:
        """A noun of one of the groups."""
        return self.pick(lex.NOUNS[self.pick(groups)])

    def quality(self, noun: Noun) -> tuple[str, str]:
        """An adjective with the form in which it stands before the noun."""
        if noun.group in lex.CAN_BE_NEW and self.chance(0.25):
            return self.pick(lex.ONLY_BEFORE_NOUN)
        word, predicate = self.pick(lex.qualities(noun))
        return word, korean.modify_noun(predicate)

    def counted(self, noun: Noun) -> Phrase:
        """Some number of the things: *two cups of coffee*, 커피 두 잔."""
        number, korean_number = self.pick(lex.NUMBERS)
        unit = noun.measure or noun.singular
        unit = unit if number == "one" else english.plural(unit)
        of = f"of {noun.english}" if noun.measure else ""
        return Phrase(join(number, unit, of), f"{noun.korean} {korean_number} {noun.counter}", noun.english)

    def pointed_at(self, noun: Noun, subject: Subject | None = None) -> Phrase:
        """One particular thing: *my book*, *this book*; never *his book* if the subject is *he*."""
        owner = None if self.chance(0.5) or noun.group in lex.NOT_OWNED else self.pick(lex.POSSESSIVES)
        if owner is None or (subject and owner[0] == lex.OWN_POSSESSIVE.get(subject.english)):
            owner = self.pick(lex.DEMONSTRATIVES)
        return Phrase(f"{owner[0]} {noun.singular}", f"{self.spoken(owner[1])} {noun.korean}", noun.english)

    def object_phrase(self, noun: Noun, subject: Subject, general: bool = False) -> Phrase:
        """The noun as an object: bare, described, counted, or one in particular.

        Args:
            noun: What it is about.
            subject: Who does it.
            general: Whether things of this kind are meant (*cats*) rather than one of them (*a cat*).
        """
        form = self.pick(OBJECT_FORMS)
        if form == "described" and noun.group in lex.QUALITY_OF:
            word, before_noun = self.quality(noun)
            return self.kind_of(noun, general, word, before_noun)
        if form == "counted" and noun.counter and not general:
            return self.counted(noun)
        if (
            form in POINTING
            and noun.singular
            and not noun.measure
            and not (general and noun.group in lex.NOT_POINTED_AT)
        ):
            return self.pointed_at(noun, subject)
        return self.kind_of(noun, general)

    def kind_of(self, noun: Noun, general: bool, word: str = "", before_noun: str = "") -> Phrase:
        """*cats* in general or *a cat*, perhaps with an adjective; Korean shows this for persons only."""
        is_one = noun.singular and not noun.measure and not general
        words = english.with_article(join(word, noun.singular)) if is_one else join(word, noun.english)
        name = noun.korean if is_one else self.spoken(noun.general)
        return Phrase(words, join(before_noun, name), noun.english)

    def other_noun(self, groups: Sequence[str], subject: Subject) -> Noun:
        """A noun that does not name the subject once more."""
        noun = self.noun(groups)
        while is_same_person(subject, noun):
            noun = self.noun(groups)
        return noun

    def company(self, subject: Subject) -> Phrase:
        """Somebody to do it with."""
        other = self.pick([other for other in lex.RELATIVES if other != subject])
        return Phrase("with " + other.english, attach(self.spoken(other.korean), "과/와"))

    def extras(self, verb: Verb, subject: Subject, has_object_person: bool) -> tuple[Phrase, Phrase]:
        """A place and a tool or companion, either of them often empty."""
        place = tool = Phrase()
        if verb.places and self.chance(0.4):
            where = lex.PLACES[self.pick(verb.places)]
            place = Phrase(where.at, where.korean + "에서")
        if verb.tools and self.chance(0.5):
            name = self.pick(verb.tools)
            tool = Phrase("with " + name, attach(lex.TOOLS[name], "으로/로"))
        elif verb.english in lex.COMPANY_VERBS and not (has_object_person or subject.is_animal) and self.chance(0.2):
            tool = self.company(subject)
        return place, tool

    def act(self, verb: Verb, subject: Subject, with_extras: bool = True, general: bool = False) -> Action:
        """The verb with the complements it takes."""
        thing, has_object_person = Phrase(), False
        if verb.objects:
            noun = self.other_noun(verb.objects, subject)
            has_object_person = noun.group in lex.PERSONS_GROUPS
            thing = self.object_phrase(noun, subject, general or verb.english in lex.GENERAL_VERBS)
        place, tool = self.extras(verb, subject, has_object_person) if with_extras else (Phrase(), Phrase())
        return Action(
            join(verb.english, thing.english, tool.english, place.english),
            join(place.korean, tool.korean, attach(thing.korean, verb.particle) if thing.korean else ""),
            verb.korean,
            join(verb.english, thing.head),
            verb.is_state,
        )

    def motion(self, with_extras: bool = True) -> Action:
        """Going or coming to a place."""
        verb, name = self.pick(lex.MOTIONS), self.pick(lex.PLACE_NAMES)
        place, ride = lex.PLACES[name], Phrase()
        if with_extras and name not in lex.NEAR_PLACES and self.chance(0.3):
            words, vehicle = self.pick(lex.RIDES if name in lex.FAR_PLACES else lex.RIDES[:-1])
            ride = Phrase(words, attach(vehicle, "으로/로"))
        words, complements = join(verb.english, place.to, ride.english), join(ride.korean, place.korean + "에")
        return Action(words, complements, verb.korean, f"{verb.english} {name}")

    def giving(self, subject: Subject, general: bool = False) -> Action:
        """Giving something to somebody."""
        verb = self.pick(lex.GIVING)
        thing = self.object_phrase(self.noun(verb.objects), subject, general)
        receiver = self.pick([other for other in lex.SUBJECTS + lex.RELATIVES if other != subject])
        words = join(verb.english, thing.english, "to", receiver.object_form or receiver.english)
        complements = join(attach(self.spoken(receiver.korean), "에게"), attach(thing.korean, "을/를"))
        return Action(words, complements, verb.korean, f"{verb.english} {thing.head}")

    def action(self, subject: Subject, with_extras: bool = True, general: bool = False) -> Action:
        """Anything that a person does."""
        kind = self.pick(ACTION_KINDS)
        if kind == "motion":
            return self.motion(with_extras)
        if kind == "giving":
            return self.giving(subject, general)
        verb = self.pick(lex.VERBS if kind == "transitive" else lex.INTRANSITIVES)
        return self.act(verb, subject, with_extras, general)
