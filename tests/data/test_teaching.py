"""The teaching corpus: what it says, how much there is of it, and that the test set is really held out."""

import hashlib
import os
import subprocess
import sys
from collections import Counter

import pytest

from lit_transformer.data.teaching import teaching_pairs
from lit_transformer.data.teaching.clauses import Moment
from lit_transformer.data.teaching.corpus import NUM_DRAWS
from lit_transformer.data.teaching.english import clause, comparative, inflect, plural, with_article
from lit_transformer.data.teaching.lexicon import SUBJECTS, VERBS
from lit_transformer.data.teaching.phrases import Action, Phrase
from lit_transformer.data.teaching.sentences import SentenceWriter
from lit_transformer.interfaces import SentencePair

HELD_OUT = ("validation", "test")

# By construction, as a Korean reader would say it to a friend.
PLAIN = {
    "actions in the present": [
        ("I build a small house", "나는 작은 집을 지어"),
        ("John often travels in Korea", "존은 자주 한국에서 여행해"),
        ("You wait for this friend at night", "너는 밤에 이 친구를 기다려"),
        ("They see a fast cow in the evening", "그들은 저녁에 빠른 소를 봐"),
        ("I do not eat vegetables with a fork at home", "나는 집에서 포크로 채소를 먹지 않아"),
        ("Does my friend learn English at night?", "내 친구는 밤에 영어를 배워?"),
        ("Does she call this friend on weekends?", "그녀는 주말에 이 친구를 불러?"),
    ],
    "actions in the past and future": [
        ("You watched a drama with my sister in the room", "너는 방에서 내 여동생과 드라마를 봤어"),
        ("Did he meet a kind friend?", "그는 친절한 친구를 만났어?"),
        ("Did John know my friend?", "존은 내 친구를 알았어?"),
        ("Did John study science at school yesterday?", "존은 어제 학교에서 과학을 공부했어?"),
        ("The student will cook at the restaurant next week", "학생은 다음 주에 식당에서 요리할 거야"),
        ("Will the boy eat vegetables with a fork at home?", "소년은 집에서 포크로 채소를 먹을 거야?"),
    ],
    "going on": [
        ("My mom is not eating meat", "우리 엄마는 고기를 먹고 있지 않아"),
        ("We are meeting a friend at the cafe", "우리는 카페에서 친구를 만나고 있어"),
        ("Are the students walking?", "학생들은 걷고 있어?"),
        ("I was opening the window", "나는 창문을 열고 있었어"),
        ("You are lending a black truck to my sister", "너는 내 여동생에게 까만 트럭을 빌려주고 있어"),
    ],
    "can, want, have to": [
        ("They can play the guitar", "그들은 기타를 칠 수 있어"),
        ("I cannot open the window tonight", "나는 오늘 밤에 창문을 열 수 없어"),
        ("The child could learn math last night", "아이는 어젯밤에 수학을 배울 수 있었어"),
        ("The student wants to catch a mouse today", "학생은 오늘 쥐를 잡고 싶어 해"),
        ("My brother wants to raise that bird at home", "내 남동생은 집에서 저 새를 키우고 싶어 해"),
        ("I have to come to the hospital", "나는 병원에 와야 해"),
    ],
    "being there": [
        ("There is a book at the beach", "해변에 책이 있어"),
        ("There was one novel at the airport", "공항에 소설 한 권이 있었어"),
        ("Was there an umbrella under the car?", "자동차 아래에 우산이 있었어?"),
        ("There are two dogs on the box", "상자 위에 개 두 마리가 있어"),
        ("This pencil is behind the chair", "이 연필은 의자 뒤에 있어"),
        ("Your present is not in the room", "네 선물은 방에 없어"),
        ("His bird was next to the table", "그의 새는 탁자 옆에 있었어"),
    ],
    "having": [
        ("Tom has a hat", "톰은 모자가 있어"),
        ("Does John have five trucks?", "존은 트럭이 다섯 대 있어?"),
        ("We had nine houses", "우리는 집이 아홉 채 있었어"),
    ],
    "being so": [
        ("Their flower is too big", "그들의 꽃은 너무 커"),
        ("I was lazy", "나는 게을렀어"),
        ("The cow was not black", "소는 까맣지 않았어"),
        ("That bird is not fast", "저 새는 빠르지 않아"),
        ("Their movie is not difficult", "그들의 영화는 어렵지 않아"),
        ("Is it really hot in Seoul?", "서울은 정말 더워?"),
        ("It was cold last week", "지난주는 추웠어"),
    ],
    "being more so": [
        ("We were braver than them", "우리는 그들보다 더 용감했어"),
        ("The bear was faster than the horse", "곰은 말보다 더 빨랐어"),
        ("My friend is not more famous than my mom", "내 친구는 우리 엄마보다 더 유명하지 않아"),
    ],
    "being something": [
        ("Are you an actor?", "너는 배우야?"),
        ("You are not a writer", "너는 작가가 아니야"),
        ("John will be a famous actor", "존은 유명한 배우가 될 거야"),
        ("Was this his novel?", "이것은 그의 소설이었어?"),
        ("That was not a cat", "저것은 고양이가 아니었어"),
        ("That was your computer", "저것은 네 컴퓨터였어"),
    ],
    "questions for a word": [
        ("What did they write at the office?", "그들은 사무실에서 무엇을 썼어?"),
        ("Who wants to borrow our novel?", "누가 우리 소설을 빌리고 싶어 해?"),
        ("Who will come home by taxi?", "누가 택시로 집에 올 거야?"),
        ("Where did the students eat my apple?", "학생들은 어디에서 내 사과를 먹었어?"),
        ("When was she opening the door?", "그녀는 언제 문을 열고 있었어?"),
        ("Why are the students wearing white socks?", "학생들은 왜 하얀 양말을 신고 있어?"),
        ("How did Tom come to Korea?", "톰은 어떻게 한국에 왔어?"),
        ("Where is my brother going?", "내 남동생은 어디에 가고 있어?"),
        ("How many cups of milk did he drink?", "그는 우유를 몇 잔 마셨어?"),
        ("How many pencils did my dad look for?", "우리 아빠는 연필을 몇 자루 찾았어?"),
    ],
    "two clauses": [
        ("She learned history and my mom learned the piano", "그녀는 역사를 배웠고 우리 엄마는 피아노를 배웠어"),
        ("Minsu makes ramen but we make a bag", "민수는 라면을 만들지만 우리는 가방을 만들어"),
        ("The child played the piano and rode a bicycle", "아이는 피아노를 치고 자전거를 탔어"),
        ("Tom hates to exercise", "톰은 운동하는 것을 싫어해"),
        ("Did my dad hate to watch baseball?", "우리 아빠는 야구를 보는 것을 싫어했어?"),
        ("He could not come to the library because he was sick", "그는 아파서 도서관에 올 수 없었어"),
    ],
    "animals": [
        ("The black bear saw my rabbit yesterday", "까만 곰은 어제 내 토끼를 봤어"),
        ("The tiger does not sleep", "호랑이는 자지 않아"),
        ("The big cow was running", "큰 소는 달리고 있었어"),
    ],
}
POLITE = [
    ("I love cats", "저는 고양이를 좋아해요"),
    ("I build a small house", "저는 작은 집을 지어요"),
    ("You are not a writer", "당신은 작가가 아니에요"),
    ("Are you an actor?", "당신은 배우예요?"),
    ("That was your computer", "저것은 당신의 컴퓨터였어요"),
    ("Does my friend learn English at night?", "제 친구는 밤에 영어를 배워요?"),
    ("John will be a famous actor", "존은 유명한 배우가 될 거예요"),
    ("I have to come to the hospital", "저는 병원에 와야 해요"),
    ("Your present is not in the room", "당신의 선물은 방에 없어요"),
    ("My brother wants to raise that bird at home", "제 남동생은 집에서 저 새를 키우고 싶어 해요"),
]


