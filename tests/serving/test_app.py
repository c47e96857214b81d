"""The application inside the test process: what it takes, what it refuses, what every answer carries."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from asgi_client import ThreadWorker, ask, post, run
from running_server import Answer
from torch import Tensor

from lit_transformer import BeamSearch, SubwordTokenizer, TeachingCorpus, Transformer, Translator
from lit_transformer.interfaces import Hypothesis, InputError, TranslationNetwork
from lit_transformer.serving.app import ServingApp
from lit_transformer.serving.batcher import Batcher
from lit_transformer.serving.model import ModelSettings, ServedModel
from lit_transformer.serving.requests import Job, Limits, job_of
from lit_transformer.serving.timed import TimedSearch
from lit_transformer.serving.workers import ProcessWorker
from lit_transformer.vocabulary import UNK_ID

LIMITS = Limits(max_length=40, max_texts=3, max_n_best=4, max_body=2000, max_attention=26)
SENTENCES = ["I love cats", "the dog sleeps", "", "a small house"]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ServedModel:
    return ServedModel.load(ModelSettings(str(tiny_model), TimedSearch(), max_length=40), LIMITS)


@pytest.fixture
def app(model: ServedModel) -> ServingApp:
    batcher = Batcher([ThreadWorker(model)], max_batch_size=8, batch_timeout=0.05, max_queue=100, timeout=30)
    return ServingApp(batcher, LIMITS, {"version": "1"}, hosts={"localhost"})


def test_it_translates_as_the_translator_does(app: ServingApp, tiny_model: Path) -> None:
    """One by one, several at once, and several requests at once: the same texts and scores."""
    expected = list(Translator.from_pretrained(tiny_model, search=BeamSearch(n_best=3)).translate(SENTENCES))
    answers = run(
        app, *(post({"text": text, "n_best": 3}) for text in SENTENCES), post({"texts": SENTENCES[:3], "n_best": 3})
    )
    assert [answer.status for answer in answers] == [200] * 5
    alone = [answer.content["results"][0] for answer in answers[:4]]
    together = answers[4].content["results"]
    for text, found, result in zip(
        [*SENTENCES, *SENTENCES[:3]], [*expected, *expected[:3]], [*alone, *together], strict=True
    ):
        assert result["source"] == text
        assert [one["text"] for one in result["translations"]] == [one.text for one in found]
        assert [one["score"] for one in result["translations"]] == pytest.approx([one.score for one in found], abs=1e-3)


def test_translations_are_as_long_as_allowed_and_named_by_no_line(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = ServedModel.load(ModelSettings(str(tiny_model), BeamSearch(max_extra_length=1)), LIMITS)
    (reply,) = served.answer([Job(("I love cats",))])
    assert caplog.text == ""
    translator = Translator.from_pretrained(tiny_model, search=BeamSearch(max_extra_length=1))
    assert json.loads(reply.body)["results"][0]["translations"][0]["text"] == translator("I love cats")[0]
    assert "line 1: the translation was closed at" in caplog.text


def texts_of(answer: Answer) -> list[str]:
    """The candidates for the first text of a request."""
    assert answer.status == 200, answer
    return [one["text"] for one in answer.content["results"][0]["translations"]]


def test_each_request_has_the_search_that_it_asks_for(model: ServedModel) -> None:
    """All in one batch, between requests that leave the search as the server has it."""
    wishes: list[dict[str, int]] = [
        {},
        {"no_repeat_ngram_size": 1},
        {"max_extra_length": 0},
        {"no_repeat_ngram_size": 2, "max_extra_length": 5},
        {"no_repeat_ngram_size": 0, "max_extra_length": 50},
        {},
    ]
    bodies = [{"text": "I love cats", "n_best": 2, **wish} for wish in wishes]
    replies = model.answer([job_of(body, LIMITS) for body in bodies])
    found = [texts_of(Answer(reply.status, {}, reply.body)) for reply in replies]
    for wish, texts in zip(wishes, found, strict=True):
        search = BeamSearch(n_best=2, **wish)
        translator = Translator(model.translator.network, model.translator.tokenizer, search)
        assert texts == [one.text for one in next(translator.translate(["I love cats"]))]
    assert len(set(map(tuple, found))) == 4, "each wish makes a difference"


@pytest.mark.parametrize("is_allowed", [True, False])
def test_unknown_words_are_written_as_the_request_says_or_else_the_server(model: ServedModel, is_allowed: bool) -> None:
    """By a network that finds no token as likely as that of unknown words."""
    tokenizer = model.translator.tokenizer
    network = Transformer(tokenizer.num_tokens, num_layers=1, d_model=16, d_ff=32, num_heads=2, output_bias=True)
    with torch.no_grad():
        network.projection.bias[UNK_ID] = 1e3
    served = ServedModel(Translator(network, tokenizer, BeamSearch(allow_unknown=is_allowed)), LIMITS)
    replies = served.answer([Job(("cats",)), *(Job(("cats",), no_unknown=one) for one in (True, False))])
    assert [b"<unk>" in reply.body for reply in replies] == [is_allowed, False, True]


def test_translations_begin_with_what_is_given(app: ServingApp, tiny_model: Path) -> None:
    translator = Translator.from_pretrained(tiny_model)
    free = translator(SENTENCES[:2])
    single, several, none = run(
        app,
        post({"text": SENTENCES[0], "prefix": " 나는 \n"}),
        post({"texts": SENTENCES[:3], "prefixes": ["나는", "", "나는"]}),
        post({"text": SENTENCES[0]}),
    )
    (expected,) = next(translator.translate([SENTENCES[0]], ["나는"]))
    assert texts_of(single) == texts_of(several) == [expected.text]
    assert expected.text.startswith("나는")
    assert expected.text != free[0]
    others = [result["translations"][0]["text"] for result in several.content["results"][1:]]
    assert others == [free[1], ""]
    assert texts_of(none) == [free[0]]


def test_a_blank_prefix_is_none() -> None:
    assert job_of({"text": "a", "prefix": " ", "attention": True}, Limits()).prefixes == ()
    assert job_of({"texts": ["a", "b"], "prefixes": ["", "c"]}, Limits()).prefixes == ("", "c")


def test_a_prefix_may_fill_the_translation_and_no_more(app: ServingApp, model: ServedModel) -> None:
    tokenizer = model.translator.tokenizer
    room = len(tokenizer.encode_src(["cats"])[0]) + 3 - 1  # EOS closes it
    text = "z" * room
    while len(tokenizer.encode_tgt([text])[0]) - 2 > room:
        text = text[:-1]
    fits, longer = run(app, *(post({"text": "cats", "prefix": one, "max_extra_length": 3}) for one in (text, text * 2)))
    assert texts_of(fits)[0].startswith(text)
    assert longer.status == 422
    assert f"tokens, and the translation may have {room}; shorten it" in longer.content["error"]


def test_a_prefix_that_the_model_cannot_write_is_refused() -> None:
    tokenizer = SubwordTokenizer(vocab_size=300, byte_fallback=False)
    tokenizer.train(TeachingCorpus("train", max_rows=50))
    network = Transformer(tokenizer.num_tokens, num_layers=1, d_model=8, d_ff=8, num_heads=1)
    (reply,) = ServedModel(Translator(network, tokenizer), LIMITS).answer([Job(("cats",), prefixes=("ж",))])
    assert reply.status == 422
    assert b"prefix 1 holds what the model has no token for" in reply.body


def test_a_search_without_prefixes_refuses_them(model: ServedModel) -> None:
    class Plain(BeamSearch):
        def __call__(self, network: TranslationNetwork, src: Tensor) -> list[list[Hypothesis]]:  # type: ignore[override]
            return super().__call__(network, src)

    inner = model.translator
    served = ServedModel(Translator(inner.network, inner.tokenizer, Plain()), LIMITS)
    free, begun = served.answer([Job(("cats",)), Job(("cats",), prefixes=("나는",))])
    assert (free.status, begun.status) == (200, 422)
    assert b"begins no translation with a prefix" in begun.body


@pytest.fixture(scope="module")
def tagged() -> Translator:
    """A model of two target languages, with random weights."""
    torch.manual_seed(2)
    tokenizer = SubwordTokenizer(vocab_size=400, tags=["<2de>", "<2ko>"])
    tokenizer.train(TeachingCorpus("train", max_rows=50))
    network = Transformer(tokenizer.num_tokens, num_layers=1, d_model=16, d_ff=32, num_heads=2)
    return Translator(network, tokenizer, BeamSearch(max_extra_length=8))


def answered(model: ServedModel, **fields: Any) -> Any:
    """The score of each text's translation, which tells what was read, or the sentence of a refusal."""
    (reply,) = model.answer([job_of(fields, LIMITS)])
    content = json.loads(reply.body)
    if reply.status != 200:
        assert reply.status == 422
        return content["error"]
    return pytest.approx([result["translations"][0]["score"] for result in content["results"]], abs=1e-3)


