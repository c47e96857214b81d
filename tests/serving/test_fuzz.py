"""Ten thousand and more malformed requests, and afterwards the server translates as before."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer

pytestmark = pytest.mark.slow
COUNT = int(os.environ.get("FUZZ_REQUESTS", "10500"))
PATIENCE = 1.5  # seconds without an answer, after which a client hangs up
SLOW = 24  # clients that send one byte in a while, meanwhile
Raw = list[bytes]


def http(
    body: bytes, *, method: str = "POST", path: str = "/translate", extra: str = "", length: int | None = None
) -> bytes:
    """A request, well-formed around its body."""
    size = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}{extra}Content-Length: {size}\r\n\r\n".encode("latin-1") + body


LETTERS = '\0\t\n"<\\\x7f\u3131\u202e\U0001f600'
STRINGS = ["__proto__", "../../etc/passwd", "{{data}}", "<script>alert(1)</script>", "%s%n", "' OR 1=1"]
METHODS = ["POST", "GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "HEAD", "BREW", "X" * 500, ""]
PATHS = [
    *("/", "//", "/translate/", "/translate?x=1", "/../../etc/passwd", "/%00", "/%ff%fe", "*", "http://evil/"),
    *("/attention?text=%ff", "/attention", "/docs", "/.git/config"),
]
PATHS += ["/" + "a" * 9000, "/attention?text=" + "%EA%B3%A0" * 300, "/attention?" + "&" * 500]
EXTRAS = [
    *("Transfer-Encoding: chunked\r\n", "Content-Length: -5\r\n", "Content-Length: abc\r\n", "Host: evil\r\n"),
    *("Expect: 100-continue\r\n", "Upgrade: websocket\r\nConnection: Upgrade\r\n", "X: " + "y" * 70_000 + "\r\n"),
    *("Content-Encoding: gzip\r\n", "Origin: http://evil\r\n", " folded: header\r\n", "A:b\r\n" * 300),
]
CHUNKED = b"POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"


def strange_value(draw: random.Random, depth: int = 0) -> Any:
    """Something that JSON can hold."""
    if depth < 3 and draw.random() < 0.4:
        if draw.random() < 0.5:
            return [strange_value(draw, depth + 1) for _ in range(draw.randint(0, 5))]
        return {str(strange_value(draw, 9)): strange_value(draw, depth + 1) for _ in range(draw.randint(0, 4))}
    strings = [draw.choice(STRINGS), "".join(draw.choices(LETTERS, k=draw.randint(0, 30)))]
    numbers = [0, -1, 2**31, -(2**63), 10**400, 1.5, 1e308, -0.0]
    return draw.choice([None, True, False, draw.choice(numbers), *strings])


def wrong_fields(draw: random.Random) -> Raw:
    fields = ["text", "texts", "n_best", "src_tag", "attention", "texst", "", "\u0000", "constructor"]
    return [http(json.dumps({name: strange_value(draw) for name in draw.sample(fields, draw.randint(0, 5))}).encode())]


def no_json(draw: random.Random) -> Raw:
    choices: list[Callable[[], bytes]] = [
        lambda: b"[" * draw.randint(1, 200_000),
        lambda: b'{"a":' * draw.randint(1, 50_000),
        lambda: b'{"text": ' + b"9" * draw.randint(1, 20_000) + b"}",
        lambda: b'{"n_best": 1e999999, "text": "a"}',
        lambda: b'{"text": NaN}',
        lambda: draw.randbytes(draw.randint(0, 300)),
        lambda: b'{"text": "' + draw.randbytes(40) + b'"}',
        lambda: b'{"text": "\\ud800\\ud800"}',
        lambda: '{"text": "a"}'.encode("utf-16"),
        lambda: b"\xef\xbb\xbf" + b'{"text": 1}',
        lambda: b"",
    ]
    return [http(draw.choice(choices)())]


def mutated(draw: random.Random) -> Raw:
    """A good request with some bytes changed, left out or doubled, anywhere in it."""
    raw = bytearray(http(b'{"texts": ["I love cats", "the dog"], "n_best": 2, "attention": false}'))
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(raw))
        change = draw.random()
        if change < 0.5:
            raw[place] = draw.randrange(256)
        elif change < 0.75:
            del raw[place : place + draw.randint(1, 8)]
        else:
            raw[place:place] = raw[place : place + draw.randint(1, 30)]
    return [bytes(raw)]


def wrong_heads(draw: random.Random) -> Raw:
    path = draw.choice(["/translate", *PATHS])
    return [http(b'{"text": "a"}', method=draw.choice(METHODS), path=path, extra=draw.choice(["", *EXTRAS]))]


def truncated(draw: random.Random) -> Raw:
    """A request that ends too early: the client hangs up in the middle."""
    raw = http(b'{"text": "I love cats"}')
    return [raw[: draw.randrange(1, len(raw))]]


def wrong_lengths(draw: random.Random) -> Raw:
    body = b'{"text": "I love cats"}'
    return [http(body, length=draw.choice([0, 1, len(body) - 1, 10**7, 10**18, 2**64]))]


def chunked(draw: random.Random) -> Raw:
    pieces = [
        b"5\r\nhello\r\n",
        b"zz\r\n",
        b"-1\r\n",
        b"f" * 16 + b"\r\n",
        b"0\r\n\r\n",
        b"5\r\nhel",
        b"1\r\n[\r\n" * 3000,
    ]
    return [CHUNKED + b"\r\n\r\n", *draw.choices(pieces, k=draw.randint(1, 4))]


def too_much(draw: random.Random) -> Raw:
    texts = ["q " * 5000, "\u0001" * 900, "x" * 1_200_000]
    kinds = [{"texts": ["a"] * 500}, {"text": "a", "n_best": 99}, *({"text": text} for text in texts)]
    return [http(json.dumps(draw.choice(kinds)).encode())]


def noise(draw: random.Random) -> Raw:
    return [draw.randbytes(draw.randint(1, 2000))]


def pipelined(draw: random.Random) -> Raw:
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return [get * draw.randint(2, 30) + draw.choice([b"", noise(draw)[0], b"GET"])]


KINDS: list[tuple[Callable[[random.Random], Raw], int]] = [
    (wrong_fields, 30), (no_json, 15), (mutated, 20), (wrong_heads, 15), (truncated, 6),
    (wrong_lengths, 4), (chunked, 4), (too_much, 2), (noise, 6), (pipelined, 2),
]  # fmt: skip


def exchange(server: RunningServer, pieces: Raw) -> bytes:
    """Sends the pieces and reads all that comes; hangs up on the sending side if nothing comes for a while."""
    received = b""
    with socket.create_connection((server.host, server.port), timeout=40) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            connection.settimeout(PATIENCE)
            while True:
                try:
                    if not (chunk := connection.recv(65536)):
                        return received
                    received += chunk
                except TimeoutError:
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(40)
        except (BrokenPipeError, ConnectionResetError):  # the server may hang up on nonsense, but not keep silent
            return received


def check(answer: bytes) -> int:
    """The status of an answer, which is HTTP and holds nothing that is for the log alone; 0 if there was none."""
    for word in (b"Traceback", b'File "', b"site-packages", b"root:x:0"):
        assert word not in answer, answer[:2000]
    if not answer:
        return 0
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    status = int(answer[9:12])
    assert status < 500 or status == 503, answer[:2000]
    head, _, body = answer.partition(b"\r\n\r\n")
    if status >= 400 and body and answer.count(b"HTTP/1.1 ") == 1 and b"chunked" not in head:
        assert set(json.loads(body)) == {"error"}, answer[:2000]
    return status


def slow_loris(server: RunningServer, stop: Callable[[], bool]) -> Iterator[str]:
    """A client that sends its request a byte at a time for ever; yields how each of its connections ended."""
    raw = http(b'{"text": "I love cats"}', length=10_000)
    while not stop():
        with socket.create_connection((server.host, server.port), timeout=60) as connection:
            connection.settimeout(0.5)
            place = 0
            while not stop():
                try:
                    connection.sendall(raw[place : place + 1] if place < len(raw) else b" ")
                    place += 1
                    ended = connection.recv(1000)
                except TimeoutError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    ended = b"reset"
                yield ended[:12].decode("latin-1") or "closed"
                break


def memory(pid: int) -> int:
    """Resident memory of a process, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


