"""The attention page in a real browser, from a file and without network: what it shows, and how it is operated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from browser import DESKTOP, PHONE, Window, chromium  # noqa: F401

from lit_transformer.attention_page import SCALE, attention_page
from lit_transformer.attention_view import AttentionView
from lit_transformer.interfaces import Translation

SRC = ["▁I", "▁love", "▁cats", "</s>"]
TGT = ["<s>", "▁나는", "▁고양이", "를", "▁좋아해", "</s>"]
OTHER = ["<s>", "▁나는", "▁개", "를", "</s>"]
SEEN = ["<s>", "나는", "고양이", "‑를", "좋아해"]  # how the page writes what the decoder reads
LAYERS, HEADS = 2, 3
BEAMS = [("나는 고양이를 좋아해", -0.25), ("나는 개를", -1.5)]


def random_maps(src_length: int = 4, tgt_length: int = 5, layers: int = LAYERS, heads: int = HEADS) -> Any:
    """Random weights, as exact as the page keeps them; those of the decoder look back only."""
    draw = torch.Generator().manual_seed(tgt_length)

    def weights(queries: int, keys: int, causal: bool = False) -> list[torch.Tensor]:
        scores = 2 * torch.randn(layers, 1, heads, queries, keys, generator=draw, dtype=torch.float64)
        if causal:
            scores = scores.masked_fill(torch.ones(queries, keys).triu(1).bool(), -torch.inf)
        return list((scores.softmax(-1) * SCALE).round() / SCALE)

    return SimpleNamespace(
        encoder=weights(src_length, src_length),
        decoder=weights(tgt_length, tgt_length, causal=True),
        cross=weights(tgt_length, src_length),
    )


MAPS, OTHER_MAPS = random_maps(), random_maps(4, 4)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "고양이 page.html"
    text = attention_page(
        MAPS, SRC, TGT, title=f"I love cats → {BEAMS[0][0]}", beams=BEAMS, others=[(OTHER_MAPS, OTHER)]
    )
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def window(chromium: Any) -> Iterator[Window]:  # noqa: F811
    yield Window(chromium)
    assert Window(chromium).errors == []


def percents(weights: torch.Tensor) -> list[str]:
    """Rounded as a browser rounds: halves go up."""
    return ["<1 %" if 0 < weight < 0.005 else f"{math.floor(100 * weight + 0.5)} %" for weight in weights.tolist()]


def test_the_view_of_the_address_is_shown(window: Window, page: Path) -> None:
    window.open(page, "kind=cross&layer=2&head=3&token=2")
    assert window.chosen[1:] == ["Encoder-decoder attention", "Layer 2", "Head 3"]
    assert window.texts("#queries b") == SEEN
    assert window.texts("#keys b") == ["I", "love", "cats", "</s>"]
    assert window.texts("#keys i") == percents(MAPS.cross[1][0, 2, 1])
    assert window.text("#says").startswith("나는, about to write 고양이, looks at ")
    assert window.text("#map-title") == "Encoder-decoder attention · layer 2 · head 3"


def test_pointing_at_a_target_token_shows_its_sources(window: Window, page: Path) -> None:
    window.open(page, "kind=cross&layer=1&head=2")
    assert window.text("#says").startswith("Point at a token")
    for number, button in enumerate(window.all("#queries button")):
        window.point_at(button)
        assert window.texts("#keys i") == percents(MAPS.cross[0][0, 1, number])
        best = int(MAPS.cross[0][0, 1, number].argmax())
        assert f"looks at {['I', 'love', 'cats', '</s>'][best]} " in window.text("#says")
        assert len(window.all("#lines line")) == int((MAPS.cross[0][0, 1, number] >= 0.02).sum())
        assert [row.get_attribute("class") for row in window.all("#map tbody tr")].index("shown") == number
    window.point_at(window.one("#title"))
    assert window.text("#says").startswith("Point at a token")


def test_pointing_at_a_source_token_shows_who_looks_at_it(window: Window, page: Path) -> None:
    window.open(page, "kind=cross&layer=2&head=average")
    for number, button in enumerate(window.all("#keys button")):
        window.point_at(button)
        column = MAPS.cross[1][0].mean(0)[:, number]
        assert window.texts("#queries i") == percents(column)
        assert f"is looked at by {SEEN[int(column.argmax())]} " in window.text("#says")
    window.point_at(window.all("#map thead th")[0])
    assert window.text("#says").startswith("I is looked at by")


def test_attention_layer_and_head_are_chosen_by_click(window: Window, page: Path) -> None:
    window.open(page)
    assert window.chosen[1:] == ["Encoder-decoder attention", "Layer 2", "Average"]
    window.click("#kinds [data-kind=decoder]")
    window.click("#layers [aria-label='Layer 1']")
    window.click("#heads [aria-label='Head 2']")
    assert window.chosen[1:] == ["Decoder self-attention", "Layer 1", "Head 2"]
    window.point_at(window.all("#queries button")[2])
    assert window.texts("#keys i") == [*percents(MAPS.decoder[0][0, 1, 2, :3]), "masked", "masked"]
    assert len(window.all("#map td.masked")) == 10
    assert "head=2" in window.driver.current_url
    window.click("#every summary")
    window.click("#every [aria-label='Layer 2, head 3']")
    assert window.chosen[2:] == ["Layer 2", "Head 3"]


def test_text_of_the_right_to_left_runs_that_way(window: Window, tmp_path: Path) -> None:
    src, tgt = ["▁I", "▁\u200b", "</s>"], ["<s>", "▁أنا", "▁أحب", "▁القطط", "</s>"]
    page = tmp_path / "rtl.html"
    page.write_text(attention_page(random_maps(3, 4), src, tgt, title="x"), encoding="utf-8")
    window.open(page, "kind=cross")
    assert window.texts("#keys b") == ["I", "‹U+200B›", "</s>"]
    place = "return document.querySelectorAll('#queries button')[{}].getBoundingClientRect().x"
    assert window.run("return [...document.querySelectorAll('.links ol')].map((it) => it.dir)") == ["ltr", "ltr"]
    window.click("#flow")
    assert window.run("return [document.getElementById('queries').dir, document.getElementById('keys').dir]") == [
        "rtl", "ltr",
    ]  # fmt: skip
    assert window.run(place.format(1)) > window.run(place.format(2)) > window.run(place.format(3))


def test_candidates_show_their_scores_and_their_own_attention(window: Window, page: Path) -> None:
    window.open(page, "kind=cross&layer=1&head=1")
    assert window.texts("#beams .score") == ["\u22120.250", "\u22121.500"]
    assert window.texts("#beams mark") == ["고양이를 좋아해", "개를"][1:]
    window.click("#beams button:nth-child(2)")
    assert window.texts("#queries b") == ["<s>", "나는", "개", "‑를"]
    assert window.text("h1") == f"I love cats → {BEAMS[1][0]}"
    assert window.texts("#beams .text") == [text for text, _ in BEAMS]
    window.point_at(window.all("#queries button")[3])
    assert window.texts("#keys i") == percents(OTHER_MAPS.cross[0][0, 0, 3])
    window.click("#kinds [data-kind=encoder]")
    window.point_at(window.all("#queries button")[0])
    assert window.texts("#keys i") == percents(MAPS.encoder[0][0, 0, 0])


def test_candidates_without_their_attention_are_shown_but_not_chosen(window: Window, tmp_path: Path) -> None:
    page, beams = tmp_path / "three.html", [*BEAMS, ("나는 새를", -2.0)]
    text = attention_page(MAPS, SRC, TGT, title="I love cats", beams=beams, others=[(OTHER_MAPS, OTHER)])
    page.write_text(text, encoding="utf-8")
    window.open(page)
    assert window.texts("#beams .text") == [text for text, _ in beams]
    assert len(window.all("#beams [role=radio]")) == 2
    assert "too large with that of the last 1." in window.text("#beams-about")
    window.click("#beams .beam:nth-child(3)")
    assert window.chosen[0].startswith("1")


def test_everything_works_by_keyboard(window: Window, page: Path) -> None:
    window.open(page)
    names = []
    for _ in range(7):
        window.press("TAB")
        names.append(window.focused.accessible_name.strip())
    assert names[1:4] == ["Encoder-decoder attention", "Layer 2", "Average"]
    assert names[5:] == ["as running text", "start of sentence, writes 나는"]  # one stop for each group of buttons
    assert window.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    window.press("ARROW_DOWN", "ARROW_DOWN")
    assert window.text("#says").startswith("고양이, about to write ‑를, looks at")
    window.press("ENTER", "TAB")
    assert window.focused.accessible_name == "I"
    window.press("END")
    assert window.text("#says").startswith("</s> is looked at by")
    window.press("TAB")
    assert window.text("#says").startswith("고양이")  # the one that was kept
    window.press("ESCAPE")
    assert window.text("#says").startswith("Point at a token")


def test_arrow_keys_choose_within_a_group(window: Window, page: Path) -> None:
    window.open(page)
    window.press("TAB", "ARROW_DOWN")
    assert window.texts("#queries b") == ["<s>", "나는", "개", "‑를"]
    window.press("ARROW_UP", "TAB", "HOME")
    assert window.chosen[1] == "Encoder self-attention"
    window.press("TAB", "ARROW_LEFT", "TAB", "ARROW_LEFT")
    assert window.chosen[1:] == ["Encoder self-attention", "Layer 1", f"Head {HEADS}"]
    assert window.text("#map-title") == f"Encoder self-attention · layer 1 · head {HEADS}"


def test_a_screen_reader_is_told_in_words(window: Window, page: Path) -> None:
    window.open(page, "kind=cross&layer=1&head=1")
    live = window.one("#says")
    assert (live.get_attribute("aria-live"), live.aria_role) == ("polite", "status")
    assert [group.accessible_name for group in window.all("[role=radiogroup]")] == [
        *("Candidates of the search", "Attention", "Layer", "Head")
    ]
    assert [one.accessible_name for one in window.all("#keys button")] == ["I", "love", "cats", "end of sentence"]
    assert window.all("#queries button")[3].accessible_name == "part 를, writes 좋아해"
    for element in window.all("button, input, [tabindex]"):
        assert element.accessible_name, element.get_attribute("outerHTML")
    assert window.one("html").get_attribute("lang") == "en"
    cells = window.run("return [...document.querySelectorAll('#map tbody tr')].map(row => row.cells.length)")
    assert cells == [len(SRC) + 1] * (len(TGT) - 1)


@pytest.mark.parametrize("length", [4, 40])
def test_a_phone_shows_it_without_sideways_scrolling(window: Window, tmp_path: Path, length: int) -> None:
    tokens = ["▁Donaudampfschifffahrtsgesellschaft", "▁고양이를", "s", "▁a"] * (length // 4)
    page = tmp_path / "long.html"
    maps = random_maps(length, length - 1, layers=6, heads=8)
    beams = [(" ".join(tokens), -1.0), ("x" * 400, -2.0)]
    page.write_text(attention_page(maps, tokens, tokens, title=" ".join(tokens), beams=beams), encoding="utf-8")
    phone = Window(window.driver, PHONE)
    for kind in ("encoder", "decoder", "cross"):
        phone.open(page, f"kind={kind}&layer=6&head=8&token=2")
        phone.click("#every summary")
        assert phone.overflow <= 0
        assert phone.one("#flow").is_selected() == (length > 22)
        small = phone.run(
            "return [...document.querySelectorAll('button.choice, button.head, .token')]"
            ".filter(it => it.getBoundingClientRect().height < 24).length"
        )
        assert small == 0  # fingers need room
    phone.all("#queries button")[2].click()
    assert phone.text("#says").startswith("‑s, about to write a")
    Window(window.driver, DESKTOP)


def test_running_text_and_columns_say_the_same(window: Window, page: Path) -> None:
    window.open(page, "kind=cross&layer=1&head=1&token=2")
    before = window.text("#says")
    window.click("#flow")
    assert window.text("#says") == before
    assert not window.all("#lines line")
    shown = [text for text in percents(MAPS.cross[0][0, 0, 1]) if text != "<1 %" and int(text.split()[0]) >= 5]
    assert [text for text in window.texts("#keys i") if text] == shown
    window.click("#kinds [data-kind=encoder]")
    assert window.one("#flow").is_selected()  # what the reader chose stays


def test_both_colour_schemes_are_readable(window: Window, page: Path) -> None:
    for scheme in ("light", "dark"):
        window.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        window.open(page)
        for selector in ("h1", "#says", ".muted", "#queries b", ".choice[aria-checked=true]"):
            assert contrast(window, selector) >= 4.5, (scheme, selector)
    window.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(window: Window, selector: str) -> float:
    """The contrast of a text with what lies behind it, as WCAG 2 defines it."""
    colours = window.driver.execute_script(
        "let it = document.querySelector(arguments[0]); const ink = getComputedStyle(it).color;"
        "while (getComputedStyle(it).backgroundColor === 'rgba(0, 0, 0, 0)') it = it.parentElement;"
        "return [ink, getComputedStyle(it).backgroundColor]",
        selector,
    )
    lights = []
    for colour in colours:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_hostile_text_stays_text(window: Window, tmp_path: Path) -> None:
    hostile = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "{{data}}", "", "\u202e▁▁"]
    page = tmp_path / "hostile.html"
    maps, title = random_maps(5, 5), "<b>bold</b>{{script}}"
    beams = [(text, -1.0) for text in hostile]
    page.write_text(
        attention_page(maps, hostile, hostile, title=title, beams=beams, others=[(maps, hostile)] * 4, reference="<i>"),
        encoding="utf-8",
    )
    window.open(page, "kind=cross&token=1")
    assert window.text("h1") == title
    assert window.text("#keys li:nth-child(2) b") == hostile[1]
    assert window.texts("#beams .text")[0] == hostile[0]
    assert not window.all("img, h1 b, #reference i")
    assert "<img src=x" in window.text("#says")


def test_in_plain_text_a_view_names_its_words_and_no_tensor() -> None:
    view = AttentionView(MAPS, SRC, TGT, "나는 고양이를", [], "I love cats", [(OTHER_MAPS, OTHER)])
    assert "I love cats" in repr(view)
    assert "tensor" not in repr(view)


def test_a_notebook_shows_the_page_in_a_frame(window: Window, tmp_path: Path) -> None:
    beams = [Translation(*BEAMS[0]), Translation(*BEAMS[1])]
    view = AttentionView(MAPS, SRC, TGT, '나는 "고양이"를', beams, "I love <cats>", [(OTHER_MAPS, OTHER)])
    (tmp_path / "notebook.html").write_text(f"<meta charset=utf-8><body>{view._repr_html_()}</body>", encoding="utf-8")
    window.open(tmp_path / "notebook.html")
    window.driver.switch_to.frame(window.one("iframe"))
    assert window.text("h1") == 'I love <cats> → 나는 "고양이"를'
    window.click("#layers [aria-label='Layer 1']")
    window.all("#queries button")[1].click()
    assert window.texts("#keys i") == percents(MAPS.cross[0][0].mean(0)[1])
    window.driver.switch_to.default_content()