def corpus(style="plain"):
    return {split: teaching_pairs(split, style) for split in ("train", *HELD_OUT)}


def everything(style="plain"):
    return {pair.src: pair.tgt for pairs in corpus(style).values() for pair in pairs}


@pytest.mark.parametrize("construction", PLAIN)
def test_plain_sentences(construction):
    written = everything()
    assert {english: written.get(english) for english, _ in PLAIN[construction]} == dict(PLAIN[construction])


def test_polite_sentences():
    written = everything("polite")
    assert {english: written.get(english) for english, _ in POLITE} == dict(POLITE)


def test_the_demonstration_sentence_is_in_the_test_set_only():
    assert teaching_pairs("test")[0] == SentencePair("I love cats", "나는 고양이를 좋아해")
    seen = teaching_pairs("train") + teaching_pairs("validation")
    assert not [pair for pair in seen if "i love cats" in pair.src.lower() or "나는 고양이를 좋아하" in pair.tgt]


def test_sizes():
    sizes = {split: len(pairs) for split, pairs in corpus().items()}
    assert 60_000 <= sizes["train"] <= 80_000
    assert sizes["validation"] == 500
    assert sizes["test"] == 1000


@pytest.mark.parametrize("style", ["plain", "polite"])
def test_one_translation_for_each_sentence_and_no_overlap(style):
    pairs = [pair for split in corpus(style).values() for pair in split]
    assert len({pair.src for pair in pairs}) == len(pairs)
    assert len({pair.tgt for pair in pairs}) == len(pairs)  # hence no Korean test sentence was seen in training