def scores(tagged: Translator, *texts: str) -> list[float]:
    return [found[0].score for found in tagged.translate(list(texts))]


def test_a_text_without_a_tag_is_refused_where_the_model_knows_tags(tagged: Translator) -> None:
    model = ServedModel(tagged, LIMITS)
    german, korean, bare = scores(tagged, "<2de> cats", "<2ko> cats", "cats")
    assert min(abs(german - korean), abs(german - bare), abs(korean - bare)) > 4e-3, "tags make a difference"
    assert answered(model, texts=["<2de> cats", " ", "<2ko> cats"]) == [german, 0.0, korean]
    assert answered(model, text="cats", src_tag="<2ko>") == [korean]
    assert answered(model, text="cats", src_tag="") == [bare]
    assert answered(model, texts=["<2de> cats", "", "cats"]) == (
        "text 3 has no tag, but the model was trained with tags (<2de>, <2ko>): "
        'set "src_tag" to one of them, or to "" if it needs none'
    )
    (page,) = model.answer([Job(("cats",), as_page=True)])
    assert page.status == 422
    assert b"text 1 has no tag" in page.body
    assert "the model does not know this" in answered(model, text="cats", src_tag="<2fr>")


def test_the_server_may_choose_the_tag_of_texts_that_have_none(tagged: Translator) -> None:
    model = ServedModel(tagged, LIMITS, "<2ko>")
    german, korean, bare = scores(tagged, "<2de> cats", "<2ko> cats", "cats")
    assert answered(model, texts=["cats", "<2de> cats", "<2ko> cats"]) == [korean, german, korean]
    assert answered(model, text="cats", src_tag="<2de>") == [german]
    assert answered(model, text="cats", src_tag="") == [bare]
    assert answered(ServedModel(tagged, LIMITS, ""), text="cats") == [bare]
    assert [ServedModel(tagged, LIMITS, tag).describe()["src_tag"] for tag in (None, "", "<2ko>")] == [
        None,
        "",
        "<2ko>",
    ]


