"""A real browser for the pages: headless Chromium, driven by selenium; skips with a reason where one is missing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DESKTOP, PHONE = (1280, 900), (390, 844)
_QUIET = (  # without these Chromium looks for hosts of its own
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


def first_found(*names: str) -> str:
    """The path of a program; skips the test if there is none of these."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no {names[0]} on this machine; on Debian: apt install chromium chromium-driver")
    return found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The driver of a browser that all tests of a module share."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = first_found("chromium", "chromium-browser", "google-chrome")
    for option in (*_QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(first_found("chromedriver")))
    yield driver
    driver.quit()


class Window:
    """What a reader can do with a page, and see of it.

    Args:
        driver: The browser.
        size: Width and height of what it shows, in CSS pixels.
    """

    def __init__(self, driver: Any, size: tuple[int, int] = DESKTOP) -> None:
        self.driver = driver
        shape = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)

    def open(self, page: Path, view: str = "") -> Window:
        self.driver.get("about:blank")  # or a change of the address alone would not load the page again
        self.driver.get(f"{page.as_uri()}#{view}")
        return self

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        """The first such element; what a click brings about is waited for."""
        end = time.monotonic() + 10
        while not (found := self.all(selector)):
            assert time.monotonic() < end, f"the page has no {selector}"
            time.sleep(0.02)
        return found[0]

    def text(self, selector: str) -> str:
        return str(self.one(selector).text).replace("\u00a0", " ")

    def texts(self, selector: str) -> list[str]:
        return [element.text.replace("\u00a0", " ") for element in self.all(selector)]

    def click(self, selector: str) -> None:
        self.one(selector).click()

    def point_at(self, element: Any) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).move_to_element(element).perform()

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        for key in keys:
            ActionChains(self.driver).send_keys(getattr(Keys, key)).perform()

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    @property
    def focused(self) -> Any:
        return self.driver.switch_to.active_element

    @property
    def chosen(self) -> list[str]:
        """Names of all radio buttons that are chosen."""
        chosen = self.all("[role=radio][aria-checked=true]")
        return [element.accessible_name for element in chosen]

    @property
    def overflow(self) -> int:
        """Pixels that the page is wider than the window."""
        return int(self.run("return document.documentElement.scrollWidth - window.innerWidth"))

    @property
    def errors(self) -> list[str]:
        """What went wrong in the page's scripts, or was asked of a network."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
