"""English word forms and clauses for the teaching corpus: agreement, irregular verbs, do-support.

The few irregular words are those of the lexicon; everything else follows the spelling rules.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

from lit_transformer.data.teaching.korean import Tense

Agreement = Literal["I", "singular", "plural"]
Aspect = Literal["simple", "progressive", "can"]

IRREGULAR_VERBS = (
    "eat/ate drink/drank read/read write/wrote see/saw buy/bought sell/sold make/made meet/met know/knew "
    "teach/taught wear/wore draw/drew take/took ride/rode drive/drove build/built cut/cut choose/chose sing/sang "
    "catch/caught throw/threw sleep/slept swim/swam run/ran go/went come/came give/gave send/sent lend/lent "
    "have/had do/did"
)
PAST_FORMS: dict[str, str] = dict(pair.split("/") for pair in IRREGULAR_VERBS.split())
PLURALS = {"child": "children", "mouse": "mice", "fish": "fish"}
ENDS_IN_HISS = re.compile(r"(s|x|z|ch|sh)$")
ENDS_IN_CONSONANT_Y = re.compile(r"[^aeiou]y$")
DOUBLES = re.compile(r"^[^aeiou]*[aeiou][bdgmnpt]$")  # run, swim, cut, big: one short closed syllable


def add_s(word: str) -> str:
    """Adds the s of the third person or of the regular plural: reads, watches, studies, goes."""
    if ENDS_IN_HISS.search(word) or word in ("go", "do"):
        return word + "es"
    return word[:-1] + "ies" if ENDS_IN_CONSONANT_Y.search(word) else word + "s"


def add_suffix(word: str, suffix: str) -> str:
    """Adds a suffix that begins with a vowel: ed, ing, er."""
    if word.endswith("e") and not word.endswith("ee"):
        return word[:-1] + suffix
    if ENDS_IN_CONSONANT_Y.search(word) and not suffix.startswith("i"):
        return word[:-1] + "i" + suffix
    return word + word[-1] + suffix if DOUBLES.search(word) else word + suffix


def plural(noun: str) -> str:
    """The plural of a noun.

    Example:
        >>> plural("cat"), plural("box"), plural("child")
        ('cats', 'boxes', 'children')
    """
    return PLURALS.get(noun) or add_s(noun)


def with_article(phrase: str) -> str:
    """The phrase with *a* or *an*, by its first letter."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def comparative(adjective: str) -> str:
    """*bigger*, *cuter*, *heavier*, *more expensive*; short adjectives and those in -y take the suffix."""
    irregular = {"good": "better", "far": "farther"}
    vowel_groups = len(re.findall(r"[aeiou]+(?!$)|y$", adjective))
    if adjective in irregular:
        return irregular[adjective]
    return add_suffix(adjective, "er") if vowel_groups == 1 or adjective.endswith("y") else "more " + adjective


def form_of_be(agreement: Agreement, tense: Tense) -> str:
    """*am*, *is*, *are*, *was* or *were*."""
    if tense == "past":
        return "were" if agreement == "plural" else "was"
    return {"I": "am", "singular": "is", "plural": "are"}[agreement]


def inflect(verb: str, agreement: Agreement, tense: Tense) -> str:
    """The verb as it stands without an auxiliary: *eats*, *eat*, *ate*."""
    if tense == "past":
        return PAST_FORMS.get(verb) or add_suffix(verb, "ed")
    if agreement == "singular":
        return "has" if verb == "have" else add_s(verb)
    return verb


@cache
def split_auxiliary(verb: str, agreement: Agreement, tense: Tense, aspect: Aspect) -> tuple[str, str]:
    """The auxiliary that negation and questions need, and the form of the verb beside it."""
    if aspect == "can":
        return ("could" if tense == "past" else "can"), verb
    if tense == "future":
        return "will", verb
    if aspect == "progressive":
        return form_of_be(agreement, tense), add_suffix(verb, "ing")
    if verb == "be":
        return form_of_be(agreement, tense), ""
    return inflect("do", agreement, tense), verb


def clause(
    subject: str,
    agreement: Agreement,
    verb_phrase: str,
    tense: Tense = "present",
    aspect: Aspect = "simple",
    negative: bool = False,
    question: bool = False,
    adverb: str = "",
) -> str:
    """One clause without capital letter and punctuation.

    Args:
        subject: The subject as it is written, such as ``the cat``.
        agreement: Which verb forms the subject takes; ``you`` counts as plural.
        verb_phrase: Everything from the verb on, the verb first and in its base form: ``eat apples in the park``.
        tense: ``present``, ``past`` or ``future``.
        aspect: ``simple``, ``progressive`` (is eating) or ``can`` (is able to).
        negative: Whether to add *not*.
        question: Whether to put the auxiliary first.
        adverb: A word before the verb, such as ``often``; empty for none.

    Returns:
        The clause.

    Example:
        >>> clause("he", "singular", "eat apples"), clause("he", "singular", "eat apples", "past", negative=True)
        ('he eats apples', 'he did not eat apples')
        >>> clause("the cat", "singular", "be small", question=True)
        'is the cat small'
    """
    verb, _, rest = verb_phrase.partition(" ")
    auxiliary, form = split_auxiliary(verb, agreement, tense, aspect)
    if auxiliary in ("do", "does", "did") and not negative and not question:
        auxiliary, form = "", inflect(verb, agreement, tense)
    if negative:
        auxiliary = "cannot" if auxiliary == "can" else auxiliary + " not"
    front = (auxiliary, subject) if question else (subject, auxiliary)
    return " ".join(part for part in (*front, adverb, form, rest) if part)


def as_sentence(text: str, question: bool = False) -> str:
    """The text with a capital letter, and a question mark if it asks; statements carry no full stop."""
    return text[0].upper() + text[1:] + ("?" if question else "")