def test_a_tag_of_the_server_has_to_be_known(tiny_model: Path, tagged: Translator) -> None:
    with pytest.raises(InputError, match="src_tag <2fr> is none of the tags that the model knows: <2de>, <2ko>"):
        ServedModel(tagged, LIMITS, "<2fr>")
    settings = ModelSettings(str(tiny_model), src_tag="<2ko>")
    with pytest.raises(InputError, match="src_tag <2ko> is none of the tags that the model knows: it has none"):
        ServedModel.load(settings, LIMITS)


def test_requests_that_wait_together_share_a_batch(app: ServingApp) -> None:
    run(app, *(post({"text": text}) for text in SENTENCES * 5))
    worker = app.batcher.workers[0]
    assert isinstance(worker, ThreadWorker)
    assert sum(worker.batches) == 20
    assert len(worker.batches) < 10
    assert max(worker.batches) <= 8


def test_one_text_has_its_attention(app: ServingApp, tiny_model: Path) -> None:
    (answer,) = run(app, post({"text": "I love cats", "attention": True, "n_best": 2}))
    (result,) = answer.content["results"]
    view = Translator.from_pretrained(tiny_model).attention("I love cats")
    seen = result["attention"]
    assert (seen["src_tokens"], seen["tgt_tokens"]) == (view.src_tokens, view.tgt_tokens)
    assert len(result["translations"]) == 2
    assert result["translations"][0]["text"] == view.target
    for kind in ("encoder", "decoder", "cross"):
        for layer, expected in zip(seen[kind], getattr(view.maps, kind), strict=True):
            assert torch.allclose(torch.tensor(layer), expected[0], atol=1e-4)


