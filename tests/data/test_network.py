"""Corpora over HTTP from a server in this process that fails as the script says."""

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lit_transformer.data import network
from lit_transformer.data.corpus import CorpusError, ParallelCorpus
from lit_transformer.data.network import persistent
from lit_transformer.data.tables import ending_of_table

ROWS = 400


class Server(ThreadingHTTPServer):
    """Serves files from memory; each GET takes the next word of ``script``: ok, 503, drop or stall."""

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.script, self.faults = files, [], []
        self.ranges = "bytes"  # what it says of them; None: nothing, and like with "none" it sends files whole
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        content = self.server.files.get(self.path.lstrip("/").partition("?")[0])
        fault = self.server.script.pop(0) if body and self.server.script else "ok"
        if fault != "ok":
            self.server.faults.append(fault)
        if content is None or fault == "503":
            return self.send_error(503 if fault == "503" else 404)
        first, last = 0, len(content) - 1
        asked = self.headers.get("Range", "") if self.server.ranges == "bytes" else ""
        if asked.startswith("bytes="):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        if self.server.ranges:
            self.send_header("Accept-Ranges", self.server.ranges)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        part = content[first : last + 1] if body else b""
        if fault == "drop":
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            self.connection.shutdown(2)
        elif fault == "stall":
            time.sleep(2)
        elif body:
            self.wfile.write(part)
        return None


def files():
    lines = {side: "".join(f"{side} {n}\n" for n in range(ROWS)).encode() for side in ("en", "de")}
    rows = "".join(json.dumps({"en": f"en {n}", "de": f"de {n}"}) + "\n" for n in range(ROWS)).encode()
    packed = {f"text.{side}.gz": gzip.compress(text) for side, text in lines.items()}
    plain = {f"text.{side}": text for side, text in lines.items()}
    return {"rows.jsonl.gz": gzip.compress(rows), **plain, **packed}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(network, "WAITS", (0.0, 0.01, 0.02))
    monkeypatch.setattr(network, "STALL_SECONDS", 0.5)
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 1)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0)
    running = Server(files())
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def corpus(server, kind):
    if kind == "rows.jsonl.gz":
        return ParallelCorpus(f"{server.address}/{kind}")
    ending = kind.removeprefix("text")
    return ParallelCorpus(src_path=f"{server.address}/text.en{ending}", tgt_path=f"{server.address}/text.de{ending}")


EXPECTED = [(f"en {n}", f"de {n}") for n in range(ROWS)]


@pytest.mark.parametrize("question", ["?download=true", "?download=1&as=text.de", "#top"])
def test_the_ending_is_that_of_the_path_in_an_address(server, question):
    columns = [f"{server.address}/text.{side}.gz{question}" for side in ("en", "de")]
    assert list(ParallelCorpus(src_path=columns[0], tgt_path=columns[1])) == EXPECTED
    if "." not in question and "#" not in question:  # `datasets` looks for an ending there too
        assert list(ParallelCorpus(f"{server.address}/rows.jsonl.gz{question}")) == EXPECTED
    assert ending_of_table(f"{server.address}/rows.jsonl.gz{question}&as=rows.csv") == ".jsonl"


@pytest.mark.parametrize("kind", ["text", "text.gz", "rows.jsonl.gz"])
@pytest.mark.parametrize("script", [[], ["503"], ["drop", "ok", "503"], ["drop", "drop"]], ids=str)
def test_rows_are_the_same_as_on_a_calm_day(server, kind, script):
    server.script = list(script)
    assert list(corpus(server, kind)) == EXPECTED
    assert server.faults == [fault for fault in script if fault != "ok"]


def test_a_connection_that_says_nothing_is_taken_up_again(server):
    server.script = ["stall"]
    assert list(corpus(server, "text.gz")) == EXPECTED
    assert server.faults == ["stall"]


def test_goes_on_at_the_same_row(server):
    places = list(corpus(server, "text").rows(size=100))
    server.script = ["503", "drop"]
    rest = [row for rows, _ in corpus(server, "text").rows(places[1][1], 100) for row in rows]
    assert rest == [{"en": src, "de": tgt} for src, tgt in EXPECTED[200:]]


@pytest.mark.parametrize("kind", ["text", "text.gz"])
@pytest.mark.parametrize("ranges", ["none", None])
def test_a_server_that_sends_files_only_whole_is_read_on_at_the_same_row_too(server, kind, ranges):
    server.ranges = ranges
    assert list(corpus(server, kind)) == EXPECTED
    places = list(corpus(server, kind).rows(size=100))
    server.script = ["ok", "drop"]
    rest = [row for rows, _ in corpus(server, kind).rows(places[1][1], 100) for row in rows]
    assert rest == [{"en": src, "de": tgt} for src, tgt in EXPECTED[200:]]
    assert server.faults == ["drop"]


def test_a_file_larger_than_what_is_asked_for_at_once_from_such_a_server(server):
    server.ranges = None
    lines = [f"{n} " + "x" * 1000 for n in range(12_000)]  # 12 MB
    server.files["large"] = "".join(f"{line}\n" for line in lines).encode()
    assert [pair.src for pair in ParallelCorpus(src_path=f"{server.address}/large", tgt=None)] == lines


def test_a_server_that_stays_down_ends_in_one_sentence(server, caplog):
    server.script = ["503"] * 99
    with pytest.raises(CorpusError, match=r"cannot be read after line 0: 503.*gave up after 4 attempts$") as caught:
        list(corpus(server, "text.gz"))
    assert "\n" not in str(caught.value)
    assert sum("trying again in" in record.message for record in caplog.records) == 3


def test_a_file_that_is_not_there_is_not_waited_for(server, caplog):
    with pytest.raises(CorpusError, match="cannot open"):
        list(ParallelCorpus(src_path=f"{server.address}/none", tgt=None))
    assert not caplog.records


def test_waits_longer_each_time_until_something_is_read():
    waits, calls = [], []

    def read(state):
        calls.append(state)
        if len(calls) != 3:
            raise CorpusError("down") from ConnectionError()
        yield "a", 1
        raise CorpusError("down") from TimeoutError()

    items = persistent(read, 0, sleep=waits.append)
    assert next(items) == ("a", 1)
    with pytest.raises(CorpusError, match=r"down; gave up after 8 attempts$"):
        next(items)
    assert waits == [*network.WAITS[:2], *network.WAITS]
    assert calls == [0, 0, 0, *[1] * 7]


def test_a_source_that_never_answered_is_given_up_sooner():
    def read(state):
        raise CorpusError("down") from ConnectionError()
        yield

    waits = []
    with pytest.raises(CorpusError, match=r"down; gave up after 4 attempts$"):
        next(persistent(read, None, False, waits.append))
    assert waits == [1, 2, 4]
