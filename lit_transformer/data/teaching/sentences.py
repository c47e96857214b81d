"""All constructions of the teaching corpus: what people do, joined clauses, and questions for a word."""

from __future__ import annotations

from collections.abc import Callable

from lit_transformer.data.teaching import english, korean
from lit_transformer.data.teaching import lexicon as lex
from lit_transformer.data.teaching.clauses import (
    Moment,
    Sentence,
    key_of,
    needs_time_to_tell,
)
from lit_transformer.data.teaching.korean import Tense, attach
from lit_transformer.data.teaching.phrases import Action, Phrase, join
from lit_transformer.data.teaching.states import StateWriter
from lit_transformer.data.teaching.words import Place, Subject

REASONS_AGAINST = tuple(mood for mood in lex.MOODS if mood[0] in ("busy", "tired", "sick"))
HUNGRY = ("hungry", "배고프다")


class SentenceWriter(StateWriter):
    """Writes sentences in both languages, one method for each construction."""

    def sentence(self) -> Sentence:
        """A sentence of any construction, the richer ones more often."""
        return self.pick(CONSTRUCTIONS)(self)

    def deed(self) -> Sentence:
        """*I want to drink tea at home*."""
        subject = self.subject()
        action = self.action(subject)
        return self.write(subject, action, self.moment(subject, action))

    def animal_deed(self) -> Sentence:
        """*The small cat is sleeping*."""
        animal = self.creature()
        action = self.act(self.pick(lex.ANIMAL_VERBS), animal)
        moment = self.moment(animal, action)
        while moment.mode == "must":  # animals have no duties
            moment = self.moment(animal, action)
        return self.write(animal, action, moment)

    def fondness(self) -> Sentence:
        """*She loves to swim at the beach*."""
        subject = self.subject()
        action = self.deed_without_extras(subject, general=True)
        feeling, predicate = self.pick((("love", "좋아하다"), ("hate", "싫어하다")))
        liked = join(action.complements, attach(korean.doing(action.predicate), "을/를"))
        whole = Action(f"{feeling} to {action.english}", liked, predicate, f"{feeling} to {action.key}", is_state=True)
        return self.write(subject, whole, self.moment(subject, whole))

    def two_deeds(self) -> Sentence:
        """*I love cats but he loves dogs*."""
        one = self.subject()
        two = self.pick([other for other in lex.SUBJECTS + lex.RELATIVES if other.english != one.english])
        verb, is_contrast = self.pick(lex.TRANSITIVES), self.chance(0.6)
        first, second = self.act(verb, one, False), self.act(verb, two, False)
        if not is_contrast:
            second = self.act(self.pick(lex.VERBS), two, False)
        if first.key == second.key:
            return self.two_deeds()
        tense = self.shared_tense(first, second)
        word, ending = self.pick((("and", "고"), ("but", "지만"))) if is_contrast else ("and", "고")
        moment = Moment("simple", tense)
        words = join(
            self.english_clause(one, first.english, moment), word, self.english_clause(two, second.english, moment)
        )
        text = join(
            join(self.topic(one), first.complements, korean.link(first.predicate, ending, tense)),
            join(self.topic(two), second.complements, korean.conjugate(second.predicate, tense, self.style)),
        )
        return self.close(words, text, key_of(one, first, moment), key_of(two, second, moment))

    def shared_tense(self, *actions: Action) -> Tense:
        """Present or past; present if an English verb would not show its past."""
        tense: Tense = "past" if self.chance(0.5) else "present"
        return "present" if any(needs_time_to_tell(action, tense) for action in actions) else tense

    def sequence(self) -> Sentence:
        """*She opened the door and read books*: the first verb leaves the tense to the second."""
        subject = self.subject()
        first, second = self.act(self.pick(lex.VERBS), subject, False), self.act(self.pick(lex.VERBS), subject, False)
        if first.predicate == second.predicate or first.is_state or second.is_state:
            return self.sequence()
        tense = self.shared_tense(first, second)
        moment = Moment("simple", tense)
        verb, _, rest = second.english.partition(" ")
        again = join(english.inflect(verb, subject.agreement, tense), rest)
        words = join(self.english_clause(subject, first.english, moment), "and", again)
        text = join(self.topic(subject), first.complements, korean.link(first.predicate, "고"), second.complements)
        end = korean.conjugate(second.predicate, tense, self.style)
        return self.close(words, join(text, end), key_of(subject, first, moment), key_of(subject, second, moment))

    def reason(self) -> Sentence:
        """*I cannot swim because I am sick*."""
        subject = self.pick(lex.SUBJECTS)
        if self.chance(0.25):
            action, mood, moment = self.act(self.pick(lex.EAT), subject), HUNGRY, Moment("simple", "past")
        else:
            action, mood = self.deed_without_extras(subject), self.pick(REASONS_AGAINST)
            moment = Moment("can", "past" if self.chance(0.5) else "present", negative=True)
        why = english.clause(subject.english, subject.agreement, f"be {mood[0]}", moment.tense)
        words = join(self.english_clause(subject, action.english, moment), "because", why)
        predicate = korean.in_mode(action.predicate, moment.mode, moment.negative)
        end = korean.conjugate(predicate, moment.tense, self.style)
        text = join(self.topic(subject), korean.because(mood[1]), action.complements, end)
        return self.close(words, text, key_of(subject, action, moment))

    def deed_without_extras(self, subject: Subject, general: bool = False) -> Action:
        """An action that one can start and stop, with its object or goal only."""
        action = self.action(subject, False, general)
        while action.is_state:
            action = self.action(subject, False, general)
        return action

    def ask(self, word: str, subject: Subject, action: Action, moment: Moment) -> Sentence:
        """A question that begins with a question word; the Korean one stands in the complements."""
        words = f"{word} " + self.english_clause(subject, action.english, moment._replace(question=True))
        predicate = korean.in_mode(action.predicate, moment.mode, of_others=subject.third_person)
        end = korean.conjugate(predicate, moment.tense, self.style)
        text = join(self.topic(subject), moment.time.korean, action.complements, end)
        return self.close(words, text, key_of(subject, action, moment), question=True)

    def open_moment(self, action: Action) -> Moment:
        """A mode and tense with a time that suits them."""
        mode, tense = self.form(action.english, action.is_state)
        has_time = not action.is_state and self.chance(0.3)
        return Moment(mode, tense, time=self.time(mode, tense) if has_time else Phrase())

    def asker(self) -> Subject:
        """Somebody one asks about."""
        return self.pick(lex.SUBJECTS[1:4] + lex.SUBJECTS[5:]) if self.chance(0.6) else self.pick(lex.PEOPLE)

    def ask_object(self) -> Sentence:
        """*What did you buy at the market?*, *who does she love?*."""
        subject = self.asker()
        verb = self.pick(lex.VERBS)
        while verb.english in lex.UNCLEAR_WITHOUT_OBJECT:
            verb = self.pick(lex.VERBS)
        is_person = verb.objects[0] in lex.PERSONS_GROUPS
        place = lex.PLACES[self.pick(verb.places)] if verb.places and self.chance(0.3) else Place("", "", "")
        thing = attach("누구" if is_person else "무엇", verb.particle)
        complements = join(place.korean + "에서" if place.korean else "", thing)
        action = Action(join(verb.english, place.at), complements, verb.korean, verb.english, verb.is_state)
        return self.ask("who" if is_person else "what", subject, action, self.open_moment(action))

    def ask_subject(self) -> Sentence:
        """*Who ate the apples?*."""
        who = Subject("who", "누구")
        action = self.action(who)
        moment = self.moment(who, action)._replace(question=False, negative=False)
        words = self.english_clause(who, action.english, moment)
        predicate = korean.in_mode(action.predicate, moment.mode, of_others=True)
        end = korean.conjugate(predicate, moment.tense, self.style)
        text = join("누가", moment.time.korean, moment.adverb.korean, action.complements, end)
        return self.close(words, text, key_of(who, action, moment), question=True)

    def ask_circumstance(self) -> Sentence:
        """*Where*, *when* or *why* somebody does something."""
        subject = self.asker()
        action = self.deed_without_extras(subject)
        word, korean_word = self.pick(lex.CIRCUMSTANCES)
        while word == "where" and action.english.split()[0] in ("go", "come", "give", "send", "show", "lend", "visit"):
            action = self.deed_without_extras(subject)
        moment = self.open_moment(action)
        if word == "when":
            moment = moment._replace(time=Phrase())
        complements = join(korean_word, action.complements)
        return self.ask(word, subject, action._replace(complements=complements), moment)

    def ask_goal(self) -> Sentence:
        """*Where did she go yesterday?*, *how will you come to the park?*."""
        subject, action = self.asker(), self.motion(with_extras=False)
        moment = self.open_moment(action)
        if self.chance(0.5):
            return self.ask("where", subject, Action("go", "어디에", "가다", "go"), moment)
        return self.ask("how", subject, action._replace(complements="어떻게 " + action.complements), moment)

    def ask_amount(self) -> Sentence:
        """*How many apples did you eat?*."""
        subject = self.asker()
        verb = self.pick(lex.COUNTING_VERBS)
        noun = self.other_noun(lex.countable(verb), subject)
        amount = join(attach(noun.korean, "을/를"), "몇 " + noun.counter)
        action = Action(verb.english, amount, verb.korean, f"{verb.english} {noun.english}")
        unit = f"{english.plural(noun.measure)} of {noun.english}" if noun.measure else noun.english
        return self.ask(f"how many {unit}", subject, action, self.open_moment(action))


CONSTRUCTIONS: tuple[Callable[[SentenceWriter], Sentence], ...] = (
    *((SentenceWriter.deed,) * 48),
    *((SentenceWriter.description,) * 8),
    *((SentenceWriter.two_deeds, SentenceWriter.animal_deed, SentenceWriter.job) * 4),
    *((SentenceWriter.comparison, SentenceWriter.existence, SentenceWriter.whereabouts, SentenceWriter.possession) * 4),
    *((SentenceWriter.fondness, SentenceWriter.sequence, SentenceWriter.reason) * 3),
    *((SentenceWriter.ask_object, SentenceWriter.ask_circumstance, SentenceWriter.ask_amount) * 3),
    *((SentenceWriter.ask_subject, SentenceWriter.ask_goal, SentenceWriter.naming) * 2),
    SentenceWriter.weather,
)
