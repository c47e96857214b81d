"""The commands around a trained model: what they read and write, and what they say and leave behind when they fail."""

import contextlib
import gzip
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Finished, lit
from tiny_run import sentences
from tiny_run import tiny_run as tiny_run

from lit_transformer import lines as lines_file
from lit_transformer import model_files, pair_scores, translate_command
from lit_transformer import translator as translator_file
from lit_transformer.callbacks.averaging import average_checkpoints
from lit_transformer.checkpoints import read_checkpoint
from lit_transformer.command_options import device_of, needs_cpu
from lit_transformer.data import SubwordTokenizer
from lit_transformer.decoding import BeamSearch
from lit_transformer.interfaces import InputError, SentencePair
from lit_transformer.model_files import write_model
from lit_transformer.nn import Ensemble, Transformer
from lit_transformer.serving.commands import serve_parser
from lit_transformer.serving.model import ModelSettings, ServedModel
from lit_transformer.serving.requests import Limits
from lit_transformer.translate_command import translate_parser
from lit_transformer.translator import Translator
from lit_transformer.vocabulary import UNK_ID

LINES = sentences(10, seed=8)
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")


def translate(run: Path, *arguments: object, stdin: str | bytes = "", status: int = 0) -> Finished:
    finished = lit("translate", run, *arguments, stdin=stdin)
    assert finished.status == status, finished.err
    return finished


def expected(run: Path, lines: list[str], **search: Any) -> list[str]:
    return Translator.from_pretrained(run, search=BeamSearch(**search))(lines)


def assert_one_sentence(finished: Finished, *words: str) -> None:
    """One line on standard error that names the program and says ``words``."""
    assert finished.err.startswith("lit-transformer")
    assert finished.err.count("\n") == 1
    assert "Traceback" not in finished.err
    for word in words:
        assert word in finished.err


# What translate reads


def test_sentences_of_the_command_line(tiny_run: Path) -> None:
    assert translate(tiny_run, "one cat", "", "two").out == "eins Katze\n\nzwei\n"


def test_a_file_among_the_sentences_is_told(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two").write_text("three\n")
    finished = translate(tiny_run, "one cat", "two")
    assert finished.out == "eins Katze\nzwei\n"
    told = "two is taken as a text, and there is a file of this name: its lines are translated by --input two\n"
    assert finished.err == told


@pytest.mark.parametrize(
    "arguments",
    [
        ["--beam_size", "1", "one cat", "two"],
        ["one cat", "--beam_size", "1", "two"],
        ["one cat", "two", "--beam_size=1"],
    ],
)
def test_options_may_stand_anywhere(tiny_run: Path, arguments: list[str]) -> None:
    assert translate(tiny_run, *arguments).out == "eins Katze\nzwei\n"


def test_lines_of_standard_input_and_of_a_file(tiny_run: Path, tmp_path: Path) -> None:
    text = "".join(f"{line}\n" for line in LINES)
    out = "".join(f"{line}\n" for line in expected(tiny_run, LINES))
    (tmp_path / "in.txt").write_text(text)
    assert translate(tiny_run, stdin=text).out == out
    assert translate(tiny_run, "--input", "-", stdin=text).out == out
    assert translate(tiny_run, "--input", tmp_path / "in.txt").out == out
    assert translate(tiny_run / "checkpoints" / "step=150.ckpt", stdin=text).out == out


@pytest.mark.parametrize(
    ("ending", "library"), [(".gz", "gzip"), (".xz", "lzma"), (".bz2", "bz2"), (".zst", "zstandard")]
)
def test_compressed_files_are_read_and_written(tiny_run: Path, tmp_path: Path, ending: str, library: str) -> None:
    codec = pytest.importorskip(library)
    with codec.open(tmp_path / f"in{ending}", "wt", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in LINES)
    for name in (f"one{ending}", f"two{ending}"):
        finished = translate(tiny_run, "--input", tmp_path / f"in{ending}", "--output", tmp_path / name)
        assert finished.out == ""
    with codec.open(tmp_path / f"one{ending}", "rt", encoding="utf-8", newline="\n") as file:
        assert file.read() == "".join(f"{line}\n" for line in expected(tiny_run, LINES))
    assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()
    assert translate(tiny_run, "--input", tmp_path / "in").out == "".join(
        f"{line}\n" for line in expected(tiny_run, LINES)
    )
    (tmp_path / f"bad{ending}").write_bytes((tmp_path / f"in{ending}").read_bytes()[:-6])
    finished = translate(tiny_run, "--input", tmp_path / f"bad{ending}", status=1)
    assert_one_sentence(finished, f"{tmp_path / 'bad'}{ending} is broken after line", "cut off")


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"one\n\n \ntwo\n", ["eins", "", "", "zwei"]),
        (b"one\r\ntwo\r\n", ["eins", "zwei"]),
        (b"one\ntwo", ["eins", "zwei"]),  # the last line need not be closed
        (b"\xef\xbb\xbfone\ntwo\n", ["eins", "zwei"]),  # a byte order mark
        (b"\xef\xbb\xbf\n", [""]),
    ],
)
def test_one_line_out_for_each_line_in(tiny_run: Path, content: bytes, lines: list[str]) -> None:
    assert translate(tiny_run, stdin=content).out == "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("separator", ["\u2028", "\x0b", "\x0c", "\x85", "\x1c", "\r"])
