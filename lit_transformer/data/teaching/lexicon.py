"""The words of the teaching corpus, English and Korean side by side, and which of them go together.

Every English word has one translation and every Korean word one source, at least beside its neighbours
(보다 is *watch* before movies and *see* before animals). Verbs name the groups of nouns that make sense as their
objects and the places where one would do it, so that all sentences are ones that somebody could say.
"""

from __future__ import annotations

from lit_transformer.data.teaching.korean import Tense
from lit_transformer.data.teaching.words import Noun, Place, Subject, Verb, names, rows, stuff, things, verb

SUBJECTS = [
    Subject("I", "나", "I", "me", third_person=False),
    Subject("you", "너", "plural", "you", third_person=False),
    Subject("he", "그", "singular", "him"),
    Subject("she", "그녀", "singular", "her"),
    Subject("we", "우리", "plural", "us", third_person=False),
    Subject("they", "그들", "plural", "them"),
]
RELATIVES = [
    Subject(en, ko)
    for en, ko in rows(
        "my mom 우리 엄마, my dad 우리 아빠, my brother 내 남동생, my sister 내 여동생, my friend 내 친구"
    )
]
PERSONS = [
    *(Subject(en, ko) for en, ko in rows("Tom 톰, John 존, Anna 안나, Minsu 민수")),
    *(Subject(en, ko) for en, ko in rows("the student 학생, the child 아이, the boy 소년, the girl 소녀")),
    *(Subject(en, ko, "plural") for en, ko in rows("the students 학생들, the children 아이들")),
]
PEOPLE = RELATIVES + PERSONS
POLITE_WORDS = {"나": "저", "내": "제", "너": "당신", "네": "당신의"}
POSSESSIVES = rows("my 내, your 네, his 그의, her 그녀의, our 우리, their 그들의")
NOT_OWNED = frozenset(["wild", "prey", "people", "friend"])  # this lion, but not my lion
NOT_POINTED_AT = frozenset(["fruit", "snack", "prey"])  # no feelings about this egg
PERSONS_GROUPS = ("people", "friend", "somebody")
OWN_POSSESSIVE = {"he": "his", "she": "her", "they": "their"}  # he and his may be two people: leave such pairs out
DEMONSTRATIVES = rows("this 이, that 저")
NUMBERS = rows("one 한, two 두, three 세, four 네, five 다섯, six 여섯, seven 일곱, eight 여덟, nine 아홉, ten 열")