def test_nothing_brings_the_server_down(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunningServer(tiny_model, "--max_length", "64", "--timeout", "20") as server:
        before = server.translate(text="I love cats", n_best=4)
        functions, weights = zip(*KINDS, strict=True)
        stopped: list[bool] = []
        statuses: Counter[int] = Counter()
        slow: Counter[str] = Counter()
        begin, longest, start_memory = time.monotonic(), 0.0, memory(server.process.pid)

        def one(number: int) -> tuple[int, float]:
            draw = random.Random(number)
            start = time.monotonic()
            return check(exchange(server, draw.choices(functions, weights)[0](draw))), time.monotonic() - start

        with ThreadPoolExecutor(SLOW) as lingering, ThreadPoolExecutor(16) as clients:
            waiting = [lingering.submit(lambda: list(slow_loris(server, lambda: bool(stopped)))) for _ in range(SLOW)]
            try:
                for status, seconds in clients.map(one, range(COUNT)):
                    statuses[status] += 1
                    longest = max(longest, seconds)
            finally:
                stopped.append(True)
            for lingerer in waiting:
                slow.update(lingerer.result())
        seconds = time.monotonic() - begin
        assert server.translate(text="I love cats", n_best=4) == before
        assert server.ask("GET", "/health").content["workers"] == 1
        with capsys.disabled():
            print(f"\n{COUNT} malformed requests in {seconds:.0f} s, slowest {longest:.1f} s")
            print(f"statuses {dict(statuses.most_common())}; 0 is a connection closed without an answer")
            print(f"slow clients ended with {dict(slow)}; memory {start_memory} to {memory(server.process.pid)} MiB")
        assert longest < 30
        assert max(slow) == "HTTP/1.1 408", "slow clients are told so"
        assert sum(statuses.values()) == COUNT
        assert sum(count for status, count in statuses.items() if 400 <= status < 500) > 0.5 * COUNT
        assert memory(server.process.pid) < start_memory + 200
        assert "Traceback" not in server.stderr
        assert server.stop() == 0
