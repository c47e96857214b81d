"""Pictures and page of the attention: what they show equals the maps, whatever the tokens are."""

import json
import logging
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lit_transformer import fonts, plotting
from lit_transformer.attention_page import attention_grids, attention_page
from lit_transformer.bidi import pointing
from lit_transformer.interfaces import InputError
from lit_transformer.nn.embedding import LearnedPositions
from lit_transformer.nn.transformer import Transformer

SRC = ["▁I", "▁love", "▁cats", "</s>"]
TGT = ["<s>", "▁나는", "▁고양이", "를", "▁좋아해", "</s>"]
KINDS = ("encoder", "decoder", "cross")
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--",
    "\u2028\u2029",
    '"\\',
    "$x^2$",
    "&lt;",
    "{{data}}",
    "\ud800",
    "",
]
LAYERS, HEADS = 2, 3


def _maps(src_length=4, tgt_length=5):
    """Random weights; those of the decoder look back only."""

    def layers(queries, keys, causal=False):
        scores = torch.randn(LAYERS, 2, HEADS, queries, keys)
        if causal:
            scores = scores.masked_fill(torch.ones(queries, keys).triu(1).bool(), -torch.inf)
        return list(scores.softmax(-1))

    return SimpleNamespace(
        encoder=layers(src_length, src_length),
        decoder=layers(tgt_length, tgt_length, causal=True),
        cross=layers(tgt_length, src_length),
    )


def _panels(figure):
    return {axes.get_label(): axes for axes in figure.axes if axes.get_label() != "colour scale"}