NOUN_GROUPS = {
    "pet": things("cat 고양이, dog 개, rabbit 토끼, bird 새", "마리"),
    "farm": things("cow 소, pig 돼지, horse 말", "마리"),
    "wild": things("lion 사자, tiger 호랑이, bear 곰, elephant 코끼리, monkey 원숭이", "마리"),
    "prey": things("fish 물고기, mouse 쥐", "마리"),
    "fruit": things("apple 사과, banana 바나나, orange 오렌지", "개"),
    "snack": things("egg 계란, cookie 쿠키, sandwich 샌드위치", "개"),
    "food": stuff("meat 고기, vegetables 채소"),
    "bowl": stuff("rice 밥, soup 수프"),
    "noodles": stuff("noodles 국수, ramen 라면"),
    "baked": stuff("bread 빵, cake 케이크, pizza 피자"),
    "drink": things("coffee 커피, tea 차", "잔", "cup") + things("juice 주스, beer 맥주", "병", "bottle"),
    "water": things("milk 우유", "잔", "cup") + things("water 물", "병", "bottle"),
    "book": things("book 책, novel 소설", "권"),
    "magazine": things("magazine 잡지", "권"),
    "dictionary": things("dictionary 사전", "권"),
    "letter": things("letter 편지, email 이메일", "통"),
    "newspaper": stuff("newspapers 신문"),
    "film": things("movie 영화, drama 드라마", "편"),
    "television": stuff("TV 텔레비전"),
    "audio": stuff("music 음악, the radio 라디오"),
    "song": things("song 노래", "곡"),
    "sport": stuff("soccer 축구, baseball 야구, basketball 농구, tennis 테니스"),
    "game": stuff("computer games 컴퓨터 게임"),
    "instrument": stuff("the piano 피아노, the guitar 기타"),
    "lesson": stuff("Korean 한국어, English 영어, math 수학, history 역사, science 과학"),
    "garment": things("shirt 셔츠, coat 코트, skirt 치마", "벌"),
    "headwear": things("hat 모자", "개"),
    "footwear": stuff("shoes 신발, socks 양말"),
    "thing": things("bag 가방, clock 시계, chair 의자, table 탁자, toy 장난감, box 상자, umbrella 우산", "개"),
    "gift": things("present 선물", "개"),
    "ball": things("ball 공", "개"),
    "machine": things("computer 컴퓨터, phone 휴대폰, camera 카메라", "대"),
    "car": things("car 자동차, truck 트럭", "대"),
    "bicycle": things("bicycle 자전거", "대"),
    "public": stuff("the bus 버스, the train 기차, the subway 지하철"),
    "pencil": things("pen 펜, pencil 연필", "자루"),
    "flower": things("flower 꽃", "송이"),
    "tree": things("tree 나무", "그루"),
    "picture": things("picture 그림", "장"),
    "photo": things("photo 사진", "장"),
    "ticket": things("ticket 표", "장"),
    "paper": stuff("paper 종이"),
    "house": things("house 집", "채"),
    "room": stuff("the room 방, the classroom 교실, the kitchen 부엌, the bathroom 화장실"),
    "opening": stuff("the door 문, the window 창문"),
    "people": things("student 학생, child 아이, doctor 의사, singer 가수", "명"),
    "friend": things("friend 친구", "명"),
    "somebody": [Noun(s.object_form or s.english, s.korean) for s in SUBJECTS + RELATIVES],
    "sight": stuff("Seoul 서울, Busan 부산, Korea 한국, the museum 박물관, the zoo 동물원"),
}
NOUNS = {name: [noun._replace(group=name) for noun in nouns] for name, nouns in NOUN_GROUPS.items()}
JOBS = rows(
    "doctor 의사, student 학생, teacher 선생님, singer 가수, nurse 간호사, cook 요리사, writer 작가, farmer 농부, "
    "actor 배우, engineer 엔지니어, police officer 경찰관, painter 화가"
)

PLACES = {
    name: Place(f"{preposition} {name}", f"to {name}", korean)
    for preposition, table in {
        "at": "school 학교, the restaurant 식당, the market 시장, the hospital 병원, the office 사무실, the cafe 카페, "
        "the airport 공항, the station 역, the store 가게, the zoo 동물원, the beach 해변, the church 교회, "
        "the bank 은행, the library 도서관, the museum 박물관",
        "in": "the park 공원, the garden 정원, Seoul 서울, Busan 부산, Korea 한국, the kitchen 부엌, the room 방",
    }.items()
    for name, korean in rows(table)
} | {"home": Place("at home", "home", "집")}
PLACE_NAMES = list(PLACES)
POSITIONS = rows("on 위, under 아래, next to 옆, behind 뒤, in front of 앞")
LANDMARKS = rows("the table 탁자, the chair 의자, the box 상자, the tree 나무, the car 자동차, the house 집")
SURFACES = LANDMARKS[:3]
RIDES = rows("by bus 버스, by train 기차, by subway 지하철, by taxi 택시, by bicycle 자전거, by plane 비행기")
SIGHTS = [Subject(name, place.korean) for name, place in PLACES.items() if name not in ("home", "school")]
TOOLS = dict(rows("chopsticks 젓가락, a spoon 숟가락, a fork 포크, a knife 칼, a pen 펜, a pencil 연필"))

