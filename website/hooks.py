"""What turns the repository's documents into the pages of a site (mkdocs.yml).

README, CHANGELOG and CONTRIBUTING stand at the top of the repository and become pages; two pages are written from the
code: the settings of each verb, and the reference, whose text mkdocstrings takes from the docstrings. Links to files
that are no pages (sources, logs) become their names: the site does not know where the repository is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

import hetcl
from hetcl import settings
from hetcl.arguments import SETTINGS
from hetcl.settings.parse import documented

ROOT = Path(__file__).resolve().parent.parent
TOP = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Documents at the top of the repository, and their pages."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are no files of docs/."""
    pages = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in TOP.items()}
    pages |= {"settings.md": settings_page(), "reference.md": reference_page()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    shim = "iframe-worker.js"
    files.append(
        File.generated(config, f"assets/{shim}", content=(ROOT / "website" / shim).read_text("utf-8"))
    )
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links by the names of pages; what is no page, and is in the repository, by its name alone."""
    path = page.file.src_uri
    home = ROOT if path in TOP.values() else ROOT / "docs"
    pages = {file.src_uri for file in files}

    def turned(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        name, hash_, anchor = target.partition("#")
        if "://" in target or not name:
            return match[0]
        place = (home / name).resolve()
        inside = place.relative_to(ROOT).as_posix() if place.is_relative_to(ROOT) else ""
        uri = TOP.get(inside, inside.removeprefix("docs/"))
        if uri in pages:
            return f"{image}[{text}]({uri}{hash_}{anchor})"
        if not place.exists():
            return match[0]  # left for mkdocs to complain of
        return text if image or "`" in text or text == inside else f"{text} (`{inside}`)"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(turned, part) for part in parts)


def reference_page() -> str:
    """Every public name of ``hetcl``, in the order of its table."""
    text = ["# Python reference", "", "Each is `hetcl.NAME`; [From Python](api.md) shows them at work.", ""]
    return "\n".join([*text, *(f"::: {module}.{name}" for name, module in hetcl._HOME.items()), ""])


def settings_page() -> str:
    """A table of the settings of each verb, by the texts of ``--help``."""
    text = [
        "# Settings",
        "",
        "Each is `--NAME VALUE` on the command line, and a key of `overrides` in Python.",
        "",
    ]
    for verb, (name, _) in SETTINGS.items():
        if verb == "doctor":
            continue
        text += [f"## hetcl {verb}", "", "| setting | default | |", "|---|---|---|"]
        text += [
            f"| `{key}` | `{value}` | {help_} |" for key, value, help_ in rows(getattr(settings, name)(), "")
        ]
        text += [""]
    return "\n".join(text)


def rows(group: Any, prefix: str) -> list[tuple[str, str, str]]:
    """``(dotted name, default, help)`` of a settings object."""
    found = []
    own = type(group).__annotations__  # before those about computing, which all verbs have
    for name, _, help_ in sorted(documented(type(group)), key=lambda row: row[0] not in own):
        value = getattr(group, name)
        if hasattr(value, "__dataclass_fields__"):
            found += [] if name == "stage2" else rows(value, f"{prefix}{name}.")
        else:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            found.append((f"{prefix}{name}", shown or " ", help_.replace("|", "\\|")))
    return found