def test_both_styles_are_trained_on_the_same_english():
    assert [pair.src for pair in teaching_pairs("train")] == [pair.src for pair in teaching_pairs("train", "polite")]


def test_held_out_words_are_known():
    counts = [Counter(), Counter()]
    for pair in teaching_pairs("train"):
        for side, text in enumerate(pair):
            counts[side].update(set(text.rstrip("?").lower().split()))
    for split in HELD_OUT:
        for pair in teaching_pairs(split):
            for side, text in enumerate(pair):
                rare = [word for word in text.rstrip("?").lower().split() if counts[side][word] < 20]
                assert not rare, (pair, rare)


def test_held_out_combinations_never_occur_in_training():
    splits = {pair.src: split for split, pairs in corpus().items() for pair in pairs}
    writer = SentenceWriter()
    keys = {split: [] for split in ("train", *HELD_OUT)}
    for _ in range(NUM_DRAWS):
        sentence = writer.sentence()
        if sentence.english in splits:
            keys[splits[sentence.english]].append(sentence.keys)
    known = {key for combination in keys["train"] for key in combination}
    for split in HELD_OUT:  # joined clauses may hold a known combination beside the new one
        assert len(keys[split]) >= 500
        assert all(set(combination) - known for combination in keys[split])


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (Moment(), "She eats apples"),
        (Moment(negative=True), "She does not eat apples"),
        (Moment(question=True), "Does she eat apples?"),
        (Moment(time=Phrase("every day", "매일")), "She eats apples every day"),
        (Moment(adverb=Phrase("often", "자주")), "She often eats apples"),
    ],
)
def test_asking_denying_and_dating_keep_the_combination(moment, expected):
    sentence = SentenceWriter().write(SUBJECTS[3], Action("eat apples", "사과를", "먹다", "eat apples"), moment)
    assert sentence.english == expected
    assert sentence.keys == ("she eat apples simple present",)


def test_describing_and_counting_the_object_keeps_the_combination():
    writer = SentenceWriter()
    apples = next(verb for verb in VERBS if verb.english == "eat")._replace(objects=("fruit",))
    actions = [writer.act(apples, SUBJECTS[3]) for _ in range(300)]
    assert len({action.english for action in actions}) > 100
    assert {action.key for action in actions} == {"eat apples", "eat bananas", "eat oranges"}
    assert all(action.key.split()[1].removesuffix("s") in action.english for action in actions)


