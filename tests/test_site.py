"""The documents as a site: built strictly, complete, and, opened from disk, searched without asking anybody."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hetcl
from hetcl import settings
from hetcl.settings import keys_of
from tests.reporting.test_browser import chromium
from tests.test_readme import DOCUMENTS

__all__ = ["chromium"]  # (a fixture)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_document_is_a_page_and_the_code_writes_two(site: Path) -> None:
    pages = {path.name for path in site.glob("*.html")}
    assert not [d.name for d in (ROOT / "docs").glob("*.md") if f"{d.stem}.html" not in pages]
    assert {"index.html", "changelog.html", "contributing.html"} <= pages
    reference = (site / "reference.html").read_text(encoding="utf-8")
    assert not [n for n, module in hetcl._HOME.items() if f'id="{module}.{n}"' not in reference]
    shown = html.unescape((site / "settings.html").read_text(encoding="utf-8"))
    for cls in (settings.PretrainSettings, settings.FinetuneSettings, settings.PredictSettings):
        missing = [
            k for k in keys_of(cls) if f"<code>{k}</code>" not in shown and not k.startswith("stage2.")
        ]
        assert not missing


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\bsrc=[\"']?([^\"'\s>]+)", text)
        loaded += re.findall(
            r"<link[^>]*rel=[\"']?(?:stylesheet|preconnect|icon)[^>]*href=[\"']?([^\"'\s>]+)", text
        )
        assert loaded
        assert not [url for url in loaded if re.match(r"(https?:)?//", url)], page.name


def test_the_search_works_from_disk(site: Path, chromium: Any) -> None:
    tab, asked, wrong = chromium.new_page(), list[str](), list[str]()
    tab.on("request", lambda r: asked.append(r.url))
    tab.on("pageerror", lambda e: wrong.append(str(e)))
    tab.goto((site / "index.html").as_uri())
    tab.locator("input[name=query]").click()
    tab.keyboard.type("key_momentum")
    tab.wait_for_selector(".md-search-result__item")
    assert "momentum" in tab.inner_text(".md-search-result")
    assert not wrong
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]
    tab.close()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_no_table_is_broken_in_two(document: Path) -> None:
    """A table begins with a head and a line of dashes; what follows an empty line would be text."""
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = ["", *text.splitlines(), ""]
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith("|") and not before.startswith("|"):
            assert re.fullmatch(r"\|[-| :]+\|", after), line[:80]
