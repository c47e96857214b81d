"""Asks an ASGI application without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from running_server import Answer

from lit_transformer.serving.app import ServingApp
from lit_transformer.serving.model import ServedModel
from lit_transformer.serving.requests import Job, Reply


class ThreadWorker:
    """The model in a thread of the test process."""

    def __init__(self, model: ServedModel) -> None:
        self.model, self.batches, self.pool = model, [], ThreadPoolExecutor(1)  # type: ignore[var-annotated]

    async def start(self) -> dict[str, Any]:
        self.pool = ThreadPoolExecutor(1)
        return self.model.describe()

    async def answer(self, jobs: Sequence[Job]) -> list[Reply]:
        self.batches.append(len(jobs))
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.model.answer, list(jobs))

    def stop(self) -> None:
        self.pool.shutdown(wait=True)


async def ask(app: ServingApp, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """One request to a running application."""
    path, _, query = path.partition("?")
    given = {"host": "localhost", **({"content-type": "application/json"} if body is not None else {})}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        given.setdefault("content-length", str(len(body)))
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    chunks = [body[:9], body[9:]] if body else []
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if chunks:
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}
        await asyncio.Event().wait()  # the client waits for its answer
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, rest = sent
    head = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], head, rest["body"])


def run(app: ServingApp, *requests: tuple[Any, ...], **headers: str) -> list[Answer]:
    """Starts the application, asks for all of it at the same time, and stops it."""

    async def everything() -> list[Answer]:
        await app.batcher.start()
        try:
            return await asyncio.wait_for(asyncio.gather(*(ask(app, *request, **headers) for request in requests)), 60)
        finally:
            await app.batcher.close()

    return asyncio.run(everything())


def post(content: Any) -> tuple[str, str, bytes]:
    """A request to translate."""
    return "POST", "/translate", json.dumps(content).encode()
