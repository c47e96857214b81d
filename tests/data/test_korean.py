"""Particles and endings against hand-written tables and Unicode's own decomposition."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_transformer.data.teaching import korean

SYLLABLES = st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)

# verb, present, past, future, negative present, before a noun (-ㄴ or 는; of verbs: what has been done)
CONJUGATION = """
가다      가        갔어        갈 거야       가지 않아       간
오다      와        왔어        올 거야       오지 않아       온
보다      봐        봤어        볼 거야       보지 않아       본
먹다      먹어      먹었어      먹을 거야     먹지 않아       먹은
읽다      읽어      읽었어      읽을 거야     읽지 않아       읽은
닫다      닫아      닫았어      닫을 거야     닫지 않아       닫은
입다      입어      입었어      입을 거야     입지 않아       입은
잡다      잡아      잡았어      잡을 거야     잡지 않아       잡은
웃다      웃어      웃었어      웃을 거야     웃지 않아       웃은
마시다    마셔      마셨어      마실 거야     마시지 않아     마신
던지다    던져      던졌어      던질 거야     던지지 않아     던진
배우다    배워      배웠어      배울 거야     배우지 않아     배운
주다      줘        줬어        줄 거야       주지 않아       준
춤추다    춤춰      춤췄어      춤출 거야     춤추지 않아     춤춘
보내다    보내      보냈어      보낼 거야     보내지 않아     보낸
만나다    만나      만났어      만날 거야     만나지 않아     만난
쉬다      쉬어      쉬었어      쉴 거야       쉬지 않아       쉰
되다      돼        됐어        될 거야       되지 않아       된
공부하다  공부해    공부했어    공부할 거야   공부하지 않아   공부한
쓰다      써        썼어        쓸 거야       쓰지 않아       쓴
크다      커        컸어        클 거야       크지 않아       큰
예쁘다    예뻐      예뻤어      예쁠 거야     예쁘지 않아     예쁜
바쁘다    바빠      바빴어      바쁠 거야     바쁘지 않아     바쁜
아프다    아파      아팠어      아플 거야     아프지 않아     아픈
만들다    만들어    만들었어    만들 거야     만들지 않아     만든
살다      살아      살았어      살 거야       살지 않아       산
팔다      팔아      팔았어      팔 거야       팔지 않아       판
놀다      놀아      놀았어      놀 거야       놀지 않아       논
길다      길어      길었어      길 거야       길지 않아       긴
듣다      들어      들었어      들을 거야     듣지 않아       들은
걷다      걸어      걸었어      걸을 거야     걷지 않아       걸은
돕다      도와      도왔어      도울 거야     돕지 않아       도운
춥다      추워      추웠어      추울 거야     춥지 않아       추운
귀엽다    귀여워    귀여웠어    귀여울 거야   귀엽지 않아     귀여운
무겁다    무거워    무거웠어    무거울 거야   무겁지 않아     무거운
아름답다  아름다워  아름다웠어  아름다울 거야 아름답지 않아   아름다운
짓다      지어      지었어      지을 거야     짓지 않아       지은
부르다    불러      불렀어      부를 거야     부르지 않아     부른
빠르다    빨라      빨랐어      빠를 거야     빠르지 않아     빠른
고르다    골라      골랐어      고를 거야     고르지 않아     고른
자르다    잘라      잘랐어      자를 거야     자르지 않아     자른
게으르다  게을러    게을렀어    게으를 거야   게으르지 않아   게으른
빨갛다    빨개      빨갰어      빨갈 거야     빨갛지 않아     빨간
하얗다    하얘      하얬어      하얄 거야     하얗지 않아     하얀
재미있다  재미있어  재미있었어  재미있을 거야 재미있지 않아   재미있는
"""
ROWS = [line.split() for line in CONJUGATION.strip().splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_conjugation_table(row):
    verb, present, past, future, particle, stem_negative, negative, before_noun = row
    assert korean.conjugate(verb, "present") == present
    assert korean.conjugate(verb, "past") == past
    assert korean.conjugate(verb, "future") == f"{future} {particle}"
    assert korean.conjugate(korean.negate(verb)) == f"{stem_negative} {negative}"
    assert korean.modify_noun(verb) == before_noun


@pytest.mark.parametrize(
    ("predicate", "tense", "expected"),
    [
        ("먹다", "present", "먹어요"),
        ("가다", "past", "갔어요"),
        ("듣다", "future", "들을 거예요"),
        ("좋아하다", "present", "좋아해요"),
        ("오다", "present", "와요"),
        ("되다", "present", "돼요"),
        ("아니다", "present", "아니에요"),
        ("아니다", "past", "아니었어요"),
        ("키가 크다", "present", "키가 커요"),
    ],
)
def test_polite_endings(predicate, tense, expected):
    assert korean.conjugate(predicate, tense, "polite") == expected


# doing it now, able, not able, wanting, others wanting, having to, not having to, the doing
CONSTRUCTIONS = """
먹다  먹고 있어  먹을 수 있어  먹을 수 없어  먹고 싶어  먹고 싶어 해  먹어야 해  먹지 않아도 돼  먹는 것
듣다  듣고 있어  들을 수 있어  들을 수 없어  듣고 싶어  듣고 싶어 해  들어야 해  듣지 않아도 돼  듣는 것
만들다  만들고 있어  만들 수 있어  만들 수 없어  만들고 싶어  만들고 싶어 해  만들어야 해  만들지 않아도 돼  만드는 것
돕다  돕고 있어  도울 수 있어  도울 수 없어  돕고 싶어  돕고 싶어 해  도와야 해  돕지 않아도 돼  돕는 것
쓰다  쓰고 있어  쓸 수 있어  쓸 수 없어  쓰고 싶어  쓰고 싶어 해  써야 해  쓰지 않아도 돼  쓰는 것
"""


@pytest.mark.parametrize("row", CONSTRUCTIONS.strip().splitlines(), ids=lambda row: row[:3].strip())
def test_constructions(row):
    verb, *expected = re.split(r"  +", row)
    assert [
        korean.conjugate(korean.in_mode(verb, "progressive")),
        korean.conjugate(korean.in_mode(verb, "can")),
        korean.conjugate(korean.in_mode(verb, "can", negative=True)),
        korean.conjugate(korean.in_mode(verb, "want")),
        korean.conjugate(korean.in_mode(verb, "want", of_others=True)),
        korean.conjugate(korean.in_mode(verb, "must")),
        korean.conjugate(korean.in_mode(verb, "must", negative=True)),
        korean.doing(verb),
    ] == expected


def test_negation_with_an_opposite():
    assert korean.negate("공원에 있다") == "공원에 없다"
    assert korean.negate("알다") == "모르다"
    assert korean.conjugate("모르다", "past") == "몰랐어"
    assert korean.negate("먹고 있다") == "먹고 있지 않다"  # only being there has the opposite 없다
    assert korean.negate("재미있다") == "재미있지 않다"


def test_links_between_clauses():
    assert korean.link("먹다", "고") == "먹고"
    assert korean.link("좋아하다", "지만") == "좋아하지만"
    assert korean.link("듣다", "지만", "past") == "들었지만"
    assert [korean.because(word) for word in ("아프다", "피곤하다", "배고프다", "춥다")] == [
        "아파서",
        "피곤해서",
        "배고파서",
        "추워서",
    ]


@pytest.mark.parametrize(
    ("noun", "forms"),
    [
        ("고양이", "고양이는 고양이가 고양이를 고양이와 고양이로"),
        ("책", "책은 책이 책을 책과 책으로"),
        ("물", "물은 물이 물을 물과 물로"),
        ("지하철", "지하철은 지하철이 지하철을 지하철과 지하철로"),
        ("연필", "연필은 연필이 연필을 연필과 연필로"),
        ("펜", "펜은 펜이 펜을 펜과 펜으로"),
        ("나", "나는 내가 나를 나와 나로"),
        ("너", "너는 네가 너를 너와 너로"),
        ("저", "저는 제가 저를 저와 저로"),
        ("우리 엄마", "우리 엄마는 우리 엄마가 우리 엄마를 우리 엄마와 우리 엄마로"),
        ("내 여동생", "내 여동생은 내 여동생이 내 여동생을 내 여동생과 내 여동생으로"),
        ("꽃", "꽃은 꽃이 꽃을 꽃과 꽃으로"),
    ],
)
def test_particles(noun, forms):
    particles = ("은/는", "이/가", "을/를", "과/와", "으로/로")
    assert " ".join(korean.attach(noun, particle) for particle in particles) == forms


def test_a_particle_with_one_form_is_added_as_it_is():
    assert korean.attach("공원", "에서") == "공원에서"


@pytest.mark.parametrize(
    ("noun", "tense", "negative", "plain", "polite"),
    [
        ("의사", "present", False, "의사야", "의사예요"),
        ("학생", "present", False, "학생이야", "학생이에요"),
        ("의사", "past", False, "의사였어", "의사였어요"),
        ("학생", "past", False, "학생이었어", "학생이었어요"),
        ("의사", "future", False, "의사가 될 거야", "의사가 될 거예요"),
        ("학생", "present", True, "학생이 아니야", "학생이 아니에요"),
        ("의사", "past", True, "의사가 아니었어", "의사가 아니었어요"),
        ("학생", "future", True, "학생이 되지 않을 거야", "학생이 되지 않을 거예요"),
    ],
)
def test_copula(noun, tense, negative, plain, polite):
    assert korean.be(noun, tense, "plain", negative) == plain
    assert korean.be(noun, tense, "polite", negative) == polite


@given(SYLLABLES)
def test_syllables_agree_with_unicode_decomposition(syllable):
    decomposed = unicodedata.normalize("NFD", syllable)
    assert bool(korean.final_consonant(syllable)) == (len(decomposed) == 3)
    assert korean.join_syllable(*korean.split_syllable(syllable)) == syllable


@pytest.mark.parametrize("text", ["a", "ㄱ", "", "가나"])
def test_only_single_syllables_can_be_split(text):
    with pytest.raises(ValueError, match="one precomposed Korean syllable"):
        korean.split_syllable(text)
