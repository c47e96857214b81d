"""One HTTP request as it comes in, read within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from lit_transformer.serving.requests import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_BODY_SECONDS = 10.0  # in which a body has to arrive
_DRAIN_SECONDS = 1.0  # that a body which nobody wants may take, so that its sender hears why
_DRAIN_BYTES = 16 << 20


class ClientGoneError(Exception):
    """The client has closed the connection."""


class Incoming:
    """A request: where it goes, its headers, and its body as it arrives.

    Args:
        scope: ASGI's description of the request.
        receive: ASGI's source of the body.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self.query: bytes = scope["query_string"]
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self._receive = receive
        self._is_read = self.headers.get("content-length", "0") == "0" and "transfer-encoding" not in self.headers

    async def json_body(self, max_body: int) -> bytes:
        """The body, if it is JSON of at most ``max_body`` bytes and arrives in time.

        Raises:
            RequestError: If it is not (415, 413, 408).
            ClientGoneError: If the client hangs up.
        """
        if self.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send the body with Content-Type: application/json")
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send the body as it is, without Content-Encoding")
        declared = self.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > max_body:
            raise _too_long(max_body)
        try:
            return await asyncio.wait_for(self._chunks(max_body), _BODY_SECONDS)
        except TimeoutError:
            sentence = f"the body did not arrive within {_BODY_SECONDS:g} seconds"
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, sentence) from None

    async def _chunks(self, max_body: int) -> bytes:
        body = bytearray()
        while not self._is_read:
            body += await self._chunk()
            if len(body) > max_body:
                raise _too_long(max_body)
        return bytes(body)

    async def _chunk(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._is_read = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk

    async def drain(self) -> bool:
        """Reads the rest of a body that was refused, up to a bound; whether that was all of it.

        Hanging up on a client that still sends would reset the connection before it has read the answer.
        """
        try:
            await asyncio.wait_for(self._discard(), _DRAIN_SECONDS)
        except (TimeoutError, ClientGoneError):
            return False
        return self._is_read

    async def _discard(self) -> None:
        size = 0
        while not self._is_read and size < _DRAIN_BYTES:
            size += len(await self._chunk())

    async def disconnected(self) -> None:
        """Comes back when the client has closed the connection."""
        while (message := await self._receive())["type"] != "http.disconnect":
            self._is_read = self._is_read or not message.get("more_body", False)


def _too_long(max_body: int) -> RequestError:
    sentence = f"the body is longer than {max_body:,} bytes; send fewer texts in one request"
    return RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence)