def test_sentence_shapes():
    for pairs in corpus().values():
        for source, target in pairs:
            assert source[0].isupper()
            assert 2 <= len(source.split()) <= 12
            assert source.endswith("?") == target.endswith("?")
            for text in (source, target):
                assert text == " ".join(text.rstrip("?").split()) + "?" * text.endswith("?")
                assert not set(text.rstrip("?")) & set(".,!?;:()'\"/")
            assert not any(letter.isascii() and letter.isalpha() for letter in target)


def test_vocabulary_is_moderate():
    words = {word for pair in teaching_pairs("train") for word in pair.src.lower().rstrip("?").split()}
    forms = {word for pair in teaching_pairs("train") for word in pair.tgt.rstrip("?").split()}
    assert len(words) < 700
    assert len(forms) < 1500


def test_constructions_are_spread_over_the_test_set():
    sources = [pair.src for pair in teaching_pairs("test")]
    for part in (" not ", "?", " is ", " will ", " can", " want", " than ", " because ", " and ", "There ", " to "):
        assert sum(part in source for source in sources) >= 10, part


def test_same_corpus_in_every_process():
    program = (
        "import hashlib; from lit_transformer.data.teaching import teaching_pairs; "
        "text = repr([teaching_pairs(s) for s in ('train', 'validation', 'test')]); "
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    digests = {process.communicate()[0].strip() for process in processes}
    here = repr([teaching_pairs(split) for split in ("train", "validation", "test")])
    assert digests == {hashlib.sha256(here.encode()).hexdigest()}


def test_callers_cannot_change_the_corpus():
    teaching_pairs("test").clear()
    assert len(teaching_pairs("test")) == 1000


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        teaching_pairs("dev")
    with pytest.raises(ValueError, match="style must be one of plain, polite, got 'royal'"):
        teaching_pairs("train", "royal")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("she", "singular", "study math"), "she studies math"),
        (("she", "singular", "watch TV"), "she watches TV"),
        (("they", "plural", "study math", "past"), "they studied math"),
        (("I", "I", "be busy"), "I am busy"),
        (("you", "plural", "be busy", "past"), "you were busy"),
        (("he", "singular", "go home", "past", "simple", True), "he did not go home"),
        (("he", "singular", "have to go", "present", "simple", False, True), "does he have to go"),
        (("we", "plural", "swim", "present", "progressive"), "we are swimming"),
        (("it", "singular", "be cold", "future", "simple", False, True), "will it be cold"),
        (("the cat", "singular", "run", "present", "can", True), "the cat cannot run"),
        (("I", "I", "run", "past", "can", True), "I could not run"),
    ],
)
def test_english_clauses(arguments, expected):
    assert clause(*arguments) == expected


@pytest.mark.parametrize(
    ("change", "forms"),
    [
        (plural, "cat/cats box/boxes child/children mouse/mice fish/fish dictionary/dictionaries"),
        (comparative, "big/bigger small/smaller cute/cuter pretty/prettier brave/braver good/better quiet/quieter"),
        (comparative, "famous/more_famous expensive/more_expensive boring/more_boring diligent/more_diligent"),
        (with_article, "apple/an_apple red_apple/a_red_apple old_hat/an_old_hat umbrella/an_umbrella"),
        (lambda verb: inflect(verb, "singular", "past"), "cry/cried smile/smiled rest/rested buy/bought play/played"),
        (lambda verb: inflect(verb, "singular", "present"), "cry/cries teach/teaches have/has go/goes play/plays"),
    ],
)
def test_english_word_forms(change, forms):
    for pair in forms.split():
        word, expected = pair.replace("_", " ").split("/")
        assert change(word) == expected
