"""What a long run on a CPU keeps in memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_transformer.cli import WHOLE_HEAP, main, remember_fewer_products

_MANY_SHAPES = """
import ctypes, os
from lit_transformer.cli import remember_fewer_products

if {bounded}:
    remember_fewer_products()

import torch
from lit_transformer.kernels import product

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks".split()]
    _fields_ += [(name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Heap

def in_use():
    found = libc.mallinfo2()
    return (found.uordblks + found.hblkhd) >> 20

torch.set_num_threads(1)
weight = torch.zeros(64, 64)
for rows in range(1, 160):
    product(torch.zeros(rows, 64), weight)
before = in_use()
for rows in range(160, 700):
    product(torch.zeros(rows, 64), weight)
print(in_use() - before)
"""


def grown(bounded: bool) -> int:
    """MiB that 540 more shapes of a product leave in use, in a process of its own."""
    command = [sys.executable, "-c", _MANY_SHAPES.format(bounded=bounded)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(finished.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc 2.33 what is in use"
)
def test_products_of_many_shapes_do_not_pile_up() -> None:
    unbounded = grown(bounded=False)
    if unbounded < 20:
        pytest.skip(f"here products keep little anyway: {unbounded} MiB")
    assert grown(bounded=True) < 5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("128", "128")),
        ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7", "LRU_CACHE_CAPACITY": "8"}, ("7", "8")),
        ({"DNNL_PRIMITIVE_CACHE_CAPACITY": "9"}, ("9", "128")),
    ],
)
def test_the_environment_may_say_how_many(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: tuple[str, str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", given)
        remember_fewer_products()
    assert (given["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], given["LRU_CACHE_CAPACITY"]) == expected


_HAS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not _HAS_GLIBC, reason="the setting is one of glibc")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ["start", f"start {WHOLE_HEAP}"]),
        (
            "glibc.malloc.arena_max=2",
            ["start glibc.malloc.arena_max=2", f"start glibc.malloc.arena_max=2:{WHOLE_HEAP}"],
        ),
        ("glibc.malloc.tcache_count=3", ["start glibc.malloc.tcache_count=3"]),
    ],
)
def test_fit_starts_anew_once_with_the_same_command_line(
    tmp_path: Path, given: str | None, expected: list[str]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from lit_transformer.cli import start_with_a_whole_heap\n"
        "print('start', os.environ.get('GLIBC_TUNABLES', ''), flush=True)\n"
        "start_with_a_whole_heap()\n"
        "print('goes on', *sys.argv[1:], sys.flags.utf8_mode)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment.pop("LIT_TRANSFORMER_STARTED_ANEW", None)
    if given is not None:
        environment["GLIBC_TUNABLES"] = given
    command = [sys.executable, "-X", "utf8", str(program), "a b", "--c"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = [line.rstrip() for line in finished.stdout.splitlines()]
    assert lines == [*expected, "goes on a b --c 1"]


def test_only_the_program_fit_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[object] = []
    for name in ("GLIBC_TUNABLES", "LIT_TRANSFORMER_STARTED_ANEW"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    monkeypatch.setattr(os, "execv", lambda *command: starts.append(command))
    monkeypatch.setattr("lit_transformer.cli._run", lambda arguments: 0)
    for argv, given in ((["translate"], None), (["fit"], ["fit"]), (["fit"], None)):
        monkeypatch.setattr(sys, "argv", ["lit-transformer", *argv])
        with pytest.raises(SystemExit):
            main(given)
        assert bool(starts) == (_HAS_GLIBC and argv == ["fit"] and given is None)


@pytest.mark.skipif(not _HAS_GLIBC, reason="the setting is one of glibc")
def test_it_starts_anew_once_where_the_setting_gets_lost(tmp_path: Path) -> None:
    forgetful = tmp_path / "python"
    forgetful.write_text(f'#!/bin/sh\necho start\nunset GLIBC_TUNABLES\nexec {sys.executable} "$@"\n')
    forgetful.chmod(0o755)
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        f"sys.executable = {str(forgetful)!r}\n"
        "os.environ.pop('GLIBC_TUNABLES', None)\n"
        "from lit_transformer.cli import start_with_a_whole_heap\n"
        "start_with_a_whole_heap()\n"
        "print('goes on')\n"
    )
    finished = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True, timeout=60)
    assert finished.stdout.split("\n") == ["start", "goes on", ""]


def test_a_program_from_standard_input_runs_on() -> None:
    program = "from lit_transformer.cli import start_with_a_whole_heap\nstart_with_a_whole_heap()\nprint('goes on')\n"
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-", "fit"]
    finished = subprocess.run(command, input=program, env=environment, capture_output=True, text=True, check=True)
    assert finished.stdout == "goes on\n"
