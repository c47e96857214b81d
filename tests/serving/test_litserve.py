"""The same API under LitServe."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lit_transformer import BeamSearch, Translator
from lit_transformer.serving.lit_api import TranslationAPI

pytest.importorskip("litserve", reason="LitServe is not installed: the extra litserve")
pytestmark = pytest.mark.slow


def ask(port: int, content: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/translate", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def port(tiny_model: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    script = Path(__file__).with_name("litserve_server.py")
    command = [sys.executable, str(script), str(tiny_model), str(number)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{number}/health", timeout=5).close()
            break
        except OSError:
            time.sleep(0.3)
    yield number
    os.killpg(process.pid, signal.SIGKILL)  # its processes do not end with the first
    process.wait()


def test_it_answers_as_serve_does(port: int, tiny_model: Path) -> None:
    found = list(Translator.from_pretrained(tiny_model, search=BeamSearch(n_best=2)).translate(["I love cats"]))
    status, content = ask(port, {"text": "I love cats", "n_best": 2})
    assert status == 200
    assert [one["text"] for one in content["results"][0]["translations"]] == [one.text for one in found[0]]


def test_the_search_is_ones_own_and_bounds_what_clients_ask_for(tiny_model: Path) -> None:
    search = BeamSearch(beam_size=2, length_penalty=0.1, max_extra_length=3, no_repeat_ngram_size=1)
    api = TranslationAPI(str(tiny_model), search, src_tag="")
    api.setup("cpu")
    assert api.model.src_tag == ""
    content = {"text": "I love cats", "n_best": 2}
    jobs = [api.decode_request({**content, **more}) for more in ({}, {"n_best": 3}, {"max_extra_length": 4})]
    reply, *refused = [api.encode_response(one) for one in api.predict(jobs)]
    assert [one.status_code for one in (reply, *refused)] == [200, 422, 422]
    (found,) = json.loads(reply.body)["results"]
    search.n_best = 2
    (expected,) = Translator.from_pretrained(tiny_model, search=search).translate(["I love cats"])
    assert [one["text"] for one in found["translations"]] == [one.text for one in expected]


def test_a_wrong_request_does_not_fail_its_batch(port: int) -> None:
    wanted = [{"text": "I love cats"}, {"text": 5}, ["x"], {"text": "the dog", "n_best": 9}] * 4
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda content: ask(port, content), wanted))
    assert [status for status, _ in answers] == [200, 422, 422, 422] * 4
    assert "should be a string" in answers[1][1]["error"]
