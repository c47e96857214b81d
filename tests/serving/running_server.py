"""``lit-transformer serve`` as a process, and clients for it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class RunningServer:
    """A server on a free port of loopback, until the end of the ``with`` block."""

    def __init__(self, checkpoint: Path | str, *options: str) -> None:
        command = [sys.executable, "-m", "lit_transformer", "serve", str(checkpoint), "--port", "0", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.errors: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        found = re.search(r"http://(\S+):(\d+)/", self.first_line)
        if not found:
            self.process.wait()
            self._listener.join()
            raise AssertionError(f"the server did not start: {self.first_line} {self.stderr}")
        self.host, self.port = found[1].strip("[]"), int(found[2])

    def _listen(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    @property
    def stderr(self) -> str:
        """What it has complained about so far."""
        return "".join(self.errors)

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{self.host}:{self.port}/"

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 60, **headers: str) -> Answer:
        """One request; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.request(method, path, raw, {**sent, **headers})
            response = connection.getresponse()
            lower = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, lower, response.read())
        finally:
            connection.close()

    def translate(self, **fields: Any) -> Any:
        """The results of ``POST /translate``, which must succeed."""
        answer = self.ask("POST", "/translate", fields)
        assert answer.status == 200, answer
        return answer.content["results"]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(timeout=30)
        self._listener.join()
        return status

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self.process.kill()
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()
