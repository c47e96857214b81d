"""What a client may ask for, checked field by field before anything is computed."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qsl

from lit_transformer.cli import did_you_mean
from lit_transformer.lines import has_half_a_character, has_several_lines

_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
_CHARACTERS_PER_TOKEN = 16  # more than any subword tokenizer makes of a sentence; bounds what is tokenised at all
_FIELDS = (
    *("text", "texts", "n_best", "src_tag", "attention", "prefix", "prefixes"),
    *("max_extra_length", "no_repeat_ngram_size", "no_unknown"),
)
_CANDIDATES = 4  # on the attention page, unless another number is asked for


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for.

    Args:
        max_length: Longest text, in source tokens, EOS included.
        max_texts: Texts in one request.
        max_n_best: Translations of each text.
        max_extra_length: Tokens that a translation may have more than its source.
        max_body: Bytes of a request's body.
        max_attention: Longest text whose attention is shown, in source tokens: its size grows with the square.
        max_candidates: Tokens of all candidates together whose attention one page shows; those of the best it always
            shows.
    """

    max_length: int = 512
    max_texts: int = 64
    max_n_best: int = 4
    max_extra_length: int = 50
    max_body: int = 1 << 20
    max_attention: int = 100
    max_candidates: int = 400

    @property
    def max_characters(self) -> int:
        """Longest text in characters, far above ``max_length`` tokens of any language."""
        return _CHARACTERS_PER_TOKEN * self.max_length


class RequestError(Exception):
    """A request that is not answered, with the HTTP status and one sentence that says why and what to do.

    Args:
        status: The HTTP status, 400 or above.
        sentence: For the client.
        headers: Further HTTP headers, such as ``Retry-After``.
    """

    def __init__(self, status: HTTPStatus, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}


class Job(NamedTuple):
    """A request that has passed its checks.

    ``as_page`` asks for the attention page of ``texts[0]`` and of ``target``, or of the model's own translation if that
    is None. Otherwise the answer is JSON, with the attention weights if ``attention`` is set. The translations begin
    with ``prefixes``, one for each text, or are free if there are none. An empty ``src_tag`` is none at all; where it
    is None, and what is None of the search, is as the server has it. After ``deadline``, in seconds of
    ``time.monotonic``, which the processes of a machine share, nobody waits for the answer.
    """

    texts: tuple[str, ...]
    n_best: int = 1
    src_tag: str | None = None
    attention: bool = False
    as_page: bool = False
    target: str | None = None
    prefixes: tuple[str, ...] = ()
    max_extra_length: int | None = None
    no_repeat_ngram_size: int | None = None
    no_unknown: bool | None = None
    deadline: float = math.inf

    @property
    def wishes(self) -> tuple[int | bool | None, ...]:
        """What the search is to be like beside ``n_best``; jobs that differ in it are not translated together."""
        return self.max_extra_length, self.no_repeat_ngram_size, self.no_unknown


class Reply(NamedTuple):
    """An answer, ready to be sent."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def json_reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """An answer in JSON."""
    body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Reply(status, "application/json; charset=utf-8", body, tuple((headers or {}).items()))


def error_reply(refusal: RequestError) -> Reply:
    """The answer that tells a client why there is none."""
    return json_reply({"error": refusal.sentence}, refusal.status, refusal.headers)


def translation_job(body: bytes, limits: Limits) -> Job:
    """The job in the body of ``POST /translate``.

    Raises:
        RequestError: If the body is no JSON (400), or asks for something that there is not (422).
    """
    return job_of(_content(body), limits)


def job_of(fields: Any, limits: Limits) -> Job:
    """The job that the content of a body describes.

    Raises:
        RequestError: If it asks for something that there is not (422).
    """
    if not isinstance(fields, dict):
        _refuse(f'the body should be an object such as {{"text": "I love cats"}}, got {_kind(fields)}')
    _refuse_unknown(list(fields), _FIELDS)
    if ("text" in fields) == ("texts" in fields):
        _refuse('give either "text", one string, or "texts", a list of strings')
    texts = fields["texts"] if "texts" in fields else [fields["text"]]
    if not isinstance(texts, list):
        _refuse(f'"texts" should be a list of strings, got {_kind(texts)}')
    if not 1 <= len(texts) <= limits.max_texts:
        _refuse(f'"texts" should hold 1 to {limits.max_texts} texts, got {len(texts)}')
    for number, text in enumerate(texts, 1):
        _check_text(f'text {number} of "texts"' if "texts" in fields else '"text"', text, limits)
    attention, src_tag = _truth("attention", fields.get("attention", False)), fields.get("src_tag")
    if attention and len(texts) != 1:
        _refuse(f"attention is given for one text at a time, got {len(texts)}; ask for them one by one")
    if attention and not texts[0].strip():
        _refuse("the text is empty; give a sentence to look at")
    if src_tag is not None:
        _check_text('"src_tag"', src_tag, limits)
    return Job(
        tuple(text.strip("\r\n") for text in texts),
        _n_best(fields.get("n_best", 1), limits),
        src_tag,
        attention,
        prefixes=_prefixes(fields, len(texts), limits),
        **_of_search(fields, limits),
    )


def attention_job(query: bytes, limits: Limits) -> Job:
    """The job in the query of ``GET /attention?text=...``, with ``target``, ``src_tag`` and ``n_best`` if one likes.

    Raises:
        RequestError: If the query is no UTF-8 text (400), or asks for something that there is not (422).
    """
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=8)
    except ValueError:
        raise RequestError(HTTPStatus.BAD_REQUEST, "the query is not UTF-8 text in percent encoding") from None
    fields = dict(pairs)
    _refuse_unknown(list(fields), ("text", "target", "src_tag", "n_best"))
    if "text" not in fields:
        _refuse("the query has no text; ask for /attention?text=...")
    for name, value in fields.items():
        _check_text(f'"{name}"', value, limits)
    if not fields["text"].strip():
        _refuse("the text is empty; give a sentence to look at")
    n_best = _n_best(_whole(fields["n_best"]), limits) if "n_best" in fields else min(_CANDIDATES, limits.max_n_best)
    return Job(
        (fields["text"].strip("\r\n"),),
        n_best,
        fields.get("src_tag"),
        as_page=True,
        target=fields.get("target", "").strip("\r\n") or None,
    )


def _content(body: bytes) -> Any:
    """What the JSON of a body holds."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_not_a_number)
    except UnicodeDecodeError:
        raise RequestError(HTTPStatus.BAD_REQUEST, "the body is not valid UTF-8; send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise RequestError(
            HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error.msg} at character {error.pos}"
        ) from None
    except ValueError:  # whole numbers of thousands of digits, and NaN
        raise RequestError(HTTPStatus.BAD_REQUEST, "the body holds a number that is out of range") from None
    except RecursionError:
        raise RequestError(HTTPStatus.BAD_REQUEST, "the body is nested too deeply") from None


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_unknown(names: list[str], allowed: tuple[str, ...]) -> None:
    unknown = next((name for name in names if name not in allowed), None)
    if unknown is not None:
        shown = json.dumps(unknown[:40])
        hint = did_you_mean(f"Option '{unknown[:40]}' is not accepted", allowed)
        _refuse(f"there is no field {shown}; the fields are {', '.join(allowed)}.{hint}".removesuffix("."))


