"""The server as a user has it: a process, its port, its messages, its end."""

from __future__ import annotations

import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest
from command_line import lit
from running_server import RunningServer
from tiny_run import tiny_run as tiny_run

from lit_transformer import BeamSearch, Translator
from lit_transformer.serving.commands import build_app, serve_parser
from lit_transformer.serving.model import ModelSettings, ServedModel
from lit_transformer.serving.requests import Limits
from lit_transformer.serving.timed import TimedSearch
from lit_transformer.serving.workers import ProcessWorker
from lit_transformer.translate_command import _search, translate_parser


def test_it_serves_the_page_and_translates(server: RunningServer, tiny_model: Path) -> None:
    assert server.url in server.first_line
    assert b"<title>Translate" in server.ask("GET", "/").body
    assert server.ask("GET", "/health").content == {"status": "ok", "workers": 1}
    info = server.ask("GET", "/info").content
    assert (info["src_lang"], info["tgt_lang"], info["model"]["name"]) == ("en", "ko", tiny_model.name)
    (result,) = server.translate(text="I love cats")
    assert result["translations"][0]["text"] == Translator.from_pretrained(tiny_model)("I love cats")[0]
    assert server.ask("GET", "/attention?text=I+love+cats").body.startswith(b"<!DOCTYPE html>")
    assert server.stderr == ""


def test_many_clients_at_once_lose_nothing(server: RunningServer, tiny_model: Path) -> None:
    sentences = [f"the {word} dog sees {number} cats" for word in ("big", "small") for number in range(40)]
    expected = Translator.from_pretrained(tiny_model)(sentences)
    with ThreadPoolExecutor(16) as clients:
        found = list(clients.map(lambda text: server.translate(text=text)[0]["translations"][0]["text"], sentences))
    assert found == expected


def converse(server: RunningServer, *pieces: bytes, timeout: float = 30) -> bytes:
    """Sends raw bytes and reads until the server hangs up."""
    with socket.create_connection((server.host, server.port), timeout=timeout) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # without Host
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /translate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_told_so_in_json(server: RunningServer, raw: bytes) -> None:
    answer = converse(server, raw)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 415"))
    assert b'{"error"' in answer


def test_a_body_that_is_refused_is_read_so_that_its_sender_hears_why(server: RunningServer) -> None:
    answer = server.ask("POST", "/translate", b"x" * (4 << 20))
    assert answer.status == 413
    assert "1,048,576 bytes" in answer.content["error"]


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tiny_model: Path) -> None:
    with RunningServer(tiny_model) as server:
        (worker,) = (pid for pid in children(server.process.pid) if b"spawn_main" in command_of(pid))
        os.kill(worker, signal.SIGKILL)
        first = server.ask("POST", "/translate", {"text": "cats"})
        assert first.status == 503
        assert "Retry-After".lower() in first.headers
        end = time.monotonic() + 60
        while server.ask("GET", "/health").status != 200 and time.monotonic() < end:
            time.sleep(0.2)
        assert server.translate(text="cats")
        assert "died" in server.stderr
        assert "Traceback" not in server.stderr


@pytest.mark.slow
def test_time_that_is_over_ends_the_request_and_its_computation(tiny_model: Path) -> None:
    """A request that takes far too long hears so at its time, and the same worker goes on at once with the next."""
    with RunningServer(tiny_model, "--timeout", "5", "--max_length", "2000", "--beam_size", "16") as server:
        (worker,) = (pid for pid in children(server.process.pid) if b"spawn_main" in command_of(pid))
        heavy = {"texts": ["the dog sees a cat " * 100] * 64, "n_best": 16}
        with ThreadPoolExecutor(2) as clients:
            begin = time.monotonic()
            slow = clients.submit(server.ask, "POST", "/translate", heavy)
            time.sleep(2)
            quick = clients.submit(server.ask, "POST", "/translate", {"text": "cats"})
            answer = slow.result()
            waited = time.monotonic() - begin
            assert quick.result().status == 200, "the worker came free in time for it"
        assert answer.status == 503
        assert "within 5 seconds" in answer.content["error"]
        assert "retry-after" in answer.headers
        assert 4.9 < waited < 5.9
        assert is_running(worker), "it has not been replaced"
        assert server.stderr == ""