def page_data(answer: Answer) -> Any:
    """What the attention page knows."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', answer.body.decode(), re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_attention_page_is_that_of_the_file(app: ServingApp, tiny_model: Path) -> None:
    """All candidates with their scores and their own attention; the words of the page are in one place."""
    (answer,) = run(app, ("GET", "/attention?text=I+love+cats&n_best=3"))
    view = Translator.from_pretrained(tiny_model, search=BeamSearch(n_best=3)).attention("I love cats")
    assert answer.body.decode() == view.page()
    assert len(page_data(answer)["others"]) == 2


def test_how_many_candidates_a_page_shows(app: ServingApp) -> None:
    asked = [run(app, ("GET", f"/attention?text=I+love+cats{query}"))[0] for query in ("", "&n_best=1", "&n_best=2")]
    assert [len(page_data(answer)["beams"]) for answer in asked] == [4, 1, 2]


def test_the_size_of_an_attention_page_is_bounded(model: ServedModel) -> None:
    """All candidates are listed, but only the attention of those is shown that the bound has room for."""
    everything = page_data(ask_model(model))
    lengths = [len(everything["grids"][2]["queries"]), *(len(other[1]["queries"]) for other in everything["others"])]
    for number, bound in enumerate([1, sum(lengths[:2]) + 1, sum(lengths[:3]) + 2, 10**6]):
        limits = Limits(**{**vars(LIMITS), "max_candidates": bound + 1})
        content = page_data(ask_model(ServedModel(model.translator, limits)))
        assert len(content["beams"]) == 4
        assert len(content["others"]) == number


def ask_model(model: ServedModel) -> Answer:
    reply = model.answer([Job(("I love cats",), n_best=4, as_page=True)])[0]
    return Answer(reply.status, {}, reply.body)


def test_what_nobody_waits_for_is_not_computed(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of one batch whose time is over before it is their turn, next to others."""
    decoded: list[int] = []
    decode = model.translator._decode
    monkeypatch.setattr(model.translator, "_decode", lambda src, *rest: decoded.append(len(src)) or decode(src, *rest))
    late = {"deadline": time.monotonic() - 1}
    jobs = [
        Job(("cats",), **late),
        Job(("dogs",)),
        Job(("cats",), n_best=2, **late),
        Job(("cats",), as_page=True, **late),
    ]
    replies = model.answer(jobs)
    assert [reply.status for reply in replies] == [503, 200, 503, 503]
    assert b"no answer in time" in replies[0].body
    assert dict(replies[0].headers)["Retry-After"]
    assert decoded == [1]


@pytest.mark.parametrize("as_page", [False, True])
def test_a_search_ends_with_the_time_of_its_jobs(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch, as_page: bool
) -> None:
    """The clock stands at 0 and goes on by 1 with every look at it, so that time is over in the midst of the search."""
    looks: list[float] = []

    def clock() -> float:
        looks.append(float(len(looks)))
        return looks[-1]

    monkeypatch.setattr(time, "monotonic", clock)
    (reply,) = model.answer([Job(("I love cats",), as_page=as_page, deadline=5.0)])
    assert reply.status == 503
    assert looks[-1] == 6.0, "not a step more"
    monkeypatch.undo()
    assert model.answer([Job(("I love cats",), as_page=as_page)])[0].status == 200


@pytest.mark.parametrize("as_page", [False, True])
def test_a_search_ends_when_nobody_waits_for_it(model: ServedModel, as_page: bool) -> None:
    looks = iter([False, False, True])
    job = Job(("I love cats",), as_page=as_page)
    (reply,) = model.answer([job], lambda: next(looks))
    assert reply.status == 503
    assert next(looks, None) is None, "not a step more"
    assert model.answer([job])[0].status == 200


