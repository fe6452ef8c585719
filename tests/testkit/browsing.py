"""A real Chromium for tests of pages: pages that remember what they said and asked for, and who they may ask."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
_MISSING = [name for name in ("playwright", "plotly") if find_spec(name) is None]
NEEDS_A_BROWSER = pytest.mark.skipif(
    CHROMIUM is None or bool(_MISSING), reason=f"not here: {', '.join(_MISSING) or 'a Chromium'}"
)
PHONE, DESK = (400, 800), (1200, 1000)


@dataclass
class Opened:
    """A page, and everything that it said or asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        return str(self.page.inner_text(f"#{name}"))

    def slide(self, thousandths: int) -> None:
        self.page.fill("#budget", str(thousandths))

    def saved(self) -> dict[str, Any]:
        with self.page.expect_download() as download:
            self.page.click("#export")
        assert download.value.suggested_filename == "plan.json"
        return json.loads(Path(download.value.path()).read_text())  # type: ignore[no-any-return]

    def exported(self) -> dict[str, Any]:
        """What `saved` saves, without a file: browsers stop pages that start many downloads."""
        return self.page.evaluate(  # type: ignore[no-any-return]
            """async () => {
                const [make, click] = [URL.createObjectURL, HTMLAnchorElement.prototype.click];
                let blob = null;
                URL.createObjectURL = (made) => { blob = made; return "#"; };
                HTMLAnchorElement.prototype.click = () => {};
                document.getElementById("export").click();
                [URL.createObjectURL, HTMLAnchorElement.prototype.click] = [make, click];
                return JSON.parse(await blob.text());
            }"""
        )

    def becomes(self, expression: str) -> None:
        """Wait until something holds; plots follow a frame after the slider, or once they come into view."""
        for _ in range(4_000):  # not `wait_for_function`: the page's policy forbids eval
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never came true: {expression}")

    def drawn(self) -> None:
        self.page.wait_for_selector("html[data-plots=drawn]", state="attached")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def pages(browser: Any, server: str | None = None) -> Iterator[Callable[..., Opened]]:
    """Opens addresses; at the end nobody complained, and nobody but files (or ``server``) was asked for anything."""
    contexts: list[tuple[Any, Opened]] = []

    def open_page(url: str, size: tuple[int, int] = DESK, scheme: str = "light") -> Opened:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=server is None, locale="en-US"
        )
        context.set_default_timeout(240_000)  # milliseconds, of a machine however busy
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
        found.page.on("pageerror", lambda error: found.said.append(f"error: {error}"))
        found.page.on("request", lambda request: found.asked.append(request.url))
        found.page.goto(url)
        contexts.append((context, found))
        return found

    yield open_page
    allowed = ("file:", "data:", "blob:") if server is None else (server, "data:", "blob:")
    for context, found in contexts:
        context.close()
        assert found.said == []
        assert [url for url in found.asked if not url.startswith(allowed)] == []
