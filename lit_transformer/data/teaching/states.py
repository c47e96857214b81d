"""Sentences on how things are: descriptions, comparisons, jobs, places, possessions, the weather."""

from __future__ import annotations

from lit_transformer.data.teaching import english, korean
from lit_transformer.data.teaching import lexicon as lex
from lit_transformer.data.teaching.clauses import ClauseWriter, Moment, Sentence
from lit_transformer.data.teaching.korean import Tense, attach
from lit_transformer.data.teaching.phrases import Action, Phrase, join
from lit_transformer.data.teaching.words import Subject


class StateWriter(ClauseWriter):
    """Writes sentences on how things are, one method for each construction."""

    def description(self) -> Sentence:
        """*This book is very interesting*, *the park was quiet*."""
        kind = self.pick(("thing", "thing", "thing", "place", "animal", "person", "mood", "mood"))
        if kind == "animal":
            subject, (word, predicate) = self.creature(), self.pick(lex.QUALITIES["animal"])
            if word in subject.english.split():
                subject = Subject("the cat", "고양이")
        elif kind in ("person", "mood"):
            subject, (word, predicate) = (
                self.subject(),
                self.pick(lex.MOODS if kind == "mood" else lex.QUALITIES["person"]),
            )
        elif kind == "place":
            subject, (word, predicate) = self.pick(lex.SIGHTS), self.pick(lex.QUALITIES["place"])
        else:
            noun = self.noun(lex.DESCRIBABLE)
            phrase, (word, predicate) = self.pointed_at(noun), self.pick(lex.qualities(noun))
            subject = Subject(phrase.english, phrase.korean)
        return self.describe(subject, word, predicate, is_mood=kind == "mood")

    def describe(self, subject: Subject, word: str, predicate: str, is_mood: bool) -> Sentence:
        """Says an adjective of a subject."""
        tense: Tense = self.pick(("present", "present", "past"))
        negative, question = self.pick(((False, False), (False, False), (True, False), (False, True)))
        question = question and subject.english not in ("I", "we")
        degree = ("", "") if negative or self.chance(0.6) else self.pick(lex.DEGREES)
        time = Phrase()
        if is_mood and self.chance(0.4):
            time = Phrase(*(lex.TODAY if tense == "present" else self.pick(lex.TIMES["past"])))
        action = Action(join("be", degree[0], word), degree[1], predicate, f"be {word}")
        return self.write(subject, action, Moment("simple", tense, negative, question, time))

    def comparison(self) -> Sentence:
        """*My car is faster than this car*, *he is taller than me*."""
        if self.chance(0.4):
            subject = self.subject()
            other = self.pick([o for o in lex.SUBJECTS + lex.RELATIVES if o != subject])
            than, standard, group = other.object_form or other.english, other.korean, "person"
        elif self.chance(0.4):
            one, two = self.noun(lex.ANIMALS), self.noun(lex.ANIMALS)
            subject = Subject("the " + one.singular, one.korean)
            than, standard, group = "the " + two.singular, two.korean, "animal"
        else:
            noun = self.noun(lex.DESCRIBABLE)
            one_phrase, two_phrase = self.pointed_at(noun), self.pointed_at(noun)
            subject, group = Subject(one_phrase.english, one_phrase.korean), lex.QUALITY_OF[noun.group]
            than, standard = two_phrase.english, two_phrase.korean
        if than == subject.english or {subject.korean, standard} == {"나", "우리"}:
            return self.comparison()
        word, predicate = self.pick([row for row in lex.QUALITIES[group] if row[0] not in lex.COLOURS])
        rest, _, adjective = predicate.rpartition(" ")
        complements = join(self.spoken(standard) + "보다", rest, "더")
        action = Action(f"be {english.comparative(word)} than {than}", complements, adjective, f"be {word} than {than}")
        tense: Tense = "past" if self.chance(0.25) else "present"
        question = self.chance(0.2) and subject.english not in ("I", "we")
        return self.write(subject, action, Moment("simple", tense, self.chance(0.15) and not question, question))

    def job(self) -> Sentence:
        """*My dad is a doctor*, *she will be a famous singer*."""
        subject = self.pick([*lex.SUBJECTS, *lex.RELATIVES, *lex.PERSONS[:4]])
        word, noun = self.pick(lex.JOBS)
        quality = self.pick(lex.QUALITIES["person"]) if self.chance(0.3) else ("", "")
        before_noun = korean.modify_noun(quality[1]) if quality[1] else ""
        tense: Tense = self.pick(("present", "present", "past", "future"))
        negative, question = self.pick(((False, False), (False, False), (True, False), (False, True)))
        question = question and subject.english not in ("I", "we")
        is_many = subject.english in ("we", "they")
        thing = join(quality[0], english.plural(word)) if is_many else english.with_article(join(quality[0], word))
        words = self.english_clause(subject, "be " + thing, Moment("simple", tense, negative, question))
        text = join(self.topic(subject), before_noun, korean.be(noun, tense, self.style, negative))
        return self.close(words, text, f"{subject.english} be {word} {tense}", question=question)

    def naming(self) -> Sentence:
        """*This is my bag*, *that is not a tiger*."""
        noun = self.noun(lex.NAMEABLE)
        pointer, topic = self.pick((("this", "이것은"), ("that", "저것은")))
        owner = self.pick(lex.POSSESSIVES) if self.chance(0.5) else ("", "")
        tense: Tense = self.pick(("present", "present", "past"))
        negative, question = self.pick(((False, False), (False, False), (True, False), (False, True)))
        thing = f"{owner[0]} {noun.singular}" if owner[0] else english.with_article(noun.singular)
        subject = Subject(pointer, "")
        words = self.english_clause(subject, "be " + thing, Moment("simple", tense, negative, question))
        text = join(topic, self.spoken(owner[1]), korean.be(noun.korean, tense, self.style, negative))
        return self.close(words, text, f"{pointer} be {owner[0]} {noun.singular} {tense}", question=question)

    def location(self, group: str) -> Phrase:
        """*in the park* or *under the table*, with the particle of being there."""
        if self.chance(0.5) or group in ("farm", "wild"):
            place = self.pick(lex.OUTDOORS if group in lex.ANIMALS else lex.INDOORS)
            return Phrase(place.at, place.korean + "에")
        preposition, side = self.pick(lex.POSITIONS)
        landmark, korean_landmark = self.pick(lex.SURFACES if preposition == "on" else lex.LANDMARKS)
        return Phrase(f"{preposition} {landmark}", f"{korean_landmark} {side}에")

    def existence(self) -> Sentence:
        """*There are two dogs in the park*, *there is no pen on the table*."""
        noun = self.noun(lex.PLACEABLE)
        where = self.location(noun.group)
        counted = self.chance(0.5)
        thing = self.counted(noun) if counted else Phrase(english.with_article(noun.singular), noun.korean)
        negative = not counted and self.chance(0.35)
        question = not negative and self.chance(0.25)
        tense: Tense = "past" if self.chance(0.35) else "present"
        number: english.Agreement = "plural" if counted and not thing.english.startswith("one ") else "singular"
        name = f"no {noun.singular}" if negative else thing.english
        words = english.clause("there", number, f"be {name} {where.english}", tense, question=question)
        end = korean.conjugate("없다" if negative else "있다", tense, self.style)
        text = join(where.korean, attach(thing.korean, "이/가"), end)
        return self.close(words, text, f"there {noun.singular} {where.english} {tense}", question=question)

    def whereabouts(self) -> Sentence:
        """*My phone is under the chair*, *where is the cat?*."""
        noun = self.noun(lex.PLACEABLE)
        where = self.location(noun.group)
        thing = self.pointed_at(noun)
        subject = Subject(thing.english, thing.korean)
        if noun.group in lex.ANIMALS and self.chance(0.6):
            subject, where = self.creature(), self.location("wild")
        elif self.chance(0.3):
            subject = self.pick(lex.SUBJECTS[1:] + lex.RELATIVES)
            place = self.pick(lex.INDOORS)
            where = Phrase(place.at, place.korean + "에")
        tense: Tense = "past" if self.chance(0.35) else "present"
        if self.chance(0.15):
            words = "where " + english.clause(subject.english, subject.agreement, "be", tense, question=True)
            text = join(self.topic(subject), "어디에", korean.conjugate("있다", tense, self.style))
            return self.close(words, text, f"where {subject.english} {tense}", question=True)
        negative, question = self.pick(((False, False), (False, False), (True, False), (False, True)))
        action = Action("be " + where.english, where.korean, "있다", "be " + where.english)
        return self.write(subject, action, Moment("simple", tense, negative, question))

    def possession(self) -> Sentence:
        """*I have two cats*, *does she have a car?*."""
        subject, noun = self.subject(), self.noun((*lex.PLACEABLE, "car", "bicycle", "house"))
        counted = self.chance(0.5)
        tense: Tense = "past" if self.chance(0.3) else "present"
        negative, question = self.pick(((False, False), (False, False), (True, False), (False, True)))
        question = question and subject.english not in ("I", "we")
        if counted:  # 고양이가 두 마리 있다: the number stands by itself
            thing = self.counted(noun)
            amount = thing.korean[len(noun.korean) :].strip()
            action = Action(
                "have " + thing.english, join(attach(noun.korean, "이/가"), amount), "있다", f"have {noun.english}"
            )
            negative = False
        else:
            words = "have " + english.with_article(noun.singular)
            action = Action(words, attach(noun.korean, "이/가"), "있다", f"have {noun.english}")
        return self.write(subject, action, Moment("simple", tense, negative, question))

    def weather(self) -> Sentence:
        """*It was cold yesterday*, *it is very hot in Seoul*."""
        word, predicate = self.pick(lex.WEATHER)
        degree = ("", "") if self.chance(0.5) else self.pick(lex.DEGREES)
        question = self.chance(0.2)
        tense: Tense = self.pick(("present", "past", "future"))
        if tense == "present" or self.chance(0.5):
            place = self.pick([lex.PLACES[name] for name in lex.WEATHER_PLACES])
            where, topic = place.at, attach(place.korean, "은/는")
        else:
            where, time = self.pick(lex.DAYS[tense])
            topic = attach(time, "은/는")
        words = english.clause("it", "singular", join("be", degree[0], word, where), tense, question=question)
        text = join(topic, degree[1], korean.conjugate(predicate, tense, self.style))
        return self.close(words, text, f"it {word} {degree[0]} {where} {tense}", question=question)
