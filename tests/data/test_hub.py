"""A Hub dataset is streamed from a server that speaks the Hub's language on the loopback address."""

import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_transformer.data.network import is_passing

COMMIT = "a" * 40

READ = """
import json
from lit_transformer.data.corpus import CorpusError, ParallelCorpus

corpus = ParallelCorpus("me/pairs", "en", "de")
chunks = list(corpus.rows(size=15))
rest = list(corpus.rows(json.loads(json.dumps(chunks[1][1])), size=15))
assert [rows for rows, _ in rest] == [rows for rows, _ in chunks[2:]]
errors = []
for bad in (ParallelCorpus("me/nothing"), ParallelCorpus("me/pairs", split="test"), ParallelCorpus("me/pairs", "fr")):
    try:
        list(bad)
    except CorpusError as error:
        errors.append(str(error))
print(json.dumps({
    "train": list(corpus),
    "validation": list(ParallelCorpus("me/pairs@main", split="validation")),
    "errors": errors,
    "size": corpus.approximate_rows(),
}))
"""

PASSES = """
import json, pickle, sys
from contextlib import closing
from lit_transformer.data.corpus import ParallelCorpus

corpus = ParallelCorpus("me/pairs", "en", "de")

def read(state=None, lane=0, num_lanes=1):
    return [rows for rows, _ in corpus.rows(state, 7, lane, num_lanes)]

whole, lanes = read(), [read(None, lane, 2) for lane in (0, 1)]
places = [place for _, place in json.loads(json.dumps(list(corpus.rows(None, 7))))]
places_of_lanes = [list(corpus.rows(None, 7, lane, 2))[0][1] for lane in (0, 1)]
for _ in range(int(sys.argv[1])):
    with closing(corpus.rows(size=7)) as left_off:  # what one pass leaves behind is nothing to the next
        next(left_off)
        assert read(places[2]) == whole[3:] and read(places[2]) == whole[3:]
        assert read() == whole
        assert next(left_off)[0] == whole[1]
    for lane in (1, 0):
        assert read(places_of_lanes[lane], lane, 2) == lanes[lane][1:]
        assert read(None, lane, 2) == lanes[lane]
assert sorted(str(row) for part in lanes for rows in part for row in rows) == sorted(
    str(row) for rows in whole for row in rows
)
corpus = pickle.loads(pickle.dumps(corpus)) if sys.argv[1] == "0" else corpus
assert sys.argv[1] != "0" or read() == whole
"""

CACHED = """
from lit_transformer.data import ParallelCorpus

print(len(list(ParallelCorpus("me/pairs", "en", "de"))))
"""

MISSPELT = """
from lit_transformer.data import CorpusError, ParallelCorpus, network

network.WAITS = (0.0,) * 7
try:
    list(ParallelCorpus("data/trian"))
except CorpusError as error:
    print(error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Repository info, file tree and files with byte ranges, as huggingface_hub asks for them."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012

    def log_message(self, *_):
        pass

    def answer(self, code, body, **headers):
        self.send_response(code)
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def entries(self, names):
        found = [(name, self.files[name]) for name in names if name in self.files]
        return json.dumps(
            [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in found
            ]
        ).encode()

    def do_GET(self):
        path = self.path.split("?")[0]
        self.asked.append(path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        api = "/api/datasets/me/pairs"
        if path.startswith(f"{api}/tree/"):
            return self.answer(200, self.entries(sorted(self.files)))
        if path.startswith(f"{api}/paths-info/"):
            return self.answer(200, self.entries(json.loads(body)["paths"]))
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            return self.answer(200, json.dumps({"id": "me/pairs", "sha": COMMIT, "siblings": siblings}).encode())
        if path.startswith("/datasets/me/pairs/resolve/"):
            return self.file(path.split("/")[-1])
        return self.answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_POST = do_GET  # noqa: N815

    def file(self, name):
        if name not in self.files:
            return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
        data = self.files[name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None or self.command == "HEAD":
            return self.answer(200, data, **headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        first, last = int(first), min(int(last or len(data)), len(data) - 1)
        return self.answer(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}", **headers)


@contextlib.contextmanager
def served(files, home):
    """The environment in which a program finds the files on the Hub."""
    Hub.files = files
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HUB_OFFLINE": "0",
        }
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_a_hub_dataset_is_looked_up_once_for_all_passes_and_each_begins_anew(tmp_path):
    rows = [{"translation": {"en": f"en {n}", "de": f"Satz {n}"}} for n in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet", row_group_size=5)
    looked_up = {}
    with served({"train.parquet": (tmp_path / "train.parquet").read_bytes()}, tmp_path / "home") as environment:
        for passes in (1, 3, 0):
            Hub.asked.clear()
            command = [sys.executable, "-c", PASSES, str(passes)]
            result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            assert result.returncode == 0, result.stderr[-2000:]
            looked_up[passes] = sum("/resolve/" not in path for path in Hub.asked)
    assert 0 < looked_up[1] == looked_up[3] < 20


@pytest.mark.slow
def test_hub_dataset_is_streamed_resumed_and_its_errors_are_clear(tmp_path):
    for split, count in (("train", 50), ("validation", 7)):
        rows = [{"translation": {"en": f"{split} {n}", "de": f"Satz {n}"}} for n in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}.parquet", row_group_size=20)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with served(files, tmp_path / "home") as environment:
        command = [sys.executable, "-c", READ]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        load = "import datasets; datasets.load_dataset('me/pairs')"
        subprocess.run([*command[:2], load], env=environment, capture_output=True, timeout=120, check=True)
    read = json.loads(result.stdout)
    assert read["train"] == [[f"train {n}", f"Satz {n}"] for n in range(50)]
    assert read["validation"] == [[f"validation {n}", f"Satz {n}"] for n in range(7)]
    assert read["size"] is None  # these files come without a card that tells it
    missing, split, column = read["errors"]
    assert "Dataset 'me/nothing' doesn't exist on the Hub" in missing
    assert "Bad split: test. Available splits: ['train', 'validation']" in split
    assert "has no column 'fr', there are en, de" in column
    for more in ({}, {"HF_DATASETS_OFFLINE": "1"}):  # the server is gone, what `datasets` once loaded is not
        again = subprocess.run(
            [*command[:2], CACHED], env=environment | more, capture_output=True, text=True, timeout=300
        )
        assert again.stdout == "50\n", again.stderr[-2000:]


def test_an_error_of_the_hub_client_that_waiting_may_mend_is_known_as_such():
    with pytest.raises(Exception, match=r"\S") as refused:
        huggingface_hub.HfApi(endpoint="http://127.0.0.1:9").dataset_info("me/pairs", timeout=5)
    assert is_passing(refused.value)
    with pytest.raises(Exception, match=r"\S") as unknown:
        huggingface_hub.HfApi(endpoint="http://nowhere.invalid").dataset_info("me/pairs", timeout=5)
    assert is_passing(unknown.value)


def test_without_a_network_a_misspelt_path_is_told_at_once(tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", MISSPELT]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path
    )
    assert result.stdout.startswith("there is no data/trian.en and data/trian.de (plain or compressed), no file or")
    assert "cannot be reached" in result.stdout
    assert result.stdout.endswith("gave up after 4 attempts\n")
    assert "Retrying" not in result.stderr  # the many attempts of `datasets`