TIMES: dict[Tense, list[tuple[str, str]]] = {
    "present": rows("every day 매일, in the morning 아침에, in the evening 저녁에, at night 밤에, on weekends 주말에"),
    "past": rows(
        "yesterday 어제, last night 어젯밤에, last week 지난주에, this morning 오늘 아침에, last weekend 지난 주말에"
    ),
    "future": rows(
        "tomorrow 내일, tonight 오늘 밤에, next week 다음 주에, tomorrow morning 내일 아침에, this weekend 이번 주말에"
    ),
}
PLANS = rows("today 오늘, tomorrow 내일, tonight 오늘 밤에")
TODAY, NOW = ("today", "오늘"), ("now", "지금")
FREQUENCIES = rows("always 항상, often 자주, sometimes 가끔, usually 보통")

VERBS = [
    verb("eat", "먹다", "fruit snack baked food", "home, the restaurant, the park, the kitchen, school"),
    verb("eat", "먹다", "food baked", "home, the restaurant, the kitchen", "a fork"),
    verb("eat", "먹다", "bowl", "home, the restaurant, school", "a spoon"),
    verb("eat", "먹다", "noodles", "home, the restaurant, the market", "chopsticks"),
    verb("drink", "마시다", "drink water", "home, the cafe, the park, the kitchen, the office"),
    verb("read", "읽다", "book magazine letter newspaper", "the library, home, the park, the cafe, school"),
    verb("write", "쓰다", "letter letter book", "home, the library, the cafe, the office", "a pen, a pencil"),
    verb(
        "love",
        "좋아하다",
        "pet farm wild fruit snack baked food noodles drink water book film audio sport flower people lesson somebody",
    ),
    verb("hate", "싫어하다", "pet farm wild prey fruit snack food noodles drink water sport lesson somebody"),
    verb("see", "보다", "wild pet farm", "the zoo, the park"),
    verb("see", "보다", "people friend somebody", "school, the park, the station, the market"),
    verb("watch", "보다", "film television sport", "home, the room"),
    verb(
        "buy",
        "사다",
        "fruit snack baked food drink water book magazine garment headwear footwear thing gift machine "
        "pencil flower ticket",
        "the market, the store",
    ),
    verb(
        "sell",
        "팔다",
        "fruit snack baked garment headwear footwear thing flower car bicycle ticket",
        "the market, the store",
    ),
    verb("make", "만들다", "baked snack thing gift noodles bowl", "home, the kitchen"),
    verb("cook", "요리하다", "food noodles bowl", "home, the kitchen, the restaurant"),
    verb("help", "돕다", "people friend somebody", "school, the hospital, the market, home"),
    verb("meet", "만나다", "people friend somebody", "the park, the station, the cafe, school, the airport"),
    verb("wait for", "기다리다", "people friend somebody public", "the station, the airport"),
    verb("know", "알다", "people somebody"),
    verb("remember", "기억하다", "people somebody song"),
    verb(
        "need",
        "필요하다",
        "dictionary water drink thing machine pencil footwear garment ticket car paper",
        particle="이/가",
    ),
    verb("look for", "찾다", "thing machine pencil garment headwear ticket", "home, the room, the office"),
    verb("listen to", "듣다", "audio song", "home, the cafe, the park, the room"),
    verb("play", "하다", "sport game", "school, the park, home"),
    verb("play", "치다", "instrument", "home, school, the church"),
    verb("study", "공부하다", "lesson", "the library, school, home, the cafe"),
    verb("learn", "배우다", "lesson instrument", "school, home"),
    verb("teach", "가르치다", "lesson", "school"),
    verb("clean", "청소하다", "room"),
    verb("open", "열다", "opening"),
    verb("close", "닫다", "opening"),
    verb("wear", "입다", "garment", "school, the office"),
    verb("wear", "쓰다", "headwear", "school, the beach"),
    verb("wear", "신다", "footwear", "home, school"),
    verb("draw", "그리다", "picture flower pet wild", "school, home, the park", "a pencil"),
    verb("take", "찍다", "photo", "the park, the beach, the zoo, Seoul"),
    verb("take", "타다", "public"),
    verb("ride", "타다", "bicycle", "the park, the beach"),
    verb("drive", "운전하다", "car"),
    verb("use", "사용하다", "machine pencil paper", "the office, school, home"),
    verb("build", "짓다", "house", "Seoul, Korea"),
    verb("raise", "키우다", "pet farm flower", "home"),
    verb("cut", "자르다", "baked paper tree", "", "a knife"),
    verb("choose", "고르다", "book magazine garment footwear headwear gift film", "the store"),
    verb("sing", "부르다", "song", "school, the church, the park"),
    verb("call", "부르다", "people friend somebody"),
    verb("borrow", "빌리다", "book magazine dictionary pencil bicycle", "the library"),
    verb("catch", "잡다", "prey"),
    verb("throw", "던지다", "ball", "the park, school"),
    verb("visit", "방문하다", "sight"),
]
TRANSITIVES = [verb for verb in VERBS if len(verb.objects) > 1]  # with some choice of objects
UNCLEAR_WITHOUT_OBJECT = frozenset(["take", "play", "wear", "watch", "wait for", "visit", "remember"])
EAT = [verb for verb in VERBS if verb.english == "eat"]
GENERAL_VERBS = frozenset(["love", "hate", "sell"])  # one loves cats, but sees a cat
CIRCUMSTANCES = [("where", "어디에서"), ("when", "언제"), ("why", "왜")]
INTRANSITIVES = [
    verb("sleep", "자다", places="home, the room, school"),
    verb("work", "일하다", places="the office, the hospital, the bank, the store, Seoul"),
    verb("swim", "수영하다", places="the beach, Busan"),
    verb("run", "달리다", places="the park, the beach"),
    verb("walk", "걷다", places="the park, the beach, the garden"),
    verb("dance", "춤추다", places="the park, school, home"),
    verb("cry", "울다", places="the room, the park, home"),
    verb("smile", "웃다", places="school"),
    verb("rest", "쉬다", places="home, the park, the cafe, the garden"),
    verb("play", "놀다", places="the park, home, the garden, the beach"),
    verb("cook", "요리하다", places="home, the kitchen, the restaurant"),
    verb("exercise", "운동하다", places="the park, home, school"),
    verb("travel", "여행하다", places="Korea, Busan, Seoul"),
    verb("study", "공부하다", places="the library, school, home, the cafe"),
]
MOTIONS = [Verb("go", "가다"), Verb("come", "오다")]
GIVING = [
    verb("give", "주다", "fruit snack drink water book flower gift ticket"),
    verb("send", "보내다", "letter photo gift flower"),
    verb("show", "보여 주다", "picture photo book machine"),
    verb("lend", "빌려주다", "book magazine dictionary pencil machine bicycle car"),
    verb("teach", "가르치다", "lesson"),
]
SAME_PAST = frozenset(["read", "cut"])  # "I read books" alone would not tell its tense
COMPANY_VERBS = frozenset(
    names("eat, drink, watch, play, study, walk, dance, swim, travel, cook, exercise, meet, visit")
)
ANIMAL_VERBS = [
    verb("eat", "먹다", "fruit food"),
    verb("drink", "마시다", "water"),
    verb("sleep", "자다", places="the park, the garden"),
    verb("run", "달리다", places="the park, the garden"),
    verb("see", "보다", "pet prey"),
]

