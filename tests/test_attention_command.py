"""The command attention: its pictures, its page with the candidates of the search, and the view behind them."""

import html
import json
import os
from pathlib import Path

import pytest
import torch
from command_line import Finished, lit
from tiny_run import tiny_run as tiny_run

from lit_transformer.decoding import BeamSearch
from lit_transformer.interfaces import InputError
from lit_transformer.translator import Translator


def assert_one_sentence(finished: Finished, words: str) -> None:
    """One line on standard error that names the program and says ``words``."""
    assert finished.status == 1
    assert finished.err.startswith("lit-transformer")
    assert finished.err.count("\n") == 1
    assert words in finished.err


def test_attention_writes_pictures_and_a_page(tiny_run: Path, tmp_path: Path) -> None:
    stem = tmp_path / "new" / "cats"
    finished = lit("attention", tiny_run, "one cat", "--output", stem)
    assert finished.status == 0, finished.err
    names = ["cats.png", "cats-encoder.png", "cats-decoder.png", "cats-cross.png", "cats.html"]
    assert finished.out == "".join(f"{stem.parent / name}\n" for name in names)
    assert {path.name for path in stem.parent.iterdir()} == set(names)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in stem.parent.glob("*.png"))
    page = stem.with_suffix(".html").read_text(encoding="utf-8")
    assert "one cat → eins Katze" in page
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    found = next(Translator.from_pretrained(tiny_run, search=BeamSearch(beam_size=4, n_best=4)).translate(["one cat"]))
    assert [beam["text"] for beam in data["beams"]] == [one.text for one in found]
    assert len(data["others"]) == 3
    for (decoder, cross), beam in zip(data["others"], found[1:], strict=True):
        assert (decoder["kind"], cross["kind"]) == ("decoder", "cross")
        spelled = "".join(decoder["queries"][1:]).replace("▁", " ").strip()
        assert spelled == beam.text


def test_candidates_have_the_attention_of_each_alone(tiny_run: Path) -> None:
    translator = Translator.from_pretrained(tiny_run, search=BeamSearch(beam_size=4, n_best=3))
    view = translator.attention("one cat")
    assert [len(view.others), len(view.beams)] == [2, 3]
    for (maps, tokens), beam in zip([(view.maps, view.tgt_tokens), *view.others], view.beams, strict=True):
        alone = translator.attention("one cat", beam.text)
        assert alone.tgt_tokens == tokens
        for kind in ("encoder", "decoder", "cross"):
            for mine, theirs in zip(getattr(maps, kind), getattr(alone.maps, kind), strict=True):
                torch.testing.assert_close(mine, theirs)
    assert view.title == "one cat → eins Katze"
    assert translator.attention("one cat", "rot").beams == []


@pytest.mark.parametrize(("kind", "head"), [("png", b"\x89PNG"), ("pdf", b"%PDF-"), ("svg", b"<?xml")])
def test_attention_draws_positions_masks_and_warm_up(tiny_run: Path, tmp_path: Path, kind: str, head: bytes) -> None:
    extras = ["--also", "positions", "masks", "warmup", "--warmup_steps", 100]
    finished = lit("attention", tiny_run, "one cat", "--output", tmp_path / f"x.{kind}", "--n_best", 2, *extras)
    assert finished.status == 0, finished.err
    names = [f"x{part}.{kind}" for part in ("", "-encoder", "-decoder", "-cross", "-positions", "-masks", "-warmup")]
    assert finished.out == "".join(f"{tmp_path / name}\n" for name in names)
    assert {path.name: path.read_bytes()[: len(head)] for path in tmp_path.glob("x*")} == dict.fromkeys(names, head)
    refused = lit("attention", tiny_run, "one", "--also", "mask")
    assert refused.status == 2
    assert "invalid choice: 'mask'" in refused.err


def test_a_view_is_saved_and_shown_by_a_notebook(tiny_run: Path, tmp_path: Path) -> None:
    view = Translator.from_pretrained(tiny_run).attention("one cat")
    path = view.save(tmp_path / "new" / "cat.html")
    assert path.read_text(encoding="utf-8") == view.page()
    frame = view._repr_html_()
    assert frame.startswith("<iframe ")
    assert html.unescape(frame.partition('srcdoc="')[2].rpartition('"></iframe>')[0]) == view.page()


def test_attention_of_a_given_translation(tiny_run: Path, tmp_path: Path) -> None:
    finished = lit("attention", tiny_run, "one cat", "rot blau", "--output", tmp_path / "x.html")
    assert finished.status == 0, finished.err
    assert "one cat → rot blau" in (tmp_path / "x.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]


def test_an_empty_target_is_none(tiny_run: Path, tmp_path: Path) -> None:
    assert lit("attention", tiny_run, "one cat", "", "--output", tmp_path / "x.HTML").status == 0
    assert "one cat → eins Katze" in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_a_target_that_the_network_cannot_read_is_refused(tiny_run: Path) -> None:
    translator = Translator.from_pretrained(tiny_run)
    translator.network.max_length = 40
    translator.attention("one cat", " ".join(["rot"] * 39))
    with pytest.raises(InputError, match="the target has 41 tokens, and the network reads at most 40"):
        translator.attention("one cat", " ".join(["rot"] * 40))


def test_attention_refuses_in_one_sentence(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, words in (
        ([tiny_run, " "], "the source sentence is empty"),
        ([tmp_path / "gone", "one"], "gone does not exist"),
        ([tiny_run, "one", "--output", tmp_path / "file" / "x.html"], "x.html cannot be written: "),
        ([tiny_run, os.fsdecode(b"\xff")], "sentence 1 of the command line is not valid UTF-8"),
        ([tiny_run, "one", "--output", "x.jpg"], "x.jpg cannot be written: pictures are .png, .pdf, .svg, the page is"),
        ([tiny_run, "one", "--output", "."], "files cannot be named after '.'"),
        ([tiny_run, "one", "--output", ".."], "files cannot be named after '..'"),
        ([tiny_run, "one", "--output", ""], "files cannot be named after ''"),
    ):
        assert_one_sentence(lit("attention", *arguments), words)