def test_attention_that_nobody_waits_for_is_not_computed(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a given target there is no search that could be ended."""
    monkeypatch.setattr(model.translator, "attention", lambda *_: pytest.fail("it was computed"))
    (reply,) = model.answer([Job(("I love cats",), as_page=True, target="cats")], lambda: True)
    assert reply.status == 503


def test_the_attention_page_shows_text_as_text(app: ServingApp) -> None:
    nasty = "</script><u>{{data}}"
    query = f"?text={nasty.replace(' ', '+').replace('<', '%3C')}"
    own, other = run(app, ("GET", "/attention" + query), ("GET", "/attention?text=cats&target=<u>Katzen"))
    for answer in (own, other):
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
        assert b"<u>" not in answer.body
    assert b"&lt;/script&gt;&lt;u&gt;{{data}} " in own.body
    assert own.body.count(b"</script>") == other.body.count(b"</script>")


def test_the_page_runs_its_own_script_and_no_other(app: ServingApp) -> None:
    page, head = run(app, ("GET", "/"), ("HEAD", "/"))
    policy = page.headers["content-security-policy"]
    assert page.status == head.status == 200
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    text = page.body.decode()
    assert text.count("<script>") == text.count("<style>") == 1
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]', text), "everything is in the one file"
    assert not re.findall(r' on\w+="| style="', text), "the policy forbids these"
    assert len(re.findall(r"sha256-[\w+/]{43}=", policy)) == 2


@pytest.mark.parametrize(
    "request_", [("GET", "/"), ("GET", "/health"), ("GET", "/nothing"), post({"text": "cats"}), post({})]
)
def test_every_answer_carries_the_headers_of_safety(app: ServingApp, request_: tuple[Any, ...]) -> None:
    (answer,) = run(app, request_)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert int(answer.headers["content-length"]) == len(answer.body)


def test_a_line_break_at_the_end_is_no_part_of_the_text(app: ServingApp) -> None:
    (broken, plain) = run(app, post({"text": "cats\n"}), post({"text": "cats"}))
    assert broken.content == plain.content


def test_health_and_info(app: ServingApp) -> None:
    health, info = run(app, ("GET", "/health"), ("GET", "/info"))
    assert health.content == {"status": "ok", "workers": 1}
    assert info.content["version"] == "1"
    assert info.content["limits"]["max_texts"] == 3
    assert info.content["limits"]["max_length"] == 40
    assert info.content["limits"]["max_extra_length"] == 50


def test_a_target_may_be_as_long_as_the_limit_and_no_longer(app: ServingApp, model: ServedModel) -> None:
    """The decoder reads the target without its EOS: those are the columns that are drawn."""
    text = "z" * 200
    while (read := len(model.translator.tokenizer.encode_tgt([text])[0]) - 1) > LIMITS.max_attention:
        text = text[:-1]
    assert read == LIMITS.max_attention
    longest, longer = run(app, *(("GET", f"/attention?text=cats&target={one}") for one in (text, text + "zzzz")))
    assert (longest.status, longer.status) == (200, 422)
    assert "the target has" in longer.content["error"]


def test_a_model_that_cannot_translate_fails_at_the_start(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model.try_out()

    def fail(texts: list[str]) -> Iterator[Any]:
        raise InputError("no such precision here")
        yield

    monkeypatch.setattr(model.translator, "translate", fail)
    with pytest.raises(InputError, match="no such precision"):
        model.try_out()


def test_a_start_that_fails_is_told_in_its_own_sentence(tmp_path: Path) -> None:
    worker = ProcessWorker(ModelSettings(str(tmp_path / "nothing")), LIMITS)
    app = ServingApp(Batcher([worker], 8, 0.05, 100, 30), LIMITS, {})
    with pytest.raises(InputError, match="nothing does not exist") as told:
        asyncio.run(app.start())
    assert "process pool" not in str(told.value)


def test_a_worker_that_dies_at_the_start_is_told(model: ServedModel, caplog: pytest.LogCaptureFixture) -> None:
    class Dying(ThreadWorker):
        async def start(self) -> dict[str, Any]:
            raise BrokenExecutor("a process was terminated")

    app = ServingApp(Batcher([Dying(model)], 8, 0.05, 100, 30), LIMITS, {})
    with pytest.raises(InputError, match="the model could not be loaded: a process was terminated"):
        asyncio.run(app.start())
    assert "could not be loaded" in caplog.text


def test_what_is_told_of_the_model_comes_from_its_worker(model: ServedModel) -> None:
    batcher = Batcher([ThreadWorker(model)], max_batch_size=8, batch_timeout=0.05, max_queue=100, timeout=30)
    app = ServingApp(batcher, Limits(max_length=10**6), {"model": {"name": "cats"}})

    async def story() -> Answer:
        await app.start()
        try:
            return await ask(app, "GET", "/info")
        finally:
            await app.close()

    content = asyncio.run(story()).content
    assert content["model"]["name"] == "cats"
    parameters = sum(parameter.numel() for parameter in model.translator.network.parameters())
    assert content["model"]["parameters"] == parameters
    assert content["limits"]["max_length"] == model.translator.max_length == 40


def test_an_engine_without_the_precision_does_not_start(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "bfloat16" in pytest.importorskip("ctranslate2").get_supported_compute_types("cpu"):
        pytest.skip("this processor has bf16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    worker = ProcessWorker(ModelSettings(str(tiny_model), engine="ctranslate2", precision="bf16"), LIMITS)
    with pytest.raises(InputError, match="no precision bf16"):
        asyncio.run(ServingApp(Batcher([worker], 8, 0.05, 100, 30), LIMITS, {}).start())


def test_health_before_there_is_a_worker(app: ServingApp) -> None:
    answer = asyncio.run(ask(app, "GET", "/health"))
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1


BAD_BODIES = [
    (b"", 400, "not JSON"),
    (b"{", 400, "not JSON"),
    (b"\xff\xfe", 400, "UTF-8"),
    (b'{"text": NaN}', 400, "out of range"),
    (b'{"text": ' + b"9" * 1990 + b"}", 422, "should be a string"),
    (b"[" * 1990, 400, "nested too deeply"),
    (b"null", 422, "should be an object"),
    (b'["cats"]', 422, "got a list"),
    (b"{}", 422, "give either"),
    (b'{"text": "a", "texts": ["b"]}', 422, "give either"),
    (b'{"text": 5}', 422, "got a number"),
    (b'{"text": null}', 422, "got null"),
    (b'{"text": ["a"]}', 422, "got a list"),
    (b'{"texts": "a"}', 422, "should be a list"),
    (b'{"texts": []}', 422, "1 to 3 texts"),
    (b'{"texts": ["a", "b", "c", "d"]}', 422, "got 4"),
    (b'{"texts": ["a", {}]}', 422, 'text 2 of "texts" should be a string, got an object'),
    (b'{"text": "\\ud800"}', 422, "surrogate"),
    (b'{"text": "a\\nb"}', 422, "has several lines; send them one by one"),
    (b'{"texts": ["a", "a\\r\\n b"]}', 422, 'text 2 of "texts" has several lines'),
    (b'{"text": "' + b"x" * 700 + b'"}', 422, "at most 640"),
    (b'{"text": "' + b"q z " * 100 + b'"}', 422, "at most 40 are taken"),
    (b'{"text": "a", "n_best": 0}', 422, "between 1 and 4"),
    (b'{"text": "a", "n_best": 5}', 422, "got 5"),
    (b'{"text": "a", "n_best": true}', 422, "whole number"),
    (b'{"text": "a", "n_best": 1.5}', 422, "whole number"),
    (b'{"text": "a", "n_best": ' + b"9" * 500 + b"}", 422, "another number"),
    (b'{"text": "a", "max_extra_length": 51}', 422, "between 0 and 50, the bound of this server, got 51"),
    (b'{"text": "a", "max_extra_length": null}', 422, "whole number, got null"),
    (b'{"text": "a", "no_repeat_ngram_size": -1}', 422, "between 0 and 40"),
    (b'{"text": "a", "no_repeat_ngram_size": "2"}', 422, "whole number, got a string"),
    (b'{"text": "a", "no_unknown": 1}', 422, '"no_unknown" should be true or false, got a number'),
    (b'{"text": "a", "prefix": 5}', 422, '"prefix" should be a string'),
    (b'{"text": "a", "prefix": "b\\nc"}', 422, "several lines"),
    (b'{"text": "a", "prefixes": ["b"]}', 422, '"prefixes" does not go with "text"; give "prefix"'),
    (b'{"texts": ["a"], "prefix": "b"}', 422, '"prefix" does not go with "texts"; give "prefixes"'),
    (b'{"texts": ["a", "b"], "prefixes": ["c"]}', 422, 'as many strings as "texts", 2, got a list of 1'),
    (b'{"texts": ["a", "b"], "prefixes": "cd"}', 422, "2, got a string"),
    (b'{"texts": ["a"], "prefixes": [5]}', 422, 'prefix 1 of "prefixes" should be a string'),
    (b'{"text": "a", "prefix": "b", "attention": true}', 422, "ask for GET /attention with a target"),
    (b'{"text": "a", "attention": 1}', 422, "true or false"),
    (b'{"texts": ["a", "b"], "attention": true}', 422, "one text at a time"),
    (b'{"text": " ", "attention": true}', 422, "empty"),
    (b'{"text": "' + b"q z " * 9 + b'", "attention": true}', 422, "at most 26 are taken to show its attention"),
    (b'{"text": "a", "src_tag": "<2ko>"}', 422, "trained without tags"),
    (b'{"text": "a", "nbest": 2}', 422, "Did you mean 'n_best'?"),
    (b'{"text": "a", "__class__": 2}', 422, "there is no field"),
    (b'{"text": "' + b"x" * 2000 + b'"}', 413, "longer than 2,000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD_BODIES)
def test_a_bad_body_is_told_in_one_sentence(app: ServingApp, body: bytes, status: int, words: str) -> None:
    (answer,) = run(app, ("POST", "/translate", body))
    assert answer.status == status
    assert set(answer.content) == {"error"}
    assert words in answer.content["error"]
    assert "\n" not in answer.content["error"]
    assert "Traceback" not in answer.body.decode()


BAD_REQUESTS: list[tuple[tuple[Any, ...], dict[str, str], int, str]] = [
    (("GET", "/nothing"), {}, 404, "there are /, /translate"),
    (("GET", "/../../etc/passwd"), {}, 404, "no such address"),
    (("GET", "/translate"), {}, 405, "takes POST"),
    (("DELETE", "/"), {}, 405, "takes GET, HEAD"),
    (("OPTIONS", "/translate"), {}, 405, "takes POST"),
    (post({"text": "a"}), {"content_type": "text/plain"}, 415, "application/json"),
    (post({"text": "a"}), {"content_encoding": "gzip"}, 415, "without Content-Encoding"),
    (post({"text": "a"}), {"content_length": "9" * 30}, 413, "longer than"),
    (post({"text": "a"}), {"host": "evil.example"}, 421, "Host header"),
    (post({"text": "a"}), {"origin": "http://evil.example"}, 403, "other sites"),
    (post({"text": "a"}), {"origin": "null"}, 403, "other sites"),
    (("GET", "/attention?text=a"), {"sec_fetch_site": "cross-site", "sec_fetch_dest": "image"}, 403, "other sites"),
    (("GET", "/attention"), {}, 422, "has no text"),
    (("GET", "/attention?text=+"), {}, 422, "empty"),
    (("GET", "/attention?text=%ff"), {}, 400, "not UTF-8"),
    (("GET", "/attention?text=a&file=b"), {}, 422, "there is no field"),
    (("GET", "/attention?text=a&n_best=5"), {}, 422, "between 1 and 4"),
    (("GET", "/attention?text=a&n_best=-1"), {}, 422, "a whole number"),
    (("GET", "/attention?text=a&n_best=%D9%A3"), {}, 422, "a whole number"),
    (("GET", "/attention?text=a&n_best="), {}, 422, "a whole number"),
    (("GET", "/attention?" + "a=b&" * 20), {}, 400, "query"),
    (("GET", "/attention?text=" + "q+z+" * 9), {}, 422, "at most 26"),
    (("GET", "/attention?text=cats&target=" + "q+z+" * 9), {}, 422, "at most 26"),
]


@pytest.mark.parametrize(("request_", "headers", "status", "words"), BAD_REQUESTS)
def test_a_bad_request_is_told_in_one_sentence(
    app: ServingApp, request_: tuple[Any, ...], headers: dict[str, str], status: int, words: str
) -> None:
    (answer,) = run(app, request_, **headers)
    assert answer.status == status
    assert words in answer.content["error"]
    if status == 405:
        assert answer.headers["allow"] in answer.content["error"]


def test_a_page_of_ones_own_origin_may_ask(app: ServingApp) -> None:
    (answer,) = run(
        app, post({"text": "cats"}), host="localhost:80", origin="http://localhost:80", sec_fetch_site="same-origin"
    )
    assert answer.status == 200


@pytest.mark.parametrize("host", ["localhost", "translate.example", "translate.example:443"])
@pytest.mark.parametrize("origin", ["https://translate.example", "https://Translate.example:8443"])
def test_pages_of_a_proxy_that_was_named_may_ask(model: ServedModel, host: str, origin: str) -> None:
    batcher = Batcher([ThreadWorker(model)], max_batch_size=8, batch_timeout=0.05, max_queue=100, timeout=30)
    app = ServingApp(batcher, LIMITS, {"version": "1"}, hosts={"localhost"}, public_names=["translate.example"])
    body = post({"text": "cats"})
    (good,) = run(app, body, host=host, origin=origin, sec_fetch_site="same-origin")
    assert good.status == 200
    for headers, status in (
        ({"host": host, "origin": "https://evil.example"}, 403),
        ({"host": host, "origin": "https://translate.example.evil.example"}, 403),
        ({"host": "evil.example", "origin": origin}, 421),
        ({"host": host, "origin": origin, "sec_fetch_site": "cross-site"}, 403),
    ):
        (bad,) = run(app, body, **headers)
        assert bad.status == status


def test_a_job_that_the_model_fails_on_does_not_harm_its_neighbours(
    app: ServingApp, model: ServedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode = model.translator._encode

    def fail_on_cats(texts: list[str], *rest: Any) -> list[list[int]]:
        if any("cats" in text for text in texts):
            raise RuntimeError("secret detail")
        return encode(texts, *rest)

    monkeypatch.setattr(model.translator, "_encode", fail_on_cats)
    bad, good = run(app, post({"text": "I love cats"}), post({"text": "the dog sleeps"}))
    assert (bad.status, good.status) == (500, 200)
    assert "secret" not in bad.body.decode()
    assert "secret detail" in caplog.text


def test_the_json_is_utf8(app: ServingApp) -> None:
    (answer,) = run(app, post({"text": "고양이"}))
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert "고양이" in answer.body.decode()
    assert json.loads(answer.body)["results"][0]["source"] == "고양이"


def test_ctranslate2_serves_the_same_translations(
    app: ServingApp, model: ServedModel, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ctranslate2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine = ServedModel.load(ModelSettings(str(tiny_model), max_length=40, engine="ctranslate2"), LIMITS)
    batcher = Batcher([ThreadWorker(engine)], max_batch_size=8, batch_timeout=0.05, max_queue=100, timeout=30)
    other = ServingApp(batcher, LIMITS, {"version": "1"}, hosts={"localhost"})
    assert (engine.describe()["attention"], model.describe()["attention"]) == (False, True)
    expected, found = (run(one, *(post({"text": text}) for text in SENTENCES)) for one in (app, other))
    for one, two in zip(expected, found, strict=True):
        mine, theirs = (answer.content["results"][0]["translations"][0] for answer in (one, two))
        assert mine["text"] == theirs["text"]
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-3)
    for unknown in ({"attention": True}, {"prefix": "나는"}):
        (refused,) = run(other, post({"text": "I love cats", **unknown}))
        assert refused.status == 422
    short = post({"text": "I love cats", "max_extra_length": 3})
    mine, theirs = (texts_of(run(one, short)[0]) for one in (app, other))
    assert mine == theirs != texts_of(expected[0])