QUALITIES = {  # what one can say of the nouns of a group
    "animal": rows("cute 귀엽다, small 작다, big 크다, fast 빠르다, pretty 예쁘다, white 하얗다, black 까맣다"),
    "food": rows("delicious 맛있다, cheap 싸다, expensive 비싸다"),
    "hot_food": rows("delicious 맛있다, spicy 맵다, cheap 싸다, expensive 비싸다"),
    "story": rows(
        "interesting 재미있다, good 좋다, boring 지루하다, easy 쉽다, difficult 어렵다, long 길다, short 짧다"
    ),
    "clothes": rows("red 빨갛다, blue 파랗다, yellow 노랗다, white 하얗다, cheap 싸다, expensive 비싸다, black 까맣다"),
    "thing": rows(
        "big 크다, small 작다, heavy 무겁다, light 가볍다, red 빨갛다, blue 파랗다, expensive 비싸다, good 좋다"
    ),
    "vehicle": rows("fast 빠르다, big 크다, small 작다, red 빨갛다, black 까맣다, expensive 비싸다, good 좋다"),
    "person": rows("kind 친절하다, tall 키가 크다, smart 똑똑하다, famous 유명하다, brave 용감하다, lazy 게으르다"),
    "plant": rows("beautiful 아름답다, pretty 예쁘다, big 크다, small 작다"),
    "place": rows("quiet 조용하다, clean 깨끗하다, big 크다, small 작다, beautiful 아름답다, famous 유명하다"),
}
QUALITY_OF = {
    **dict.fromkeys(("pet", "farm", "wild"), "animal"),
    **dict.fromkeys(("fruit", "snack", "baked"), "food"),
    **dict.fromkeys(("food", "bowl", "noodles"), "hot_food"),
    **dict.fromkeys(("book", "magazine", "film"), "story"),
    **dict.fromkeys(("garment", "headwear", "footwear"), "clothes"),
    **dict.fromkeys(("thing", "machine"), "thing"),
    **dict.fromkeys(("car", "bicycle"), "vehicle"),
    **dict.fromkeys(("people", "friend"), "person"),
    **dict.fromkeys(("flower", "tree", "picture", "photo"), "plant"),
    "house": "place",
}
ANIMALS = ("pet", "farm", "wild")
DESCRIBABLE = tuple(group for group in QUALITY_OF if NOUNS[group][0].singular and QUALITY_OF[group] != "person")
COLOURS = frozenset(names("red, blue, yellow, white, black"))
FAR_PLACES = frozenset(["Seoul", "Busan", "Korea"])  # where planes go
NEAR_PLACES = frozenset(["the room", "the kitchen", "the garden"])
OUTDOORS = [PLACES[name] for name in ("the park", "the garden", "the zoo")]
INDOORS = [place for name, place in PLACES.items() if name not in FAR_PLACES]
PLACEABLE = ("pet", "book", "magazine", "dictionary", "thing", "gift", "machine", "pencil", "headwear")
NAMEABLE = ("pet", "farm", "wild", "fruit", "snack", "book", "dictionary", "garment", "thing", "gift", "machine")
WEATHER_PLACES = ("Seoul", "Busan", "Korea", "the park", "the room", "the beach", "the library", "the office")
DAYS: dict[Tense, list[tuple[str, str]]] = {
    "past": rows("yesterday 어제, last week 지난주, last weekend 지난 주말"),
    "future": rows("tomorrow 내일, next week 다음 주, this weekend 이번 주말"),
}
ONLY_BEFORE_NOUN = rows("new 새, old 오래된")
CAN_BE_NEW = frozenset(names("book, film, garment, headwear, footwear, thing, machine, car, bicycle, house"))
MOODS = rows("busy 바쁘다, tired 피곤하다, hungry 배고프다, sick 아프다, happy 행복하다")
DEGREES = rows("very 아주, really 정말, too 너무")
WEATHER = rows("cold 춥다, hot 덥다, warm 따뜻하다, cool 시원하다")


def qualities(noun: Noun) -> list[tuple[str, str]]:
    """The adjectives that suit a noun, with their dictionary forms."""
    return QUALITIES[QUALITY_OF[noun.group]]


def countable(verb: Verb) -> tuple[str, ...]:
    """The groups of a verb's objects that can be counted."""
    return tuple(group for group in verb.objects if NOUNS[group][0].counter)


COUNTING_VERBS = [verb for verb in VERBS if countable(verb) and not verb.is_state and verb.english != "wait for"]