def _prefixes(fields: dict[str, Any], count: int, limits: Limits) -> tuple[str, ...]:
    """What the translations of ``count`` texts must begin with; nothing if that is not said."""
    name, other = ("prefix", "prefixes") if "text" in fields else ("prefixes", "prefix")
    if other in fields:
        _refuse(f'"{other}" does not go with "{"text" if name == "prefix" else "texts"}"; give "{name}"')
    if name not in fields:
        return ()
    prefixes = [fields[name]] if name == "prefix" else fields[name]
    if not isinstance(prefixes, list) or len(prefixes) != count:
        got = f"a list of {len(prefixes)}" if isinstance(prefixes, list) else _kind(prefixes)
        _refuse(f'"prefixes" should be a list of as many strings as "texts", {count}, got {got}')
    for number, prefix in enumerate(prefixes, 1):
        _check_text('"prefix"' if name == "prefix" else f'prefix {number} of "prefixes"', prefix, limits)
    if not any(prefix.strip() for prefix in prefixes):
        return ()
    if fields.get("attention"):
        _refuse(f'attention is not given with a prefix; leave "{name}" out, or ask for GET /attention with a target')
    return tuple(prefixes)


def _of_search(fields: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """The settings of the search that these texts are to have instead of the server's."""
    most = {
        "max_extra_length": (limits.max_extra_length, "the bound"),
        "no_repeat_ngram_size": (limits.max_length, "the longest text"),
    }
    found: dict[str, Any] = {
        name: _number(name, fields[name], 0, *bound) for name, bound in most.items() if name in fields
    }
    if "no_unknown" in fields:
        found["no_unknown"] = _truth("no_unknown", fields["no_unknown"])
    return found


def _n_best(value: Any, limits: Limits) -> int:
    return _number("n_best", value, 1, limits.max_n_best, "the beam size")


def _number(name: str, value: Any, least: int, most: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(f'"{name}" should be a whole number, got {_kind(value)}')
    if not least <= value <= most:
        shown = str(value) if abs(value) < 10**9 else "another number"
        _refuse(f'"{name}" should lie between {least} and {most}, {what} of this server, got {shown}')
    return int(value)


def _truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _refuse(f'"{name}" should be true or false, got {_kind(value)}')
    return bool(value)


def _whole(text: str) -> int | str:
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else text


def _check_text(name: str, text: Any, limits: Limits) -> None:
    if not isinstance(text, str):
        _refuse(f"{name} should be a string, got {_kind(text)}")
    if len(text) > limits.max_characters:
        _refuse(f"{name} has {len(text)} characters; at most {limits.max_characters} are taken, so cut it")
    if has_several_lines(text):
        _refuse(f"{name} has several lines; send them one by one")
    if has_half_a_character(text):
        _refuse(f"{name} holds half of a character (a lone surrogate), which is no text")


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), "something else")


def _refuse(sentence: str) -> NoReturn:
    raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)
