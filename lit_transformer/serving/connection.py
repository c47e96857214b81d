"""uvicorn with what it lacks: bounds on slow and on many connections, errors in JSON, a quiet end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Callable, Iterator

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lit_transformer.serving.app import ServingApp

_SENDING_SECONDS = 60  # in which a client has to read its answer
_MAX_CONNECTIONS = 1000
_GLANCE_SECONDS = 0.1  # between two looks whether the server shall stop while it loads the model
_KEEP_ALIVE_SECONDS = 15  # in which the head of the first or the next request has to arrive
_CLOSING_SECONDS = 10  # in which requests under way are finished when the server is stopped


class _Connection(H11Protocol):
    """One client: it has a few seconds to say what it wants, and malformed HTTP is answered in JSON."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a client in, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > _MAX_CONNECTIONS:
            self._say(503, "there are too many connections; try again later", [(b"retry-after", b"5")])
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the client."""
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Reads what has come, and gives the rest of a head a few seconds."""
        super().handle_events()
        if self.conn.their_state is h11.IDLE:
            self._wait_for_head()
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Waits for the next request, but not for ever for a client that does not read its answer."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(_SENDING_SECONDS, self._drop_unread)

    def _drop_unread(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Malformed HTTP."""
        self._say(400, "this is not valid HTTP/1.1", [])

    def _wait_for_head(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(_KEEP_ALIVE_SECONDS, self._lose_patience)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._patience = None
        if self.conn.our_state is h11.IDLE and self.cycle is None:
            self._say(408, "the head of the request did not arrive in time", [])
        else:
            self.transport.close()

    def _say(self, status: int, sentence: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Answers without the application and hangs up."""
        body = json.dumps({"error": sentence}).encode()
        headers = [
            (b"content-type", b"application/json; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"connection", b"close"),
            *headers,
        ]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer has begun already
            response = h11.Response(status_code=status, headers=headers)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class QuietServer(uvicorn.Server):
    """A uvicorn server that ends without a traceback and lets its caller clean up.

    Args:
        app: The application, which is started before the first request and closed after the last.
        announce: Called once requests are taken.
    """

    def __init__(self, app: ServingApp, announce: Callable[[], None]) -> None:
        self._app, self._announce = app, announce
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen once the application is ready, unless somebody stops it before.

        Raises:
            InputError: If it cannot be started.
        """
        loading = asyncio.ensure_future(self._app.start())
        while not self.should_exit and not loading.done():
            await asyncio.wait({loading}, timeout=_GLANCE_SECONDS)
        if self.should_exit and not loading.done():
            loading.cancel()  # which ends the workers
            await asyncio.gather(loading, return_exceptions=True)
            return
        await loading
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends once the requests under way are answered."""
        await super().shutdown(sockets)
        await self._app.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop the server; uvicorn would raise them again at the end."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