class _Page(HTMLParser):
    """Collects the scripts, the title and every address of a page."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.titles, self.addresses, self.open = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        if self.open in ("title", "h1"):
            self.titles.append(data)

    @property
    def data(self):
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "data"))


@pytest.fixture
def _only_base_font(monkeypatch):
    """A machine without Korean fonts, neither in the system nor in a package."""
    monkeypatch.setattr(fonts, "SYSTEM_FAMILIES", ())
    monkeypatch.setattr(fonts, "PACKAGED_FONTS", ())
    fonts._report.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_is_drawn_with_its_weights(kind):
    maps = _maps()
    panels = _panels(plotting.plot_attention(maps, SRC, TGT, kind=kind))
    name = {"encoder": "encoder self-attention", "decoder": "decoder self-attention"}.get(
        kind, "encoder-decoder attention"
    )
    assert len(panels) == LAYERS * HEADS
    for layer in range(LAYERS):
        for head in range(HEADS):
            axes = panels[f"{name} · layer {layer + 1} · head {head + 1}"]
            drawn = axes.images[0].get_array()
            weights = getattr(maps, kind)[layer][0, head].numpy()
            assert np.array_equal(drawn.data, weights)
            expected_mask = np.triu(np.ones_like(weights, dtype=bool), 1) if kind == "decoder" else False
            assert np.array_equal(np.ma.getmaskarray(drawn), np.broadcast_to(expected_mask, weights.shape))


def test_rows_are_queries_and_columns_are_keys():
    axes = _panels(plotting.plot_attention(_maps(), SRC, TGT))["encoder-decoder attention · layer 1 · head 1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == TGT[:-1]
    assert [label.get_text() for label in axes.get_xticklabels()] == SRC


def test_written_tokens_stand_beside_their_queries():
    figure = plotting.plot_attention(_maps(), SRC, TGT)
    axes = _panels(figure)[f"encoder-decoder attention · layer 1 · head {HEADS}"]
    written = {round(text.get_position()[1]): text.get_text() for text in axes.texts}
    assert written == {row: f"→ {token}" for row, token in enumerate(TGT[1:])}


def test_without_eos_the_last_query_writes_nothing_known():
    grid = attention_grids(_maps(), SRC, TGT[:-1])["cross"]
    assert (grid.queries, grid.written) == (TGT[:-1], [*TGT[1:-1], ""])


def test_labels_are_inside_the_picture_and_panels_do_not_touch():
    figure = plotting.plot_attention(_maps(), SRC, TGT)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    width, height = figure.canvas.get_width_height()
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_overview_averages_the_self_attentions_and_shows_each_cross_head():
    maps = _maps()
    panels = _panels(plotting.plot_overview(maps, SRC, TGT, layer=0, title="I love cats → 나는 고양이를 좋아해"))
    assert len(panels) == 2 + HEADS
    average = panels["encoder self-attention · layer 1 · average of all heads"].images[0].get_array()
    assert np.allclose(average, maps.encoder[0][0].numpy().mean(0))
    for head in range(HEADS):
        drawn = panels[f"encoder-decoder attention · layer 1 · head {head + 1}"].images[0].get_array()
        assert np.array_equal(drawn, maps.cross[0][0, head].numpy())


def test_korean_is_written_as_it_is_where_a_font_has_it():
    families = fonts.lettering_for(["나는 고양이"])
    assert not families.undrawable, "the extra `plot` brings a Korean font"
    assert families.label("▁나는") == "▁나는"


def test_tokens_without_anything_to_see_are_spelled_out():
    letters = fonts.lettering_for(["▁\u200b", "a\u200d", "\n", "▁"])
    labels = [letters.label(token) for token in ("▁\u200b", "\u200b\xa0", "a\u200d", " \n", "▁", "")]
    assert labels == ["▁‹U+200B›", "‹U+200B·U+00A0›", "a\u200d", "␣⏎", "▁", "∅"]


def test_the_arrow_points_at_the_target_in_every_script(tmp_path):
    """Renderers reorder a line of Arabic; the marks that keep its direction are letters to them, and not drawn."""
    hebrew, arabic = "שלום", "مرحبا"
    assert pointing("I love cats", "나는") == "I love cats → 나는"
    title = pointing(hebrew, arabic)
    assert title.replace("\u200e", "") == f"{hebrew} → {arabic}"
    directions = [unicodedata.bidirectional(character) for character in title]
    assert directions[0] == "L", "the line is read from left to right"
    arrow = title.index("→")
    assert directions[arrow - 1] == directions[arrow + 1] == "L", "so is the arrow, between two texts that are not"
    assert pointing("", arabic)[0] == "\u200e"
    families = fonts.lettering_for([title.replace(hebrew, "").replace(arabic, "")])
    assert not families.undrawable


def test_endings_are_known_in_capitals_too(tmp_path):
    for name, written in {"a.PNG": "a.png", "b.Svg": "b.svg"}.items():
        paths = plotting.draw_attention(_maps(), SRC, TGT, tmp_path / name)
        assert paths[0].name == written
        assert len(paths) == 4, "pictures of that kind alone"


def test_pictures_of_other_kinds_are_refused_and_other_endings_are_part_of_the_name():
    for name in ("cats.jpg", "cats.v2.JPEG", "cats.tiff"):
        with pytest.raises(InputError, match=f"^{name} cannot be written: pictures are .png, .pdf, .svg, the page is"):
            plotting.split_ending(name)
    for name in ("cats.v2", "cats.2", "step=3.5", "cats.en-de", "a.jpg/cats", "news.de", "mr.smith"):
        assert plotting.split_ending(name) == (Path(name), "", ".png")


def test_the_packaged_font_is_enough_and_stays_unimported(monkeypatch, tmp_path):
    monkeypatch.setattr(fonts, "SYSTEM_FAMILIES", ())
    assert fonts.lettering_for(TGT).families == ("DejaVu Sans", "NanumGothic")
    plotting.plot_overview(_maps(), SRC, TGT, title="나는").savefig(tmp_path / "a.png")  # a missing glyph would warn
    assert "koreanize_matplotlib" not in sys.modules


@pytest.mark.usefixtures("_only_base_font")
def test_without_a_font_tokens_are_spelled_out_and_one_warning_says_what_to_install(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        for path in plotting.draw_attention(_maps(), SRC, TGT, tmp_path / "cats.png", title="나는"):
            assert path.stat().st_size > 5_000
    assert fonts.lettering_for(TGT).label("▁나는") == "▁‹na·neun›"
    messages = [record.getMessage() for record in caplog.records if record.name == "lit_transformer.fonts"]
    assert len(messages) == 1
    assert 'pip install "lit-transformer[plot]"' in messages[0]


@pytest.mark.usefixtures("_only_base_font")
def test_different_undrawable_tokens_keep_different_labels():
    tokens = ["나", "너", "中", "国", "나너", "너나"]
    lettering = fonts.lettering_for(tokens)
    assert len({lettering.label(token) for token in tokens}) == len(tokens)
    assert lettering.label("中") == "‹U+4E2D›"


def test_hostile_tokens_are_drawn_as_text(tmp_path):
    maps = _maps(len(HOSTILE), len(HOSTILE))
    paths = plotting.draw_attention(maps, HOSTILE, HOSTILE, tmp_path / "a" / "hostile", title="$\\frac</title>{{data}}")
    assert [path.name for path in paths] == [
        "hostile.png",
        "hostile-encoder.png",
        "hostile-decoder.png",
        "hostile-cross.png",
        "hostile.html",
    ]
    assert all(path.stat().st_size > 5_000 for path in paths)


def test_composed_and_decomposed_korean_look_the_same():
    assert fonts.lettering_for(["나"]).label("\u1102\u1161") == "나"  # two jamo that compose to one syllable


def test_long_sentences_stay_of_bounded_size():
    figure = plotting.plot_attention(_maps(150, 150), ["token"] * 150, ["token"] * 150, kind="encoder")
    assert max(figure.get_size_inches()) < 60
    first = next(iter(_panels(figure).values()))
    assert 20 < len(first.get_xticklabels()) < 150


def test_maps_of_the_network_fit(tmp_path):
    network = Transformer(vocab_size=32, num_layers=1, d_model=16, d_ff=32, num_heads=2).eval()
    with torch.inference_mode():
        maps = network.attention_maps(torch.tensor([[5, 6, 7, 3]]), torch.tensor([[2, 8, 9, 10, 11]]))
    axes = _panels(plotting.plot_attention(maps, SRC, TGT, kind="decoder"))
    drawn = axes["decoder self-attention · layer 1 · head 2"].images[0].get_array()
    assert np.allclose(drawn.filled(0).sum(-1), 1, atol=1e-6)
    assert np.ma.getmaskarray(drawn).any()


@pytest.mark.parametrize("tgt", [TGT[:-2], [*TGT, "more"]])
def test_tokens_that_do_not_fit_the_maps_are_refused(tgt):
    with pytest.raises(ValueError, match="tokens"):
        attention_page(_maps(), SRC, tgt)
    with pytest.raises(ValueError, match=r"maps\.encoder of layer 1 must be \(B, H, 3, 3\)"):
        plotting.plot_attention(_maps(), SRC[1:], TGT)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="kind must be one of encoder, decoder, cross; got 'self'"):
        plotting.plot_attention(_maps(), SRC, TGT, kind="self")
    with pytest.raises(ValueError, match="layer must be between -2 and 1"):
        plotting.plot_overview(_maps(), SRC, TGT, layer=2)
    with pytest.raises(ValueError, match=r"maps\.cross must have at least one layer"):
        plotting.plot_attention(SimpleNamespace(**{**vars(_maps()), "cross": []}), SRC, TGT)
    broken = _maps()
    broken.cross[1][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"maps\.cross of layer 2 must be finite"):
        attention_page(broken, SRC, TGT)


def test_positions_are_sines_and_cosines():
    table = plotting.plot_positions(d_model=8, length=5).axes[0].images[0].get_array()
    for position in range(5):
        for pair in range(4):
            angle = position / 10_000 ** (2 * pair / 8)
            assert np.allclose(table[position, 2 * pair : 2 * pair + 2], [np.sin(angle), np.cos(angle)], atol=1e-6)


def test_learned_positions_are_drawn_as_they_are():
    positions = LearnedPositions(d_model=8, max_length=6)
    figure = plotting.plot_positions(d_model=8, length=5, positions=positions)
    drawn = figure.axes[0].images[0]
    assert np.allclose(drawn.get_array(), positions(torch.zeros(1, 5, 8))[0].detach().numpy())
    largest = float(np.abs(drawn.get_array()).max())
    assert drawn.get_clim() == pytest.approx((-largest, largest))
    assert "learned" in figure.axes[1].get_title()


def test_masks_are_labelled_with_tokens():
    tokens = {"src_tokens": [*SRC, "<pad>"], "tgt_tokens": TGT[:-1]}
    left, right = plotting.plot_masks(torch.tensor([[5, 6, 7, 3, 0]]), 5, **tokens).axes
    assert [label.get_text() for label in left.get_xticklabels()] == [*SRC, "<pad>"]
    assert [label.get_text() for label in right.get_xticklabels()] == TGT[:-1]
    assert [label.get_text() for label in right.get_yticklabels()] == TGT[:-1]
    with pytest.raises(ValueError, match="tgt_tokens must be 3, one for each position; got 5"):
        plotting.plot_masks(torch.tensor([[5, 6, 7, 3, 0]]), 3, **tokens)


def test_masks_hide_padding_and_the_future():
    left, right = plotting.plot_masks(torch.tensor([[5, 3, 0], [5, 6, 3]]), tgt_length=3).axes
    assert left.images[0].get_array().tolist() == [[True, True, False], [True, True, True]]
    assert right.images[0].get_array().tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    with pytest.raises(ValueError, match="tgt_length must be at least 1"):
        plotting.plot_masks(torch.ones(1, 1, dtype=torch.long), tgt_length=0)


def test_warmup_is_equation_3():
    lines = plotting.plot_warmup([512, 1024], warmup_steps=40, num_steps=100).axes[0].lines[:2]
    for width, line in zip((512, 1024), lines, strict=True):
        for step, rate in zip(*line.get_data(), strict=True):
            assert rate == pytest.approx(width**-0.5 * min(step**-0.5, step * 40**-1.5))
    with pytest.raises(ValueError, match="at least 1"):
        plotting.plot_warmup(0)


def test_missing_matplotlib_names_the_extra_and_writes_nothing(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lit-transformer\[plot\]"'):
        plotting.draw_attention(_maps(), SRC, TGT, tmp_path / "new" / "cats")
    assert not (tmp_path / "new").exists()
    (page,) = plotting.draw_attention(_maps(), SRC, TGT, tmp_path / "cats.html")  # the page needs no matplotlib
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_pixels_are_those_of_the_picture():
    figure = plotting.plot_overview(_maps(), SRC, TGT, title="나는")
    pixels = plotting.pixels_of(figure)
    width, height = figure.get_size_inches() * plotting.PIXELS_PER_INCH
    assert pixels.shape == (int(height), int(width), 3)
    assert (pixels[0, 0] == 255).all()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_drawing_leaves_global_settings_alone():
    before = dict(pyplot.rcParams)
    plotting.plot_overview(_maps(), SRC, TGT)
    assert dict(pyplot.rcParams) == before
    assert pyplot.get_fignums() == []


def test_page_holds_tokens_weights_and_candidates():
    maps = _maps()
    data = _Page(attention_page(maps, SRC, TGT, reference="나는", beams=[("첫째", -0.25), ("둘째", -1.5)])).data
    assert data["reference"] == "나는"
    assert data["beams"] == [{"text": "첫째", "score": -0.25}, {"text": "둘째", "score": -1.5}]
    for grid, kind in zip(data["grids"], KINDS, strict=True):
        assert grid["kind"] == kind
        assert np.allclose(np.array(grid["layers"]) / data["scale"], torch.stack(getattr(maps, kind))[:, 0], atol=6e-5)
    assert data["others"] == []
    cross = data["grids"][2]
    assert (cross["queries"], cross["keys"], cross["written"]) == (TGT[:-1], SRC, TGT[1:])


def test_page_survives_hostile_text():
    title = "</title><script>alert(2)</script> & {{data}}"
    beams = [(text, -1.0) for text in HOSTILE]
    text = attention_page(
        _maps(len(HOSTILE), len(HOSTILE)), HOSTILE, HOSTILE, title=title, reference="{{title}}", beams=beams
    )
    page = _Page(text)
    assert len(page.scripts) == 2
    assert page.titles == [title, title]
    assert page.data["grids"][0]["keys"] == HOSTILE
    assert page.data["reference"] == "{{title}}"
    assert not any(character in text for character in "\u2028\u2029\ud800")


def test_page_asks_nothing_of_the_network():
    text = attention_page(_maps(), SRC, TGT)
    assert _Page(text).addresses == []
    assert "default-src 'none'" in text
    assert not any(word in text for word in ("http://", "https://", "@import", "url(", "fetch(", "XMLHttpRequest"))