@pytest.mark.slow
def test_a_client_that_hangs_up_ends_its_computation(tiny_model: Path) -> None:
    """A request of a minute whose client goes after a second keeps nobody waiting."""
    with RunningServer(tiny_model, "--timeout", "60", "--max_length", "2000", "--beam_size", "16") as server:
        heavy = json.dumps({"texts": ["the dog sees a cat " * 100] * 64, "n_best": 16})
        client = HTTPConnection("127.0.0.1", server.port)
        client.request("POST", "/translate", heavy, {"Content-Type": "application/json"})
        time.sleep(2)
        client.close()
        begin = time.monotonic()
        assert server.ask("POST", "/translate", {"text": "cats"}).status == 200
        assert time.monotonic() - begin < 5
        assert server.stderr == ""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_ends_it_after_the_requests_under_way(tiny_model: Path, number: int) -> None:
    with RunningServer(tiny_model) as server, ThreadPoolExecutor(1) as client:
        workers = children(server.process.pid)
        under_way = client.submit(server.ask, "POST", "/translate", {"texts": ["the dog sees the big house"] * 64})
        time.sleep(0.1)
        assert server.stop(number) == 0
        assert under_way.result().status == 200
        assert server.stderr == ""
        assert server.process.stdout is not None
        assert server.process.stdout.read() == "stopped\n"
        assert not left_over(workers)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_ends_it_while_the_model_is_loaded(tiny_model: Path, number: int) -> None:
    command = [sys.executable, "-m", "lit_transformer", "serve", str(tiny_model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while len(workers := children(process.pid)) < 2 and time.monotonic() < end:  # the first keeps account only
            time.sleep(0.01)
        time.sleep(0.2)  # while it starts a worker, the server is deaf to Ctrl-C, so that the worker is born deaf
        process.send_signal(number)
        assert process.communicate(timeout=20) == ("stopped\n", "")
        assert process.returncode == 0
    assert len(workers) == 2
    assert not left_over(workers)


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_nobody_behind(tiny_model: Path) -> None:
    with RunningServer(tiny_model) as server:
        workers = children(server.process.pid)
        server.process.kill()
        server.process.wait()
        assert not left_over(workers)


def left_over(pids: list[int]) -> list[int]:
    """The processes that have not ended after ten seconds."""
    end = time.monotonic() + 10
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_other_machines_are_let_in_only_with_a_warning(tiny_model: Path) -> None:
    with RunningServer(tiny_model, "--host", "0.0.0.0") as server:
        server.host = "127.0.0.1"
        assert server.ask("GET", "/health", Host="some.name").status == 200
        assert "there is no password and no encryption" in server.stderr


def test_a_port_that_is_taken(tiny_model: Path, server: RunningServer) -> None:
    finished = lit("serve", tiny_model, "--port", server.port)
    assert finished.status == 1
    assert finished.err.count("\n") == 1
    assert f"127.0.0.1:{server.port} cannot be listened on" in finished.err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["runs/not/there"], 1, "runs/not/there"),
        (["runs/not/there", "--host", "203.0.113.7"], 1, "cannot be listened on"),
        (["runs/not/there", "--host", "a..b"], 1, "--host a..b is no address of this machine: not a host name"),
        (["pyproject.toml"], 1, "pyproject.toml is not a checkpoint file"),
        (["."], 1, "no readable checkpoint"),
        (["x", "--penalty_kind", "none"], 2, "'gnmt', 'power'"),
        (
            ["x", "--batch_timeout", "50"],
            1,
            "--batch_timeout 50 lets every request wait for company until --timeout 30",
        ),
        (["x", "--port", "70000"], 2, "a port from 0 to 65535"),
        (["x", "--timeout", "0"], 2, "seconds above 0"),
        (["x", "--max_extra_length", "-1"], 2, "a whole number from 0 to 10000, got -1"),
        (["x", "--batch_timeout", "-1"], 2, "0 or more"),
        (["x", "--src_lang", "<b>"], 2, "a language code"),
        (["x", "--public_name", "https://translate.example"], 2, "a name such as translate.example.org"),
        (["x", "--max_que", "3"], 2, "Did you mean"),
    ],
)
def test_mistakes_are_told_in_one_sentence(arguments: list[str], status: int, words: str) -> None:
    finished = lit("serve", *arguments, *([] if "--port" in arguments else ["--port", "0"]))
    assert finished.status == status
    assert words in finished.err
    assert finished.err.count("\n") == 1


def test_all_workers_hold_the_checkpoint_that_was_the_newest_at_the_start(tiny_run: Path) -> None:
    arguments = [str(tiny_run), "--num_workers", "2", "--public_name", "translate.example", "--public_name", "other"]
    app = build_app(serve_parser().parse_args(arguments))
    newest = str(tiny_run / "checkpoints" / "step=150.ckpt")
    assert [worker._settings.checkpoint for worker in app.batcher.workers] == [newest] * 2
    assert app.public_names == {"translate.example", "other"}
    assert app.hosts == {"localhost", "127.0.0.1", "[::1]", "translate.example", "other"}


@pytest.mark.parametrize("engine", ["torch", "ctranslate2"])
def test_the_search_is_that_of_translate(tiny_run: Path, engine: str) -> None:
    """Every option of the search that translate has for one line says the same here."""
    options = ["--beam_size", "3", "--length_penalty", "0.2", "--penalty_kind", "power", "--max_extra_length", "7"]
    options += ["--stop_early", "--no_repeat_ngram_size", "2", "--no_unknown", "--engine", engine]
    app = build_app(serve_parser().parse_args([str(tiny_run), *options, "--src_tag", "<2de>"]))
    (worker,) = app.batcher.workers
    assert isinstance(worker, ProcessWorker)
    expected = _search(translate_parser().parse_args([str(tiny_run), *options]))
    assert vars(worker._settings.search) == vars(expected) != vars(type(expected)(beam_size=3))
    assert isinstance(worker._settings.search, TimedSearch) == (engine == "torch")
    assert worker._settings.src_tag == "<2de>"
    assert (app.limits.max_n_best, app.limits.max_extra_length) == (3, 7)


def test_no_option_of_the_search_is_missing() -> None:
    """What is an option of translate and an argument of the beam search, but for the number of translations."""
    named = {name for name in inspect.signature(BeamSearch).parameters if name != "allow_unknown"} | {"no_unknown"}
    missing = {name for name in named if not hasattr(serve_parser().parse_args(["x"]), name)}
    assert missing == {"n_best"}, "which each request says"


def test_a_worker_that_begins_again_takes_what_a_training_has_left(
    tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ModelSettings(str(tmp_path / "step=1.ckpt"), run=str(tiny_run))
    model = ServedModel.load(settings, Limits())
    assert model.translator("one cat") == ["eins Katze"]
    assert "step=1.ckpt is gone: this worker serves" in caplog.text


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    finished = lit("serve", "x")
    assert finished.status == 1
    assert 'pip install "lit-transformer[serve]"' in finished.err