def test_only_line_feeds_end_a_line(tiny_run: Path, separator: str) -> None:
    out = translate(tiny_run, stdin=f"one{separator}two\nred\n").out
    assert out.count("\n") == 2
    assert out.endswith("\nrot\n")


def test_a_thousand_lines(tiny_run: Path) -> None:
    words = ["one", "two", "", "red"]
    out = translate(tiny_run, "--beam_size", 1, stdin="".join(f"{words[i % 4]}\n" for i in range(1000))).out
    assert out == "eins\nzwei\n\nrot\n" * 250


def test_a_line_of_5000_words_is_cut_as_the_help_says(tiny_run: Path) -> None:
    finished = translate(tiny_run, "--beam_size", 1, stdin="one\n" + "two " * 5000 + "\nred\n")  # a space ends it
    assert finished.out.startswith("eins\n")
    assert finished.out.endswith("\nrot\n")
    assert finished.out.count("\n") == 3
    assert "line 2 has 5002 tokens and is cut to 64" in finished.err
    assert "line 1 has 4 tokens and is cut to 3" in translate(tiny_run, "--max_length", 3, "one two red").err


@pytest.mark.parametrize("options", [["--beam_size", "1"], [], ["--n_best", "2"]])
def test_translations_as_long_as_allowed_are_named(tiny_run: Path, options: list[str]) -> None:
    text = "".join(f"{line}\n" for line in ["", *LINES])
    finished = translate(tiny_run, "--max_extra_length", "1", *options, stdin=text)
    tokenizer, out = Translator.from_pretrained(tiny_run).tokenizer, finished.out.splitlines()
    numbered = [line.split("\t")[0::2] for line in out] if "--n_best" in options else enumerate(out, 1)
    said = []
    for number, found in numbered:
        cap = len(tokenizer.encode_src([["", *LINES][int(number) - 1]])[0]) + 1
        size = len(tokenizer.encode_tgt([found])[0]) - 1  # no BOS
        assert size <= cap or not found
        line = f"line {number}: the translation was closed at {cap} tokens, the longest allowed"
        said += [line] if size == cap and line not in said else []
    assert [line.removeprefix("lit-transformer: ") for line in finished.err.splitlines()] == said
    assert 0 < len(said) < len(LINES)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_who_waits_for_each_line_gets_it(tiny_run: Path, workers: str) -> None:
    command = [sys.executable, "-m", "lit_transformer", "translate", str(tiny_run), "--buffer_size", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--num_workers", workers], **pipes) as process:  # type: ignore[call-overload]
        patience = threading.Timer(120, process.kill)
        patience.start()
        for line, translation in (("one\n", "eins\n"), ("\n", "\n"), ("two\n", "zwei\n")):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == translation
        process.stdin.close()
        assert process.wait() == 0
        patience.cancel()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_a_person_at_the_keyboard_is_told_how_to_end(
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    keyboard, terminal = os.openpty()
    os.write(keyboard, b"one\n\x04")  # Ctrl-D
    with os.fdopen(terminal) as stdin, caplog.at_level(logging.INFO, "lit_transformer"):
        monkeypatch.setattr(sys, "stdin", stdin)
        translate_command.run(["translate", str(tiny_run)])
    os.close(keyboard)
    assert capsys.readouterr().out == "eins\n"
    assert "one in a line; end with Ctrl-D" in caplog.text


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
@pytest.mark.parametrize(
    ("source", "words"),
    [("file", "10 of 10 lines translated"), ("file.gz", "10 of 10 lines translated"), ("-", "10 lines translated")],
)
def test_a_person_watching_sees_how_far_it_is(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    lines = "".join(f"{line}\n" for line in LINES).encode()
    (tmp_path / "file").write_bytes(lines)
    (tmp_path / "file.gz").write_bytes(gzip.compress(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    monkeypatch.setattr(translate_command, "device_of", lambda options: "cuda")  # where workers do not search
    screen, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        translate_command.run(
            ["translate", str(tiny_run), "--input", source, "--output", "translated", "--num_workers", "2"]
        )
    shown = b""
    with contextlib.suppress(OSError):  # which ends what a closed terminal has shown
        while part := os.read(screen, 1 << 20):  # a few thousand characters at once
            shown += part
    os.close(screen)
    assert words.encode() in shown
    assert b"lines/s" in shown
    assert (tmp_path / "translated").read_text(encoding="utf-8").count("\n") == 10


# What translate writes


def test_search_options_are_heard(tiny_run: Path) -> None:
    text = "".join(f"{line}\n" for line in LINES)
    for options, search in (
        (["--beam_size", "1"], {"beam_size": 1}),
        (["--max_extra_length", "0"], {"max_extra_length": 0}),
        (["--no_repeat_ngram_size", "1"], {"no_repeat_ngram_size": 1}),
        (["--stop_early", "--length_penalty", "3"], {"stop_early": True, "length_penalty": 3.0}),
        (["--beam_size", "2", "--length_penalty", "3"], {"beam_size": 2, "length_penalty": 3.0}),
        (["--penalty_kind", "power", "--length_penalty", "-3"], {"penalty_kind": "power", "length_penalty": -3.0}),
    ):
        assert translate(tiny_run, *options, stdin=text).out.split("\n")[:-1] == expected(tiny_run, LINES, **search)


def test_translations_begin_with_the_lines_of_a_file(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "begun").write_text("Hund\n\nrot und\n")
    lines = ["one cat", "two", "red and blue"]
    prefixes = ["Hund", "", "rot und"]
    texts = [best[0].text for best in Translator.from_pretrained(tiny_run).translate(lines, prefixes)]
    assert translate(tiny_run, *lines, "--prefix", tmp_path / "begun").out.splitlines() == texts
    assert translate(tiny_run, *lines, "--prefix", "-", stdin="Hund\n\nrot und\n").out.splitlines() == texts
    drawn = translate(tiny_run, *lines, "--prefix", tmp_path / "begun", "--sample").out.splitlines()
    assert [line.startswith(prefix) for line, prefix in zip(drawn, prefixes, strict=True)] == [True] * 3
    for arguments, words in (
        (("--prefix", "-"), "--prefix and --input are both standard input"),
        (("one", "--prefix", tmp_path / "nothing"), "--prefix"),
        (("one", "--prefix", tmp_path / "begun"), "more prefixes than sentences"),
        (("one", "--prefix", tmp_path / "begun", "--engine", "ctranslate2"), "--prefix is not possible with --engine"),
    ):
        assert_one_sentence(translate(tiny_run, *arguments, status=1), words)


def test_the_unknown_token_can_be_left_out(tiny_run: Path, tmp_path: Path) -> None:
    tokenizer = Translator.from_pretrained(tiny_run).tokenizer
    network = Transformer(tokenizer.num_tokens, num_layers=1, d_model=16, d_ff=32, num_heads=2, output_bias=True)
    torch.nn.init.zeros_(network.projection.bias)
    with torch.no_grad():
        network.projection.bias[UNK_ID] = 50.0
    folder = write_model(network, tokenizer, tmp_path / "unknowing")
    short = ("one", "--max_extra_length", "3")
    unknown = tokenizer.decode([UNK_ID] * 4)
    assert translate(folder, *short).out == translate(folder, *short, "--sample").out == f"{unknown}\n"
    found = expected(folder, ["one"], max_extra_length=3, allow_unknown=False)
    assert found != [unknown]
    assert translate(folder, *short, "--no_unknown").out.splitlines() == found
    assert translate(folder, *short, "--no_unknown", "--sample").out != f"{unknown}\n"


def test_scores_and_several_translations(tiny_run: Path) -> None:
    several = list(
        Translator.from_pretrained(tiny_run, search=BeamSearch(beam_size=4, n_best=2)).translate(["one", "", "two"])
    )
    rows = [line.split("\t") for line in translate(tiny_run, "--n_best", 2, "one", "", "two").out.split("\n")[:-1]]
    assert rows == [
        [str(number), f"{one.score:.4f}", one.text] for number, found in enumerate(several, 1) for one in found
    ]
    assert [row[0] for row in rows] == ["1", "1", "2", "3", "3"]  # an empty line has one translation
    assert rows[2] == ["2", "0.0000", ""]
    scored = translate(tiny_run, "--scores", "one", "two").out.split("\n")[:-1]
    best = [next(Translator.from_pretrained(tiny_run).translate([word]))[0] for word in ("one", "two")]
    assert scored == [f"{one.score:.4f}\t{one.text}" for one in best]


def test_more_translations_widen_the_beam_unless_it_was_given(tiny_run: Path) -> None:
    out = translate(tiny_run, "--n_best", 6, "one").out
    wide = next(Translator.from_pretrained(tiny_run, search=BeamSearch(beam_size=6, n_best=6)).translate(["one"]))
    assert [line.split("\t")[2] for line in out.split("\n")[:-1]] == [one.text for one in wide]
    refused = translate(tiny_run, "--n_best", 3, "--beam_size", 2, "one", status=1)
    assert_one_sentence(refused, "--n_best 3 needs --beam_size 3 or more, got 2")


def test_output_goes_to_a_file_in_a_new_folder(tiny_run: Path, tmp_path: Path) -> None:
    finished = translate(tiny_run, "one cat", "two", "--output", tmp_path / "new" / "out.txt")
    assert finished.out == ""
    assert (tmp_path / "new" / "out.txt").read_bytes() == b"eins Katze\nzwei\n"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.txt"]


def test_a_file_can_be_translated_in_place(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("one\ntwo\n")
    translate(tiny_run, "--input", tmp_path / "x", "--output", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "eins\nzwei\n"


def test_alignments_do_not_take_the_place_of_another_file(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("source", "packed.gz", "target"):
        (tmp_path / name).write_text("as it was\n")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "folder").mkdir()
    for source, output, alignment, words in (
        ("source", "target", "link", "--alignment and --output are both"),
        ("source", "folder/../new", "new", "--alignment and --output are both"),
        ("source", "target", "folder/../source", "--alignment would replace --input"),
        ("packed", "target", "packed.gz", "--alignment would replace --input"),
    ):
        options = ("--input", tmp_path / source, "--output", tmp_path / output, "--alignment", tmp_path / alignment)
        assert_one_sentence(translate(tiny_run, *options, status=1), words)
    begun = ("one", "--prefix", tmp_path / "source", "--alignment", tmp_path / "source")
    assert_one_sentence(translate(tiny_run, *begun, status=1), "--alignment would replace --prefix")
    assert_one_sentence(translate(tiny_run, "one", "--alignment", "-", status=1), "--alignment and --output are both -")
    assert {(tmp_path / name).read_text() for name in ("source", "packed.gz", "target")} == {"as it was\n"}
    assert not (tmp_path / "new").exists()
    translate(tiny_run, "--alignment", "-", "--output", tmp_path / "new", stdin="one\n")
    assert (tmp_path / "new").read_text() == "eins\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_a_terminal_takes_translations_and_alignments(tiny_run: Path) -> None:
    screen, terminal = os.openpty()
    name = os.ttyname(terminal)
    translate(tiny_run, "one", "--output", name, "--alignment", f"/dev/../{name}")
    shown = b""
    while b"0-0" not in shown:
        shown += os.read(screen, 1 << 20)
    os.close(terminal)
    os.close(screen)
    assert b"eins" in shown


def test_output_may_be_a_device(tiny_run: Path) -> None:
    translate(tiny_run, "one", "--output", os.devnull)
    assert not Path(os.devnull).is_file()


def breaking_off(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """Lets a signal come when the fifth line is read, and has four translated by then."""
    monkeypatch.setattr(translator_file, "_WINDOW", 2)
    told = lines_file._told

    def interrupted(*source: Any) -> Iterator[bytes]:
        for place, line in enumerate(told(*source), 1):
            if place == 5:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)  # as timeout(1) does
            yield line

    monkeypatch.setattr(lines_file, "_told", interrupted)


@pytest.mark.parametrize("old", [None, "what was there\n"])
def test_an_error_midway_leaves_the_output_as_it_was(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str | None
) -> None:
    monkeypatch.setattr(translator_file, "_WINDOW", 2)  # so that lines have been written before the bad one is met
    output = tmp_path / "out.txt"
    if old is not None:
        output.write_text(old)
    finished = translate(tiny_run, "--output", output, stdin=b"one\ntwo\nred\nblue\n\xff\n", status=1)
    kept = tmp_path / "out.txt.partial"
    assert finished.err.splitlines() == [
        f"finished lines, kept in {kept}: 4",
        "lit-transformer: line 5 of standard input is not valid UTF-8; convert the text to UTF-8 first",
    ]
    assert (output.read_text() if output.exists() else None) == old
    assert kept.read_text() == "eins\nzwei\nrot\nblau\n"
    assert len(list(tmp_path.iterdir())) == 1 + (old is not None)


@pytest.mark.parametrize(
    ("ending", "library"), [("", ""), (".gz", "gzip"), (".xz", "lzma"), (".bz2", "bz2"), (".zst", "zstandard")]
)
def test_sigterm_keeps_finished_lines_in_a_file_that_can_be_read(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, library: str
) -> None:
    opened = pytest.importorskip(library).open if library else open
    breaking_off(monkeypatch, signal.SIGTERM)
    before, kept = signal.getsignal(signal.SIGTERM), tmp_path / f"out.partial{ending}"
    finished = translate(tiny_run, "--output", tmp_path / f"out{ending}", stdin=b"one\n" * 9, status=143)
    assert finished.err == f"finished lines, kept in {kept}: 4\nlit-transformer: stopped by SIGTERM\n"
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    with opened(kept, "rt", encoding="utf-8") as file:
        assert file.read() == "eins\n" * 4
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_keeps_finished_lines(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking_off(monkeypatch, signal.SIGINT)
    finished = translate(tiny_run, "--output", tmp_path / "out", stdin=b"one\n" * 9, status=130)
    assert finished.err.endswith("lit-transformer: stopped by the keyboard\n")
    assert (tmp_path / "out.partial").read_text() == "eins\n" * 4


def test_nothing_is_left_where_no_line_was_finished(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.partial.gz").write_text("of an earlier run")
    finished = translate(tiny_run, "--output", tmp_path / "out.gz", stdin=b"\xff\none\n", status=1)
    assert_one_sentence(finished, "line 1 of standard input is not valid UTF-8")
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial.gz"]
    assert (tmp_path / "out.partial.gz").read_text() == "of an earlier run"


def test_links_are_kept_beside_what_they_name(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking_off(monkeypatch, signal.SIGTERM)
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "there" / "real")
    translate(tiny_run, "--output", tmp_path / "out", stdin=b"one\n" * 9, status=143)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["real.partial"]


def test_lines_before_an_error_reach_standard_output(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translator_file, "_WINDOW", 2)
    assert translate(tiny_run, stdin=b"one\ntwo\n\xff\n", status=1).out == "eins\nzwei\n"
    assert translate(tiny_run, stdin=b"one\ntwo\none\n\xff\n", status=1).out == "eins\nzwei\neins\n"


class TooLarge(BeamSearch):
    """Asks for more memory than any machine has, or as a GPU that is full."""

    def __init__(self, device: str, **options: Any) -> None:
        super().__init__(**options)
        self.device = device

    def __call__(self, network: Any, src: torch.Tensor) -> Any:
        if self.device == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("device", "options", "words"),
    [
        ("cuda", [], "the device has too little memory for this: use a smaller --max_tokens, --beam_size or --max_le"),
        ("cpu", ["--sample"], "this machine has too little memory for this: use a smaller --max_tokens, --n_best or "),
        ("cpu", ["--num_workers", "2"], "this machine has too little memory for this: use a smaller --max_tokens"),
    ],
)
def test_too_little_memory_is_one_sentence(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, device: str, options: list[str], words: str
) -> None:
    monkeypatch.setattr(translate_command, "_search", lambda _: TooLarge(device))
    assert_one_sentence(translate(tiny_run, "one", *options, status=1), words)


@pytest.mark.parametrize(
    ("command", "is_moved"),
    [*((command, True) for command in ("translate", "score", "serve")), ("attention", False), ("serve", False)],
)
def test_a_model_without_room_is_one_sentence(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, is_moved: bool
) -> None:
    """On its way to the device, or while it is built."""

    def too_large(*_: Any) -> None:
        if is_moved:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        torch.empty(2**60, dtype=torch.uint8)

    home, name = (Translator, "to") if is_moved else (model_files, "build_network")
    monkeypatch.setattr(home, name, too_large)
    if command == "serve":
        with pytest.raises(InputError) as told:
            ServedModel.load(ModelSettings(str(tiny_run)), Limits())
        sentence = str(told.value)
    else:
        (tmp_path / "one").write_text("one\n")
        files = ["--input", tmp_path / "one", "--target", tmp_path / "one"] if command == "score" else ["one"]
        finished = lit(command, tiny_run, *files)
        assert_one_sentence(finished, "too little memory for the model")
        sentence = finished.err
    place = "the device" if is_moved else "this machine"
    which = "" if is_moved else f" in {tiny_run}"
    assert f"{place} has too little memory for the model{which}" in sentence
    assert ": another device or machine is needed, or a smaller model" in sentence


def test_too_little_memory_in_other_commands(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").write_text("one\n")
    monkeypatch.setattr(pair_scores, "padded", lambda _: torch.empty(2**60, dtype=torch.uint8))
    finished = lit("score", tiny_run, "--input", tmp_path / "one", "--target", tmp_path / "one")
    assert_one_sentence(finished, "too little memory for this: use a smaller --max_tokens or --max_length")
    monkeypatch.setattr(translator_file, "padded", lambda _: torch.empty(2**60, dtype=torch.uint8))
    assert_one_sentence(lit("attention", tiny_run, "one"), "use a smaller --n_best, or a shorter sentence")


# What translate refuses


def test_bad_text_is_named(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"one\nM\xfcller\n")
    finished = translate(tiny_run, "--input", tmp_path / "in.txt", status=1)
    assert_one_sentence(finished, f"line 2 of {tmp_path / 'in.txt'} is not valid UTF-8")
    finished = translate(tiny_run, stdin=gzip.compress(b"one\n"), status=1)
    assert_one_sentence(finished, "line 1 of standard input is not valid UTF-8", "zcat")
    finished = translate(tiny_run, "one", os.fsdecode(b"M\xfcller"), status=1)
    assert_one_sentence(finished, "sentence 2 of the command line is not valid UTF-8")
    finished = translate(tiny_run, "one\ntwo", status=1)
    assert_one_sentence(finished, "sentence 1 of the command line has several lines; give each as a sentence")
    assert translate(tiny_run, "one\n").out == translate(tiny_run, "one").out


@pytest.mark.skipif(sys.platform != "linux", reason="a file that cannot be read to its end")
def test_bad_files_are_named(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, words in (
        (["--input", tmp_path / "gone"], "gone cannot be read: No such file"),
        (["--input", tmp_path / "gone.gz"], "gone.gz: No such file"),
        (["--input", tmp_path], "cannot be read: Is a directory"),
        (["--input", "/proc/self/mem", "--output", tmp_path / "x"], "/proc/self/mem cannot be read to its end: Input/"),
        (["--input", "http://127.0.0.1:9/x.gz"], "is no file of this machine"),
        (["one", "--output", tmp_path], "cannot be written: Is a directory"),
        (["one", "--output", tmp_path / "file" / "out"], "out cannot be written: "),
        (["one", "--input", tmp_path / "file"], "file; give one of the two"),
    ):
        assert_one_sentence(translate(tiny_run, *arguments, status=1), words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert_one_sentence(translate(tmp_path / "gone", "one", status=1), "gone does not exist; give a .ckpt file")
    assert_one_sentence(translate(tmp_path, "one", status=1), "no readable checkpoint (*.ckpt) in", "train with fit")
    assert_one_sentence(translate(tmp_path / "file", "one", status=1), "file is not a checkpoint file")


def test_a_missing_input_leaves_the_output_alone(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    translate(tiny_run, "--input", tmp_path / "gone", "--output", tmp_path / "out", status=1)
    assert (tmp_path / "out").read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--beam_sise", "2"], "Did you mean 'beam_size'?"),
        (["--nbest", "2"], "Did you mean 'n_best'?"),
        (["--beam_size", "0"], "argument --beam_size: expected a whole number above 0, got 0"),
        (["--beam_size", "many"], "argument --beam_size: invalid"),
        (["--length_penalty", "nan"], "argument --length_penalty: expected a finite number, got nan"),
        (["--max_tokens", "-1"], "argument --max_tokens: expected"),
    ],
)
def test_a_bad_option_is_named(tiny_run: Path, arguments: list[str], words: str) -> None:
    finished = translate(tiny_run, "one", *arguments, status=2)
    assert finished.out == ""
    assert finished.err.count("\n") == 1
    assert words in finished.err


def test_a_device_that_is_not_here(tiny_run: Path) -> None:
    assert_one_sentence(translate(tiny_run, "one", "--device", "qpu", status=1), "--device qpu cannot be used here")
    assert translate(tiny_run, "one", "--device", "cpu").out == "eins\n"


@pytest.mark.parametrize("words", ["CUDA error: out of memory", "CUDA out of memory. Tried to allocate 2 MiB"])
def test_a_device_that_is_full(tiny_run: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*size: int, device: str) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(InputError, match=r"^--device cuda:0 has no memory left: "):
        device_of(translate_parser().parse_args([str(tiny_run), "--device", "cuda:0"]))


FASTER = [["--precision", "int8"], ["--precision", "bf16"], ["--num_workers", "2"]]


@pytest.mark.parametrize("arguments", [*FASTER, pytest.param(["--compile"], marks=needs_compiler)])
def test_faster_ways_translate_too(tiny_run: Path, arguments: list[str]) -> None:
    assert translate(tiny_run, "one cat", "two", *arguments).out == "eins Katze\nzwei\n"


def test_translations_can_be_drawn(tiny_run: Path) -> None:
    text = "one cat\n" * 6
    sample = ("--sample", "--temperature", "3")
    drawn = translate(tiny_run, *sample, "--top_k", "9", stdin=text).out
    assert len(set(drawn.splitlines())) > 1
    assert translate(tiny_run, *sample, "--top_k", "9", stdin=text).out == drawn
    assert translate(tiny_run, *sample, "--top_k", "9", "--seed", "1", stdin=text).out != drawn
    assert translate(tiny_run, *sample, "--top_p", "0.00001", stdin=text).out == "eins Katze\n" * 6
    assert len(translate(tiny_run, "--sample", "--n_best", "3", "one cat").out.splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top_k", "3"], "--top_k is for --sample"),
        (["--sample", "--beam_size", "3"], "leave --beam_size out"),
        (["--sample", "--length_penalty", "1"], "leave --length_penalty out"),
        (["--sample", "--stop_early"], "leave --stop_early out"),
        (["--sample", "--engine", "ctranslate2"], "--sample is not possible with --engine ctranslate2"),
        (["--sample", "--temperature", "0"], "--temperature must be a number above 0, got 0.0"),
        (["--sample", "--top_p", "2"], "--top_p must be above 0 and at most 1, got 2.0"),
    ],
)
def test_options_of_drawing_are_checked(tiny_run: Path, options: list[str], words: str) -> None:
    assert_one_sentence(translate(tiny_run, "one", *options, status=1), words)


def test_compiling_without_a_compiler_is_an_error(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert_one_sentence(translate(tiny_run, "one", "--compile", status=1), "compiled steps need a C compiler")


@pytest.mark.parametrize(("stream", "words"), [("stdin", "--input"), ("stdout", "--output")])
def test_closed_streams_are_named(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stream: str, words: str
) -> None:
    monkeypatch.setattr(sys, stream, None)  # as Python has it where the shell closed it
    arguments = ["one"] if stream == "stdout" else []
    with pytest.raises(InputError, match=f"standard {stream[3:]}put is closed; name a file by {words}"):
        translate_command.run(["translate", str(tiny_run), *arguments])


def test_penalties_out_of_range_are_named(tiny_run: Path) -> None:
    for value in ("500", "-2000"):
        finished = translate(tiny_run, "one", "--length_penalty", value, status=1)
        assert_one_sentence(finished, f"length_penalty must lie between -10 and 10, got {float(value)}")


def test_a_reader_of_alignments_that_has_gone_is_not_blamed_on_the_output(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    command = [sys.executable, "-m", "lit_transformer", "translate", str(tiny_run), "--beam_size", "1"]
    command += ["--output", str(output), "--alignment", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(b"one\n" * 20)
    assert err.decode() == f"finished lines, kept in {output}.partial: 20\n"
    assert Path(f"{output}.partial").read_text() == "eins\n" * 20


def test_a_reader_that_has_gone_is_no_error(tiny_run: Path) -> None:
    command = [sys.executable, "-m", "lit_transformer", "translate", str(tiny_run), "--beam_size", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()  # as `| head` does when it has seen enough
        _, err = process.communicate(b"one\n" * 20)
    assert err == b""
    assert process.returncode == 0


# average


def test_average_of_a_run(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "average.ckpt"
    finished = lit("average", tiny_run, "--last", 2, "--output", output)
    assert finished.status == 0, finished.err
    paths = [tiny_run / "checkpoints" / f"step={step}.ckpt" for step in (100, 150)]
    assert finished.out == f"{output}: the mean of {paths[0]}, {paths[1]}\n"
    mean = average_checkpoints(paths)
    torch.testing.assert_close(dict(torch.load(output, weights_only=True)["state_dict"]), mean, rtol=0, atol=0)
    assert [path.name for path in output.parent.iterdir()] == ["average.ckpt"]
    assert len(translate(output, "one", "two").out.split("\n")) == 3


def test_average_that_cannot_be_written(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path, tmp_path / "file" / "x.ckpt"):
        finished = lit("average", tiny_run, "--last", 2, "--output", output)
        assert finished.status == 1
        assert f"--output {output} cannot be written: " in finished.err
        assert finished.err.count("\n") == 1


def test_files_of_several_runs_are_all_named(tiny_run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_run / "checkpoints", tmp_path / "other")
    paths = [tiny_run / "checkpoints" / "step=50.ckpt", other / "step=50.ckpt", other / "step=100.ckpt"]
    assert lit("average", *paths, "--output", tmp_path / "x.ckpt").status == 0
    found = read_checkpoint(tmp_path / "x.ckpt")["averaged_from"]
    assert found == {str(paths[0]): 50, str(paths[1]): 50, "step=100.ckpt": 100}


def test_average_of_files(tiny_run: Path, tmp_path: Path) -> None:
    paths = [tiny_run / "checkpoints" / f"step={step}.ckpt" for step in (50, 150)]
    assert lit("average", paths[0], "--output", tmp_path / "x.ckpt", paths[1]).status == 0
    mean = average_checkpoints(paths)
    torch.testing.assert_close(
        dict(torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]), mean, rtol=0, atol=0
    )


def test_average_refuses_in_one_sentence(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    good, output = tiny_run / "checkpoints" / "step=50.ckpt", tmp_path / "x.ckpt"
    for arguments, words in (
        ([tiny_run, "--last", 9, "--output", output], "9 checkpoints should be averaged, but"),
        ([good, tmp_path / "gone", "--output", output], "gone does not exist"),
        ([good, tmp_path / "file", "--output", output], "file is not a checkpoint file"),
        ([tmp_path, "--output", output], "holds 0"),
        ([good, "--output", tmp_path / "file" / "x.ckpt"], "x.ckpt cannot be written: "),
    ):
        finished = lit("average", *arguments)
        assert finished.status == 1
        assert_one_sentence(finished, words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    finished = lit("average", good)
    assert finished.status == 2
    assert "the following arguments are required: --output" in finished.err


# ensemble


def test_an_ensemble_is_a_model_for_every_command(tiny_run: Path, tmp_path: Path) -> None:
    paths, folder = [tiny_run / "checkpoints" / f"step={step}.ckpt" for step in (50, 100, 150)], tmp_path / "together"
    finished = lit("ensemble", *paths, "--output", folder)
    assert finished.status == 0, finished.err
    assert finished.out == f"{folder}: an ensemble of {paths[0]}, {paths[1]}, {paths[2]}\n"
    loaded = [Translator.from_pretrained(path) for path in paths]
    networks = [each.network for each in loaded]
    together = Translator(Ensemble(networks), loaded[0].tokenizer)(LINES)
    assert together != loaded[0](LINES)
    text = "".join(f"{line}\n" for line in LINES)
    assert translate(folder, stdin=text).out == "".join(f"{line}\n" for line in together)
    assert lit("export", folder, tmp_path / "copy").status == 0
    assert translate(tmp_path / "copy", stdin=text).out == translate(folder, stdin=text).out
    for command in (("export", folder, tmp_path / "other", "--format", "huggingface"), ("attention", folder, "one")):
        assert_one_sentence(lit(*command), "Ensemble")


def test_an_ensemble_refuses_in_one_sentence(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    other = SubwordTokenizer(vocab_size=300)
    other.train([SentencePair("one cat", "eins Katze")] * 9)
    network = Transformer(other.num_tokens, num_layers=1, d_model=16, d_ff=32, num_heads=2)
    stranger = write_model(network, other, tmp_path / "stranger")
    for arguments, words in (
        ([tiny_run, "--output", tmp_path / "x"], f"needs two models or more, got {tiny_run} alone"),
        ([tiny_run, tiny_run, "--output", tmp_path / "full"], "full exists already and is not an empty folder"),
        ([tiny_run, tmp_path / "gone.ckpt", "--output", tmp_path / "x"], "gone.ckpt does not exist"),
        ([tiny_run, stranger, "--output", tmp_path / "x"], f"{stranger} has other tokens than {tiny_run}"),
        ([tiny_run, tiny_run, "--output", "/proc/x"], "--output /proc/x cannot be written"),
    ):
        finished = lit("ensemble", *arguments)
        assert finished.status == 1
        assert_one_sentence(finished, words)
    assert not (tmp_path / "x").exists()


# score


def test_scores_of_pairs_are_those_of_translate(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "src").write_text("".join(f"{line}\n" for line in LINES))
    for penalty in ([], ["--length_penalty", "0"], ["--penalty_kind", "power", "--length_penalty", "1"]):
        drawn = translate(tiny_run, "--input", tmp_path / "src", "--scores", *penalty).out.splitlines()
        expected, texts = zip(*(line.split("\t") for line in drawn), strict=True)
        with gzip.open(tmp_path / "tgt.gz", "wt") as file:
            file.writelines(f"{text}\n" for text in texts)
        found = lit("score", tiny_run, "--input", tmp_path / "src", "--target", tmp_path / "tgt.gz", *penalty)
        assert found.status == 0, found.err
        assert [float(line) for line in found.out.splitlines()] == pytest.approx([*map(float, expected)], abs=2e-4)


def test_files_of_different_length_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "two").write_text("one\ntwo\n")
    (tmp_path / "one").write_text("eins\n")
    for source, target in (("two", "one"), ("one", "two")):
        options = ("--input", tmp_path / source, "--target", tmp_path / target, "--output", tmp_path / "out")
        finished = lit("score", tiny_run, *options)
        assert finished.status == 1
        assert_one_sentence(finished, f"should have as many lines, but {tmp_path / 'one'} ends before line 2")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    finished = lit("score", tiny_run, "--input", tmp_path / "two", "--target", tmp_path / "gone")
    assert_one_sentence(finished, f"--target {tmp_path / 'gone'} cannot be read")


def test_one_side_of_the_pairs_may_be_standard_input(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "tgt").write_text("eins\n")
    assert lit("score", tiny_run, "--input", "-", "--target", tmp_path / "tgt", stdin="one\n").status == 0
    finished = lit("score", tiny_run, "--input", "-", "--target", "-", stdin="one\neins\n")
    assert (finished.status, finished.out) == (1, "")
    assert_one_sentence(finished, "only one of --input and --target can be standard input")


def test_scores_before_an_error_are_kept(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_scores, "_WINDOW", 1)
    (tmp_path / "src").write_text("one\ntwo\nred\n")
    (tmp_path / "tgt").write_bytes(b"eins\nzwei\n\xff\n")
    finished = lit("score", tiny_run, "--input", tmp_path / "src", "--target", tmp_path / "tgt", "--output", "-")
    options = ("--input", tmp_path / "src", "--target", tmp_path / "tgt", "--output", tmp_path / "scores")
    assert lit("score", tiny_run, *options).status == 1
    assert finished.out.count("\n") == 2
    assert (tmp_path / "scores.partial").read_text() == finished.out
    breaking_off(monkeypatch, signal.SIGTERM)
    for name in ("src", "tgt"):
        (tmp_path / name).write_text("one\n" * 9)
    assert lit("score", tiny_run, *options).status == 143
    assert (tmp_path / "scores.partial").read_text().count("\n") == 4


def test_help_pages_show_examples_and_every_option(tiny_run: Path) -> None:
    for command, options in {
        "translate": [
            "--input",
            "--output",
            "--beam_size",
            "--length_penalty",
            "--n_best",
            "--scores",
            "--max_length",
            "--alignment",
        ],
        "average": ["--last", "--output"],
        "ensemble": ["--output"],
        "score": ["--input", "--target", "--output", "--length_penalty"],
        "attention": ["--output", "--n_best", "--also", "--warmup_steps"],
    }.items():
        finished = lit(command, "--help")
        assert finished.status == 0
        assert f"examples:\n  {'echo' if command == 'translate' else 'lit-transformer'}" in finished.out
        assert all(option in finished.out for option in options)


def test_the_package_stays_quiet_after_a_command(tiny_run: Path) -> None:
    before = logging.getLogger("lit_transformer").handlers[:]
    translate(tiny_run, "one")
    assert logging.getLogger("lit_transformer").handlers == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_full_disk_is_one_sentence(tiny_run: Path) -> None:
    for arguments, words in (
        (["--output", "/dev/full"], "--output /dev/full cannot be written: No space left on device"),
        ([], "No space left on device"),
    ):
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "lit_transformer", "translate", str(tiny_run), "one cat", *arguments]
            finished = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert finished.returncode == 1
        assert words in finished.stderr
        assert finished.stderr.count("\n") == 1, finished.stderr


@pytest.mark.parametrize(
    ("options", "is_needed"),
    [(["--precision", "int8"], True), (["--precision", "bf16"], False),
     (["--precision", "int8", "--engine", "ctranslate2"], False)],
)  # fmt: skip
def test_int8_of_torch_takes_the_cpu_also_where_there_is_a_gpu(options: list[str], is_needed: bool) -> None:
    assert needs_cpu(translate_parser().parse_args(["model", "text", *options])) == is_needed
    assert needs_cpu(serve_parser().parse_args(["model", *options])) == is_needed
