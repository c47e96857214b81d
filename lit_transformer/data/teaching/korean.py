"""Korean particles and verb endings as rules over the syllable block.

A Korean syllable is one Unicode character made of a lead consonant, a vowel and an optional final consonant,
in the order of the dictionary: ``code = 0xAC00 + (lead * 21 + vowel) * 28 + final``. What a particle or an ending
looks like depends on these parts only, plus a few short lists of irregular stems.

Verbs and adjectives go by their dictionary form, which ends in 다; a *predicate* may have words before it, as in
``학교에 가다``. Every construction below turns a predicate into a longer one, so they compose:
``conjugate(negate(want("먹다")), "past")`` is 먹고 싶지 않았어.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

Style = Literal["plain", "polite"]
Tense = Literal["present", "past", "future"]
Mode = Literal["simple", "progressive", "can", "want", "must"]

FIRST_SYLLABLE, LAST_SYLLABLE = 0xAC00, 0xD7A3
LEADS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
FINALS = ("", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ")

# Stems whose last consonant changes before a vowel. Spelling does not show it: 듣다 changes, 닫다 does not.
IRREGULAR_STEMS = {
    "ㅂ": frozenset(["귀엽", "춥", "덥", "돕", "맵", "쉽", "어렵", "무겁", "가볍", "가깝", "아름답"]),
    "ㄷ": frozenset(["듣", "걷"]),
    "ㅅ": frozenset(["짓"]),
    "ㅎ": frozenset(["빨갛", "파랗", "노랗", "하얗", "까맣"]),
    "르": frozenset(["부르", "고르", "자르", "모르", "빠르", "게으르"]),
}
# How the last vowel of a stem melts together with the 아 or 어 that follows it.
CONTRACTIONS = {
    "ㅏ": "ㅏ",
    "ㅓ": "ㅓ",
    "ㅐ": "ㅐ",
    "ㅔ": "ㅔ",
    "ㅕ": "ㅕ",
    "ㅗ": "ㅘ",
    "ㅜ": "ㅝ",
    "ㅣ": "ㅕ",
    "ㅚ": "ㅙ",
}
BEFORE_GA = {"나": "내", "저": "제", "너": "네"}  # pronouns that change before 가


def split_syllable(syllable: str) -> tuple[str, str, str]:
    """Takes one syllable apart into lead consonant, vowel and final consonant (empty if there is none).

    Raises:
        ValueError: If ``syllable`` is not one precomposed Korean syllable.

    Example:
        >>> split_syllable("한")
        ('ㅎ', 'ㅏ', 'ㄴ')
    """
    if len(syllable) != 1 or not FIRST_SYLLABLE <= ord(syllable) <= LAST_SYLLABLE:
        raise ValueError(f"syllable must be one precomposed Korean syllable such as 한, got {syllable!r}")
    lead, rest = divmod(ord(syllable) - FIRST_SYLLABLE, len(VOWELS) * len(FINALS))  # 21 * 28 = 588
    vowel, final = divmod(rest, len(FINALS))
    return LEADS[lead], VOWELS[vowel], FINALS[final]


def join_syllable(lead: str, vowel: str, final: str = "") -> str:
    """Puts a syllable together, the inverse of ``split_syllable``.

    Example:
        >>> join_syllable("ㅎ", "ㅏ", "ㄴ")
        '한'
    """
    number = (LEADS.index(lead) * len(VOWELS) + VOWELS.index(vowel)) * len(FINALS) + FINALS.index(final)
    return chr(FIRST_SYLLABLE + number)


def final_consonant(word: str) -> str:
    """The consonant that closes the last syllable of ``word``, empty if it ends in a vowel."""
    return split_syllable(word[-1])[2]


def with_final(word: str, final: str) -> str:
    """``word`` with the final consonant of its last syllable replaced (removed if ``final`` is empty)."""
    lead, vowel, _ = split_syllable(word[-1])
    return word[:-1] + join_syllable(lead, vowel, final)


@cache
def attach(noun: str, particle: str) -> str:
    """Adds the particle whose form the noun's last sound selects.

    Args:
        noun: A noun or noun phrase that ends in a Korean syllable.
        particle: Both forms as grammar books write them, the one after a consonant first: ``은/는``, ``이/가``,
            ``을/를``, ``과/와``, ``으로/로``. A particle with a single form, such as ``에서``, is added as it is.

    Returns:
        The noun with the particle. ``으로/로`` counts a final ㄹ as a vowel; 나, 저 and 너 change before 가.

    Example:
        >>> attach("책", "을/를"), attach("고양이", "을/를"), attach("지하철", "으로/로")
        ('책을', '고양이를', '지하철로')
    """
    if "/" not in particle:
        return noun + particle
    after_consonant, after_vowel = particle.split("/")
    final = final_consonant(noun)
    if final == "" or (final == "ㄹ" and after_vowel == "로"):
        return (BEFORE_GA.get(noun, noun) if after_vowel == "가" else noun) + after_vowel
    return noun + after_consonant


def irregular(stem: str) -> str:
    """The irregular class of a stem (``ㅂ``, ``ㄷ``, ``ㅅ``, ``ㅎ`` or ``르``), empty if it is regular."""
    word = stem.split()[-1]
    return next((name for name, stems in IRREGULAR_STEMS.items() if word in stems), "")


@cache
def connect(predicate: str) -> str:
    """The form in 아 or 어, on which the present, the past and many other endings build.

    Bright stem vowels (ㅏ, ㅗ) take 아, the others 어; an open stem melts together with it.

    Example:
        >>> [connect(word) for word in ("먹다", "가다", "마시다", "공부하다", "귀엽다", "듣다", "바쁘다", "빠르다")]
        ['먹어', '가', '마셔', '공부해', '귀여워', '들어', '바빠', '빨라']
    """
    stem = predicate[:-1]
    lead, vowel, final = split_syllable(stem[-1])
    kind = irregular(stem)
    if stem.endswith("하"):
        return stem[:-1] + "해"
    if kind == "르":  # 부르 + 어 -> 불러: the 르 gives a ㄹ to each side
        return with_final(stem[:-1], "ㄹ") + ("라" if is_bright(stem[:-1]) else "러")
    if kind == "ㅂ":  # 춥 + 어 -> 추워, but 돕 + 아 -> 도와
        return with_final(stem, "") + ("와" if stem.endswith("돕") else "워")
    if kind == "ㄷ":  # 듣 + 어 -> 들어
        return with_final(stem, "ㄹ") + ("아" if is_bright(stem) else "어")
    if kind == "ㅅ":  # 짓 + 어 -> 지어: the gap that ㅅ leaves stays open
        return with_final(stem, "") + ("아" if is_bright(stem) else "어")
    if kind == "ㅎ":  # 빨갛 + 아 -> 빨개, 하얗 + 아 -> 하얘
        return stem[:-1] + join_syllable(lead, "ㅒ" if vowel == "ㅑ" else "ㅐ")
    if vowel == "ㅡ" and final == "":  # 바쁘 + 아 -> 바빠: the syllable before decides
        return stem[:-1] + join_syllable(lead, "ㅏ" if is_bright(stem[:-1]) else "ㅓ")
    if final == "" and vowel in CONTRACTIONS and not stem.endswith("아니"):
        return stem[:-1] + join_syllable(lead, CONTRACTIONS[vowel])
    return stem + ("아" if is_bright(stem) else "어")


def is_bright(stem: str) -> bool:
    """Whether the last vowel of a stem is one of those that take 아 rather than 어."""
    return bool(stem.strip()) and stem[-1] != " " and split_syllable(stem[-1])[1] in "ㅏㅑㅗ"


@cache
def modify(predicate: str, consonant: Literal["ㄴ", "ㄹ"]) -> str:
    """The form that stands before a noun: ``ㄴ`` for qualities that hold, ``ㄹ`` for what is to come.

    Example:
        >>> modify("귀엽다", "ㄴ"), modify("작다", "ㄴ"), modify("길다", "ㄴ"), modify("듣다", "ㄹ")
        ('귀여운', '작은', '긴', '들을')
    """
    stem = predicate[:-1]
    kind, final = irregular(stem), final_consonant(stem)
    if kind == "ㅂ":  # 춥 -> 추우 -> 추운
        return with_final(stem, "") + with_final("우", consonant)
    if kind == "ㄷ":  # 듣 -> 들을
        return with_final(stem, "ㄹ") + with_final("으", consonant)
    if kind == "ㅅ":  # 짓 -> 지을
        return with_final(stem, "") + with_final("으", consonant)
    if kind == "ㅎ" or final in ("", "ㄹ"):  # 빨갛 -> 빨간, 가 -> 갈, 길 -> 긴
        return with_final(stem, consonant)
    return stem + with_final("으", consonant)


def modify_noun(predicate: str) -> str:
    """An adjective as it stands before its noun; those built on 있다 take 는.

    Example:
        >>> modify_noun("크다"), modify_noun("재미있다"), modify_noun("빨갛다")
        ('큰', '재미있는', '빨간')
    """
    return predicate[:-1] + "는" if predicate.endswith("있다") else modify(predicate, "ㄴ")


@cache
def conjugate(predicate: str, tense: Tense = "present", style: Style = "plain") -> str:
    """The form that closes a sentence.

    Args:
        predicate: Verb or adjective in its dictionary form, perhaps with words before it.
        tense: ``present``, ``past`` or ``future`` (what somebody will do, or what one expects).
        style: ``plain`` among friends (해), ``polite`` otherwise (해요).

    Returns:
        The conjugated predicate without punctuation; a question differs by its mark only.

    Example:
        >>> [conjugate("마시다", tense) for tense in ("present", "past", "future")]
        ['마셔', '마셨어', '마실 거야']
    """
    polite = style == "polite"
    if tense == "future":
        return modify(predicate, "ㄹ") + (" 거예요" if polite else " 거야")
    if tense == "past":
        return with_final(connect(predicate), "ㅆ") + ("어요" if polite else "어")
    if predicate.endswith("아니다"):
        return predicate[:-1] + ("에요" if polite else "야")
    return connect(predicate) + ("요" if polite else "")


def be(noun: str, tense: Tense = "present", style: Style = "plain", negative: bool = False) -> str:
    """The noun as a predicate: *is a doctor*. What somebody will be is said with 되다, *become*.

    Example:
        >>> be("의사"), be("학생"), be("학생", style="polite"), be("의사", "past"), be("학생", negative=True)
        ('의사야', '학생이야', '학생이에요', '의사였어', '학생이 아니야')
    """
    if tense == "future":
        become = attach(noun, "이/가") + " 되다"
        return conjugate(negate(become) if negative else become, "future", style)
    if negative:
        return conjugate(attach(noun, "이/가") + " 아니다", tense, style)
    if tense == "past":
        return attach(noun, "이었/였") + ("어요" if style == "polite" else "어")
    return attach(noun, "이에요/예요" if style == "polite" else "이야/야")


def negate(predicate: str) -> str:
    """*Not* to do it: -지 않다, except for the verbs that have an opposite of their own.

    Example:
        >>> negate("먹다"), negate("알다"), negate("공원에 있다"), negate("먹고 있다")
        ('먹지 않다', '모르다', '공원에 없다', '먹고 있지 않다')
    """
    words = predicate.split()
    is_progressive = len(words) > 1 and words[-2].endswith("고")
    if words[-1] in ("있다", "알다") and not is_progressive:
        return predicate[:-2] + {"있다": "없다", "알다": "모르다"}[words[-1]]
    return predicate[:-1] + "지 않다"


def progress(predicate: str) -> str:
    """To *be doing* it: -고 있다."""
    return predicate[:-1] + "고 있다"


def can(predicate: str) -> str:
    """To be *able* to do it: -ㄹ 수 있다."""
    return modify(predicate, "ㄹ") + " 수 있다"


def want(predicate: str, of_others: bool = False) -> str:
    """To *want* to do it: -고 싶다; the wish of a third person only shows, -고 싶어 하다."""
    return predicate[:-1] + ("고 싶어 하다" if of_others else "고 싶다")


def must(predicate: str, negative: bool = False) -> str:
    """To *have to* do it, -아야 하다, or *not to have to*, -지 않아도 되다."""
    return predicate[:-1] + "지 않아도 되다" if negative else connect(predicate) + "야 하다"


@cache
def in_mode(predicate: str, mode: Mode, negative: bool = False, of_others: bool = False) -> str:
    """The predicate as something that one does, is doing, can, wants to or has to do, or not.

    Example:
        >>> in_mode("먹다", "can", negative=True), in_mode("먹다", "must", negative=True)
        ('먹을 수 없다', '먹지 않아도 되다')
    """
    if mode == "must":
        return must(predicate, negative)
    if mode == "want":
        predicate = want(predicate, of_others)
    elif mode != "simple":
        predicate = can(predicate) if mode == "can" else progress(predicate)
    return negate(predicate) if negative else predicate


def link(predicate: str, ending: str, tense: Tense = "present") -> str:
    """The predicate before another clause: ``고`` for *and*, ``지만`` for *but*."""
    return (with_final(connect(predicate), "ㅆ") if tense == "past" else predicate[:-1]) + ending


def because(predicate: str) -> str:
    """The predicate as a reason for what follows: 아파서, *because one is sick*."""
    return connect(predicate) + "서"


def doing(predicate: str) -> str:
    """*Doing* it as a thing one can love or hate: -는 것."""
    stem = predicate[:-1]
    return (with_final(stem, "") if final_consonant(stem) == "ㄹ" else stem) + "는 것"
