"""The page in a real browser: nothing on the console, nothing asked for, every chart drawn, keys, both themes, a phone.

Needs Chromium: `make browser` finds or installs one; `.ci/run` does, and where it could they may not be skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright import sync_api as sync

from hetcl.reporting.page import report
from tests.reporting import folders

THEMES = ("light", "dark")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser: the system's, or the one that playwright installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    system = next((found for name in names if (found := shutil.which(name))), None)
    with sync.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=system)
        except sync.Error as e:
            if os.environ.get("HETCL_BROWSER") == "required":
                raise
            pytest.skip(f"no Chromium here (`make browser` installs one): {str(e).splitlines()[0]}")
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, page: Path, **options: Any) -> Iterator[Any]:
    """The page in a window of its own; what it does wrong is an assertion at the end."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    tab, wrong, asked = context.new_page(), list[str](), list[str]()
    tab.on("console", lambda m: wrong.append(f"{m.type}: {m.text}"))
    tab.on("pageerror", lambda e: wrong.append(str(e)))
    tab.on("dialog", lambda d: wrong.append(d.message))
    tab.on("request", lambda r: asked.append(r.url))
    tab.goto(page.as_uri())
    yield tab
    assert wrong == []
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    context.close()


def scrolled(tab: Any) -> None:
    """Every chart comes into view and is drawn."""
    tab.evaluate("for (const f of document.querySelectorAll('figure.drawn')) f.scrollIntoView()")
    for figure in tab.locator("figure.drawn").all():
        figure.scroll_into_view_if_needed()
    tab.wait_for_function(
        "document.querySelectorAll('figure.drawn').length === document.querySelectorAll('figure[data-drawn]').length"
    )


@pytest.mark.parametrize("theme", THEMES)
def test_every_chart_is_drawn_with_labels_and_a_readout(chromium: Any, page: Path, theme: str) -> None:
    with opened(chromium, page, color_scheme=theme) as tab:
        scrolled(tab)
        assert tab.locator("figure.drawn").count() > 20
        box = tab.locator("figure.drawn", has_text="semantic alone").first.locator(".chart")
        assert box.locator("[role='graphics-document']").get_attribute("aria-label")
        assert box.locator("[aria-roledescription='axis']").count() == 2
        box.scroll_into_view_if_needed()
        size = box.bounding_box()
        for part in (0.4, 0.5, 0.6):
            tab.mouse.move(size["x"] + part * size["width"], size["y"] + size["height"] / 2)
        tab.wait_for_selector("#vg-tooltip-element.visible")
        assert "step" in tab.inner_text("#vg-tooltip-element")
        assert not {"NaN%", "undefined"} & set(tab.inner_text("#vg-tooltip-element").split())
        assert tab.evaluate("typeof hacked") == "undefined"
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)" if theme == "light" else "rgb(18, 22, 27)"
        )


@pytest.mark.slow
@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing(chromium: Any, page: Path, theme: str) -> None:
    axe = Axe()
    with opened(chromium, page, color_scheme=theme, bypass_csp=True) as tab:
        scrolled(tab)
        found = axe.run(tab).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found] == []


def test_keys_alone_lead_through_the_page(chromium: Any, page: Path) -> None:
    with opened(chromium, page) as tab:
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        tab.keyboard.press("Enter")
        assert tab.evaluate("document.activeElement.id") == "main"
        tab.locator("figure.drawn summary").first.focus()
        tab.keyboard.press("Enter")
        assert tab.locator("figure.drawn details").first.get_attribute("open") is not None
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "wide"


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_is_cut_off_on_a_small_screen(chromium: Any, page: Path, width: int) -> None:
    with opened(chromium, page, viewport={"width": width, "height": 700}, has_touch=True) as tab:
        scrolled(tab)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_the_drawings_stand_without_scripts_and_on_paper(chromium: Any, page: Path) -> None:
    with opened(chromium, page, java_script_enabled=False) as tab:
        assert tab.locator("figure.drawn svg[role='img']").count() > 20
        assert tab.locator("figure.drawn svg").first.is_visible()
    with opened(chromium, page, color_scheme="dark") as tab:
        assert tab.pdf(print_background=True)[:5] == b"%PDF-"
        tab.emulate_media(media="print")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not tab.locator("nav").is_visible()


def test_a_name_of_markup_does_nothing(chromium: Any, tmp_path: Path) -> None:
    names = ["<svg onload=alert(1)>", "<script>alert(2)<", "javascript:alert(3)", "{{ 7 * 7 }}", "a\u202eb"]
    runs = [folders.make_run(tmp_path / name, "good", **{"backbone": "timm:resnet10t"}) for name in names]
    with opened(chromium, report(runs, out=tmp_path / "page.html", examples=0)) as tab:
        scrolled(tab)
        text = tab.inner_text("body")
        assert all(name in text for name in names[:4])
        assert "a\\u202eb" in text
