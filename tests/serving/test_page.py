"""The page that the server shows, in a real browser: translate, compare candidates, look inside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, Window, chromium
from running_server import RunningServer

from lit_transformer import BeamSearch, Translator

__all__ = ["chromium"]
pytestmark = pytest.mark.slow
KOREAN = "고양이를 좋아해"


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What ``condition`` returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the page did not get there in time"
        time.sleep(0.05)
    return found


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def window(request: pytest.FixtureRequest, chromium: Any, server: RunningServer) -> Iterator[Window]:
    """The page, loaded, at two widths."""
    opened = Window(chromium, request.param)
    still = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", still)  # a click would miss what still moves
    chromium.get(server.url)
    until(lambda: opened.text("#model"))
    opened.errors  # noqa: B018 - forgets those of the page before
    yield opened
    assert opened.errors == []
    assert opened.overflow <= 0


def translate(window: Window, text: str) -> None:
    window.one("#text").clear()
    window.one("#text").send_keys(text)
    window.click("#go")
    until(lambda: "ranslated in" in window.text("#status"))


def test_it_names_languages_and_model(window: Window) -> None:
    assert window.text("#title") == "Translate English into Korean"
    assert "parameters" in window.text("#model")
    assert window.one("#text").accessible_name == "English"
    assert window.one("#text").get_attribute("lang") == "en"
    assert window.focused == window.one("#text")


def test_it_translates_each_line(window: Window, server: RunningServer) -> None:
    lines = ["I love cats", KOREAN]
    translate(window, "\n\n".join(lines))
    expected = server.translate(texts=lines, n_best=4)
    assert window.texts(".best") == [" ".join(one["translations"][0]["text"].split()) or "(empty)" for one in expected]
    assert window.texts(".source") == lines
    assert window.one(".best").get_attribute("lang") == "ko"
    assert "2 lines" in window.text("#status")


def test_the_keyboard_is_enough(window: Window, chromium: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    window.one("#text").send_keys("I love cats")
    ActionChains(chromium).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    until(lambda: "ranslated in" in window.text("#status"))
    reached = []
    while len(reached) < 12 and "Show attention" not in reached:
        window.press("TAB")
        reached.append(window.focused.accessible_name)
    assert reached[:2] == ["Candidates", "Translate"]
    window.press("ENTER")
    until(lambda: window.focused == window.one("#attention-title"))
    window.press("ESCAPE")
    assert not window.one("#attention").is_displayed()
    assert window.focused.accessible_name == "Show attention"


def test_candidates_and_their_scores(window: Window, server: RunningServer) -> None:
    translate(window, "I love cats")
    button = window.one(".candidates")
    assert button.get_attribute("aria-expanded") == "false"
    assert not window.one("table").is_displayed()
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    (expected,) = server.translate(text="I love cats", n_best=4)
    scores = [f"{one['score']:.3f}".replace("-", "\u2212") for one in expected["translations"]]
    assert window.texts("td:last-child") == scores


def test_the_attention_is_shown_inside_the_page(window: Window, chromium: Any) -> None:
    translate(window, KOREAN)
    window.click(".look")
    until(lambda: "shown below" in window.text("#status"))
    frame = window.one("#frame")
    assert frame.get_attribute("title") == "What every head looks at"
    chromium.switch_to.frame(frame)
    try:
        assert KOREAN in window.text("h1")
        assert len(window.all("canvas")) >= 2
        assert window.overflow <= 0
        height = window.run("return document.documentElement.offsetHeight")
    finally:
        chromium.switch_to.default_content()
    assert frame.size["height"] >= height, "the frame is as high as what it shows"
    window.click("#attention-close")
    assert not window.one("#attention").is_displayed()


def test_another_candidate_is_chosen_inside_the_page(window: Window, chromium: Any, tiny_model: Path) -> None:
    """Every candidate with its score, and what the heads look at while the second is written."""
    translate(window, KOREAN)
    window.click(".look")
    until(lambda: "shown below" in window.text("#status"))
    view = Translator.from_pretrained(tiny_model, search=BeamSearch(n_best=4)).attention(KOREAN)
    maps, tgt_tokens = view.others[0]
    chromium.switch_to.frame(window.one("#frame"))
    try:
        scores = [float(text.replace("\u2212", "-")) for text in window.texts("#beams .score")]
        assert scores == pytest.approx([beam.score for beam in view.beams], abs=2e-3)
        shown = [" ".join(text.split()) for text in window.texts("#beams .text")]
        assert shown == [" ".join(beam.text.split()) for beam in view.beams]
        assert window.one("#beams button:nth-child(1)").get_attribute("aria-checked") == "true"
        window.click("#beams button:nth-child(2)")
        assert window.one("#beams button:nth-child(2)").get_attribute("aria-checked") == "true"
        assert [" ".join(text.split()) for text in window.texts("#beams .text")] == shown
        assert len(window.all("#queries li")) == len(tgt_tokens) - 1
        window.click("#kinds [data-kind=cross]")
        window.click("#layers [aria-label='Layer 2']")
        window.click("#heads [aria-label='Head 1']")
        window.all("#queries button")[1].click()
        if window.one("#flow").is_selected():
            window.click("#flow")
        weights = maps.cross[1][0, 0, 1].tolist()
        for text, weight in zip(window.texts("#keys i"), weights, strict=True):
            assert abs(float(text.replace("<", "").removesuffix(" %")) - 100 * weight) < 1, (text, weight)
        assert window.overflow <= 0
    finally:
        chromium.switch_to.default_content()


def test_the_number_of_candidates_is_the_one_chosen(window: Window, chromium: Any) -> None:
    window.run("document.getElementById('n_best').value = '2'")
    translate(window, KOREAN)
    window.click(".look")
    until(lambda: "shown below" in window.text("#status"))
    assert "n_best=2" in window.one("#attention-link").get_attribute("href")
    chromium.switch_to.frame(window.one("#frame"))
    found = len(window.all("#beams button"))
    chromium.switch_to.default_content()
    assert found == 2


def test_text_is_shown_as_text(window: Window) -> None:
    nasty = "<img src=x onerror=document.title=1> & <b>cats</b>"
    translate(window, f"{nasty}\nI love cats")
    assert window.texts(".source")[0] == nasty
    assert window.all("img, #results b") == []
    assert window.run("return document.title").startswith("Translate")


def test_what_is_refused_is_said(window: Window) -> None:
    window.click("#go")
    assert window.text("#error") == "Type a sentence first."
    window.one("#text").send_keys("cats and dogs " * 60)
    window.click("#go")
    until(lambda: "at most 64 are taken" in window.text("#error"))
    window.errors  # noqa: B018 - Chromium itself logs the 422
    translate(window, "I love cats")
    assert not window.one("#error").is_displayed()


def test_attention_that_is_refused_is_said(window: Window) -> None:
    """The refusal comes in a frame of the page, which must be allowed to read it."""
    translate(window, "I love cats")
    window.run("showAttention('cats and dogs '.repeat(60), {n_best: 1}, document.querySelector('.look'))")
    until(lambda: "tokens; at most" in window.text("#error"))
    assert not window.one("#attention").is_displayed()
    window.errors  # noqa: B018 - Chromium itself logs the 422


def test_a_server_that_is_gone_is_said(window: Window, chromium: Any) -> None:
    translate(window, "I love cats")
    network = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    chromium.execute_cdp_cmd("Network.enable", {})
    chromium.execute_cdp_cmd("Network.emulateNetworkConditions", network)
    try:
        for button in (".look", "#go"):
            window.click(button)
            until(lambda: "cannot be reached" in window.text("#error"))
            assert not window.one("#attention").is_displayed()
            assert window.text("#status") == ""
            window.run("complain('')")
    finally:
        online = {**network, "offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
        chromium.execute_cdp_cmd("Network.emulateNetworkConditions", online)
    window.errors  # noqa: B018 - Chromium itself logs what it could not reach


def test_dark_and_light_are_readable(chromium: Any, server: RunningServer) -> None:
    """Contrast of 4.5 to 1 or more for all text, as WCAG asks."""
    for scheme in ("light", "dark"):
        chromium.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        window = Window(chromium)
        chromium.get(server.url)
        until(lambda: window.text("#model"))  # noqa: B023
        translate(window, "I love cats\nthe dog sleeps")
        window.click(".candidates")
        worst = window.run(_CONTRAST)
        assert worst["ratio"] >= 4.5, (scheme, worst)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


_CONTRAST = """
const numbers = text => text.match(/[\\d.]+/g).map(Number);
const linear = v => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
const light = color => color.slice(0, 3).map(linear)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
function behind(element) {
  for (let one = element; one; one = one.parentElement) {
    const color = numbers(getComputedStyle(one).backgroundColor);
    if (color.length === 3 || color[3] === 1) return color;
  }
  return [255, 255, 255];
}
let worst = {ratio: 99};
for (const element of document.querySelectorAll("body *")) {
  const hasText = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  if (!hasText || !element.checkVisibility() || element.tagName === "SCRIPT") continue;
  const [a, b] = [light(numbers(getComputedStyle(element).color)), light(behind(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < worst.ratio) worst = {ratio, text: element.textContent.slice(0, 40)};
}
return worst;
"""
