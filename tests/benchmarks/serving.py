"""Load on ``lit-transformer serve``: requests per second, waiting times, and what happens when it is too much.

    python tests/benchmarks/serving.py runs/tiny --text test.en
    python tests/benchmarks/serving.py runs/tiny --text test.en --num_workers 2 --json serving.json

Starts a server on loopback, lets 1, 8 and 32 clients translate one sentence after the other, each on its own
connection, and compares every translation with that of ``Translator``. Then come more
clients than the queue has room for.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SENTENCES = ["I love cats", "The dog sleeps", "A man in a red shirt is riding a bike down the street."]


class Client:
    """One connection that is kept, as programs do."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def translate(self, text: str) -> tuple[int, Any, dict[str, str]]:
        """Status, content and headers of the answer for one sentence."""
        body = json.dumps({"text": text})
        self.connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        return response.status, json.loads(response.read()), {k.lower(): v for k, v in response.getheaders()}


@contextmanager
def running(checkpoint: str, *options: str) -> Iterator[tuple[int, int]]:
    """A server; its port and process id."""
    command = [sys.executable, "-m", "lit_transformer", "serve", checkpoint, "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r":(\d+)/", process.stdout.readline())
    if not found:
        raise SystemExit("the server did not start")
    try:
        yield int(found[1]), process.pid
    finally:
        process.terminate()
        status = process.wait(60)
        print(f"the server ended with status {status}")


def seconds_of(pid: int) -> float:
    """Processor time of a process and its children so far."""
    total = 0.0
    for one in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def load(
    port: int, pid: int, texts: list[str], expected: dict[str, str], clients: int, seconds: float
) -> dict[str, Any]:
    """Figures of so many clients that ask again as soon as they have their answer."""
    waits: list[float] = []
    statuses: Counter[str] = Counter()
    end = time.monotonic() + seconds

    def live(number: int) -> None:
        client, place = Client(port), number
        while time.monotonic() < end:
            text = texts[place % len(texts)]
            place += clients
            begin = time.perf_counter()
            try:
                status, content, _ = client.translate(text)
            except OSError as error:
                statuses[f"lost: {type(error).__name__}"] += 1
                client = Client(port)
                continue
            waits.append(time.perf_counter() - begin)
            right = status == 200 and content["results"][0]["translations"][0]["text"] == expected[text]
            statuses["right" if right else f"wrong: {status}"] += 1

    before, begin = seconds_of(pid), time.monotonic()
    threads = [threading.Thread(target=live, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, processor = time.monotonic() - begin, seconds_of(pid) - before
    ordered = sorted(waits)
    return {
        "clients": clients,
        "requests": len(waits),
        "requests_per_second": round(len(waits) / wall, 1),
        "requests_per_processor_second": round(len(waits) / processor, 1),
        "p50_ms": round(1000 * statistics.median(ordered), 1),
        "p99_ms": round(1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 1),
        "outcomes": dict(statuses),
    }


def overload(checkpoint: str, texts: list[str], clients: int, options: list[str]) -> dict[str, Any]:
    """Four times as many clients as places in the queue, all at once; afterwards one that must get its answer."""
    with running(checkpoint, "--max_queue", str(clients // 4), *options) as (port, _):
        statuses: Counter[str] = Counter()
        retry: list[int] = []
        gate = threading.Barrier(clients)

        def live(number: int) -> None:
            client = Client(port)
            client.connection.connect()
            gate.wait()
            for turn in range(5):
                try:
                    status, _, headers = client.translate(texts[(number + turn) % len(texts)])
                except OSError as error:
                    statuses[f"lost: {type(error).__name__}"] += 1
                    return
                statuses[str(status)] += 1
                if status in (429, 503):
                    retry.append(int(headers["retry-after"]))

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(live, range(clients)))
        after, _, _ = Client(port).translate(texts[0])
        return {
            "clients": clients,
            "max_queue": clients // 4,
            "statuses": dict(statuses),
            "retry_after_seconds": sorted(set(retry)),
            "status_afterwards": after,
        }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="what to serve")
    parser.add_argument("--text", type=Path, help="file of source sentences, one a line (default: three sentences)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of clients (default: 10)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--overload", type=int, default=200, help="clients of the overload; 0 skips it (default: 200)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    known, server_options = parser.parse_known_args()
    from lit_transformer import Translator

    lines = known.text.read_text(encoding="utf-8").splitlines() if known.text else SENTENCES
    texts = [line for line in lines if line.strip()][:500]
    expected = dict(zip(texts, Translator.from_pretrained(known.checkpoint, num_workers=1)(texts), strict=True))
    figures: dict[str, Any] = {"options": server_options, "load": [], "overload": None}
    print(f"{'clients':>7} {'req/s':>8} {'per CPU s':>9} {'p50 ms':>8} {'p99 ms':>8}  outcomes")
    with running(known.checkpoint, *server_options) as (port, pid):
        load(port, pid, texts, expected, 1, 1.0)  # the first batches are slower
        for clients in known.clients:
            row = load(port, pid, texts, expected, clients, known.seconds)
            figures["load"].append(row)
            speeds = f"{row['requests_per_second']:>8} {row['requests_per_processor_second']:>9}"
            print(f"{clients:>7} {speeds} {row['p50_ms']:>8} {row['p99_ms']:>8}  {row['outcomes']}", flush=True)
    if known.overload:
        figures["overload"] = overload(known.checkpoint, texts, known.overload, server_options)
        print("overload:", json.dumps(figures["overload"]))
    if known.json:
        known.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
