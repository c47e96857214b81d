"""The HTTP side: which addresses there are, what a request must look like, what every answer carries."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import Collection
from dataclasses import replace
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from lit_transformer.interfaces import InputError
from lit_transformer.serving.batcher import Batcher
from lit_transformer.serving.incoming import ClientGoneError, Incoming, Receive, Scope, Send
from lit_transformer.serving.requests import (
    Job,
    Limits,
    Reply,
    RequestError,
    attention_job,
    error_reply,
    json_reply,
    translation_job,
)

logger = logging.getLogger(__name__)

_METHODS = {
    "/": ("GET", "HEAD"),
    "/translate": ("POST",),
    "/attention": ("GET", "HEAD"),
    "/health": ("GET", "HEAD"),
    "/info": ("GET", "HEAD"),
}
_SILENT = "default-src 'none'; frame-ancestors 'self'"  # the page reads in its frame why there is no attention
_ATTENTION = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'self'"
_FOREIGN = "pages of other sites may not use this server; behind a proxy, start it with --public_name"
_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)


class ServingApp:
    """The server as an ASGI application.

    It takes no lifespan events: whoever runs it awaits ``start`` before the first request and ``close`` after the last.

    Args:
        batcher: Translates.
        limits: What one request may ask for.
        info: What ``/info`` tells beside the limits; ``start`` adds what the workers tell about their ``"model"``.
        hosts: Names by which the server may be called in the ``Host`` header; None for any. It keeps pages of other
            sites from reaching a server on loopback through a name that they make point there.
        public_names: Names of a proxy before the server, whose pages may use it whatever ``Host`` it passes on.
    """

    def __init__(
        self,
        batcher: Batcher,
        limits: Limits,
        info: dict[str, Any],
        hosts: Collection[str] | None = None,
        public_names: Collection[str] = (),
    ) -> None:
        self.batcher = batcher
        self.limits = limits
        self.info = info
        self.public_names = frozenset(name.lower() for name in public_names)
        self.hosts = None if hosts is None else self.public_names | {host.lower() for host in hosts}
        page = (files("lit_transformer") / "serving" / "page.html").read_text(encoding="utf-8")
        self._page = Reply(
            200, "text/html; charset=utf-8", page.encode(), (("Content-Security-Policy", _policy(page)),)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "http":
            request = Incoming(scope, receive)
            reply = await self._reply(request)
            if reply is not None:
                await _send(send, reply, is_last=not await request.drain())

    async def start(self) -> None:
        """Comes back when requests can be answered.

        Raises:
            InputError: If the model cannot be loaded, or cannot translate as it was asked to.
        """
        try:
            about = (await self.batcher.start())[0]
        except InputError:
            raise
        except Exception as error:
            logger.error("the model could not be loaded", exc_info=error)
            raise InputError(f"the model could not be loaded: {error}") from None
        self.limits = replace(self.limits, max_length=about["max_length"])
        told = {name: value for name, value in about.items() if name != "max_length"}
        self.info = {**self.info, "model": {**self.info["model"], **told}}

    async def close(self) -> None:
        """Ends the workers; requests that still wait are refused."""
        await self.batcher.close()

    async def _reply(self, request: Incoming) -> Reply | None:
        """The answer, whatever happens; None if the client has gone."""
        try:
            return await self._answer(request)
        except RequestError as refusal:
            return error_reply(refusal)
        except ClientGoneError:
            return None
        except Exception:
            logger.exception("a request failed")
            return error_reply(RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log says why"))

    async def _answer(self, request: Incoming) -> Reply:
        path, method = request.path, request.method
        self._check_origin(request.headers)
        if path not in _METHODS:
            raise RequestError(HTTPStatus.NOT_FOUND, f"there is no such address; there are {', '.join(_METHODS)}")
        allowed = ", ".join(_METHODS[path])
        if method not in _METHODS[path]:
            raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {allowed}", {"Allow": allowed})
        if path == "/":
            return self._page
        if path == "/health":
            return self._health()
        if path == "/info":
            return json_reply({**self.info, "limits": self._limits()})
        if path == "/attention":
            job = attention_job(request.query, self.limits)
        else:
            job = translation_job(await request.json_body(self.limits.max_body), self.limits)
        return await self._submit(job, request)

    def _check_origin(self, headers: dict[str, str]) -> None:
        """Refuses names that are not ours, and what pages of other sites ask for."""
        host = headers.get("host", "").lower()
        if self.hosts is not None and _without_port(host) not in self.hosts:
            sentence = "this server does not go by the name in the Host header; use its own address, or --public_name"
            raise RequestError(HTTPStatus.MISDIRECTED_REQUEST, sentence)
        origin = re.sub(r"^https?://", "", headers.get("origin", host).lower())
        if origin != host and _without_port(origin) not in self.public_names:
            raise RequestError(HTTPStatus.FORBIDDEN, _FOREIGN)
        is_foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if is_foreign and headers.get("sec-fetch-dest") != "document":  # a link to the page is fine
            raise RequestError(HTTPStatus.FORBIDDEN, _FOREIGN)

    async def _submit(self, job: Job, request: Incoming) -> Reply:
        """The batcher's reply, unless the client goes first."""
        answer = asyncio.ensure_future(self.batcher.submit(job))
        gone = asyncio.ensure_future(request.disconnected())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientGoneError
            return answer.result()
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    def _health(self) -> Reply:
        if self.batcher.num_ready:
            return json_reply({"status": "ok", "workers": self.batcher.num_ready})
        return json_reply({"status": "starting", "workers": 0}, 503, {"Retry-After": "5"})

    def _limits(self) -> dict[str, Any]:
        batcher, limits = self.batcher, self.limits
        return {
            "max_length": limits.max_length,
            "max_characters": limits.max_characters,
            "max_texts": limits.max_texts,
            "max_n_best": limits.max_n_best,
            "max_extra_length": limits.max_extra_length,
            "max_attention": limits.max_attention,
            "max_candidates": limits.max_candidates,
            "max_body": limits.max_body,
            "max_queue": batcher.max_queue,
            "timeout": batcher.timeout,
        }


async def _send(send: Send, reply: Reply, is_last: bool) -> None:
    """Sends an answer with the headers that every answer carries; the last one of a connection says so."""
    headers = [("Content-Type", reply.content_type), ("Content-Length", str(len(reply.body))), *_HEADERS]
    if not any(name == "Content-Security-Policy" for name, _ in reply.headers):
        policy = _ATTENTION if reply.content_type.startswith("text/html") else _SILENT
        headers.append(("Content-Security-Policy", policy))
    if is_last:
        headers.append(("Connection", "close"))
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (*headers, *reply.headers)]
    await send({"type": "http.response.start", "status": reply.status, "headers": raw})
    await send({"type": "http.response.body", "body": reply.body})


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host)


def _policy(page: str) -> str:
    """A content security policy under which exactly the page's own style and script run."""
    allowed = {
        kind: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.S)
        )
        for kind in ("style", "script")
    }
    return (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; img-src data:; "
        "connect-src 'self'; frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
