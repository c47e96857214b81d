"""One clause in both languages: its words, and when, how and whether it happens."""

from __future__ import annotations

from typing import NamedTuple

from lit_transformer.data.teaching import english, korean
from lit_transformer.data.teaching import lexicon as lex
from lit_transformer.data.teaching.korean import Mode, Tense
from lit_transformer.data.teaching.phrases import Action, Phrase, PhraseWriter, join
from lit_transformer.data.teaching.words import Subject

Form = tuple[Mode, Tense]

ACTION_FORMS: tuple[Form, ...] = (
    *((("simple", "present"), ("simple", "past")) * 4),
    *((("simple", "future"),) * 3),
    *((("progressive", "present"), ("can", "present"), ("want", "present"), ("must", "present")) * 2),
    *(("progressive", "past"), ("can", "past"), ("want", "past"), ("must", "past")),
)
STATE_FORMS: tuple[Form, ...] = (*((("simple", "present"),) * 3), *((("simple", "past"),) * 2))
HELPED_BY = {"want": "want to", "must": "have to"}


class Sentence(NamedTuple):
    """A sentence in both languages with the combinations of words by which it is held out."""

    english: str
    korean: str
    keys: tuple[str, ...]


class Moment(NamedTuple):
    """When, how and whether something happens: everything about a clause but its words."""

    mode: Mode = "simple"
    tense: Tense = "present"
    negative: bool = False
    question: bool = False
    time: Phrase = Phrase()
    adverb: Phrase = Phrase()


SIMPLE_PRESENT = Moment()


class ClauseWriter(PhraseWriter):
    """Writes clauses in both languages."""

    def write(self, subject: Subject, action: Action, moment: Moment = SIMPLE_PRESENT) -> Sentence:
        """One clause in both languages: what somebody does, can do, wants to do or has to do.

        Example:
            >>> ClauseWriter().write(lex.SUBJECTS[0], Action("love cats", "고양이를", "좋아하다", "love cats"))[:2]
            ('I love cats', '나는 고양이를 좋아해')
        """
        words = self.english_clause(subject, action.english, moment)
        predicate = korean.in_mode(action.predicate, moment.mode, moment.negative, subject.third_person)
        end = korean.conjugate(predicate, moment.tense, self.style)
        text = join(self.topic(subject), moment.time.korean, moment.adverb.korean, action.complements, end)
        return self.close(words, text, key_of(subject, action, moment), question=moment.question)

    def english_clause(self, subject: Subject, verb_phrase: str, moment: Moment) -> str:
        """The English side of a clause."""
        aspect: english.Aspect = moment.mode if moment.mode in ("progressive", "can") else "simple"
        return english.clause(
            subject.english,
            subject.agreement,
            join(HELPED_BY.get(moment.mode, ""), verb_phrase, moment.time.english),
            moment.tense,
            aspect,
            moment.negative,
            moment.question,
            moment.adverb.english,
        )

    def close(self, words: str, text: str, *keys: str, question: bool = False) -> Sentence:
        """Capital letter and question marks; statements carry no full stop."""
        return Sentence(english.as_sentence(words, question), text + ("?" if question else ""), keys)

    def moment(self, subject: Subject, action: Action) -> Moment:
        """A mode and tense, perhaps denied or asked, with a time that suits them."""
        mode, tense = self.form(action.english, action.is_state)
        polarity = self._random()
        negative = polarity < 0.22
        may_ask = subject.english not in ("I", "we")
        question = (may_ask and 0.22 <= polarity < 0.45) or (mode == "want" and subject.english == "you")
        negative = negative and not question
        needs_time = needs_time_to_tell(action, tense) and not (negative or question)
        time = adverb = Phrase()
        if needs_time or (not action.is_state and self.chance(0.4)):
            time = self.time(mode, tense)
        elif (mode, tense) == ("simple", "present") and not negative and not action.is_state and self.chance(0.3):
            adverb = Phrase(*self.pick(lex.FREQUENCIES))
        return Moment(mode, tense, negative, question, time, adverb)

    def form(self, verb_phrase: str, is_state: bool) -> Form:
        """A mode and tense that the verb can have; nobody *is seeing* things."""
        mode, tense = self.pick(STATE_FORMS if is_state else ACTION_FORMS)
        return ("simple", tense) if mode == "progressive" and verb_phrase.startswith("see") else (mode, tense)

    def time(self, mode: Mode, tense: Tense) -> Phrase:
        """A time that suits the verb form; empty if none does."""
        if mode == "progressive":
            return Phrase(*lex.NOW) if tense == "present" else Phrase()
        return Phrase(*self.pick(lex.PLANS if tense == "present" and mode != "simple" else lex.TIMES[tense]))

    def creature(self) -> Subject:
        """An animal as a subject: *the cat*, *the black cat* or *my cat*."""
        noun = self.noun(("pet", "farm", "wild"))
        if self.chance(0.35):
            phrase = self.pointed_at(noun)
            return Subject(phrase.english, phrase.korean, is_animal=True)
        if self.chance(0.35):
            word, before_noun = self.quality(noun)
            return Subject(f"the {word} {noun.singular}", f"{before_noun} {noun.korean}", is_animal=True)
        return Subject("the " + noun.singular, noun.korean, is_animal=True)


def needs_time_to_tell(action: Action, tense: Tense) -> bool:
    """Whether the English verb looks the same in present and past, so that only a time tells the tense."""
    return tense == "past" and action.english.split()[0] in lex.SAME_PAST


def key_of(subject: Subject, action: Action, moment: Moment) -> str:
    """The combination by which a clause is held out, whatever its place, time, negation or question."""
    return f"{subject.english} {action.key} {moment.mode} {moment.tense}"
