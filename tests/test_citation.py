"""How the paper and this code are cited: CITATION.cff by the rules of its format, and the README's BibTeX like it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import hetcl

ROOT = Path(__file__).resolve().parent.parent
AUTHORS = "Huo Xie Wei Zhang Li Yang Zhou Li Tian".split()
DOI = "10.1109/TMM.2021.3115335"
TYPES = {"software", "dataset"}
KEYS = {
    *(
        "abstract",
        "authors",
        "cff-version",
        "commit",
        "contact",
        "date-released",
        "doi",
        "identifiers",
        "keywords",
    ),
    *(
        "license",
        "license-url",
        "message",
        "preferred-citation",
        "references",
        "repository",
        "repository-artifact",
    ),
    *("repository-code", "title", "type", "url", "version"),
}
"""What CFF 1.2.0 allows at the top."""
REFERENCE = {
    *(
        "abstract",
        "authors",
        "doi",
        "end",
        "identifiers",
        "issn",
        "issue",
        "journal",
        "keywords",
        "month",
        "notes",
    ),
    *("pages", "publisher", "start", "status", "title", "type", "url", "volume", "year"),
}
"""Of what it allows of an article, what one may need."""
PERSON = {
    "affiliation",
    "alias",
    "email",
    "family-names",
    "given-names",
    "name-particle",
    "name-suffix",
    "orcid",
}
ENTITY = {"name", "alias", "email", "website", "orcid", "address", "city", "country"}


def faults(tree: Any) -> list[str]:
    """What CFF 1.2.0 would object to; empty where it is valid."""
    found = [f"unknown key {k}" for k in set(tree) - KEYS]
    found += [f"no {k}" for k in {"authors", "cff-version", "message", "title"} - set(tree)]
    found += [] if tree.get("cff-version") == "1.2.0" else ["cff-version is not the text 1.2.0"]
    found += [] if tree.get("type", "software") in TYPES else ["type"]
    found += _authors(tree.get("authors"))
    found += [] if isinstance(tree.get("version", ""), str) else ["version is no text"]
    paper = tree.get("preferred-citation")
    if paper is not None:
        found += [f"unknown key {k} of the paper" for k in set(paper) - REFERENCE]
        found += [f"no {k} of the paper" for k in {"authors", "title", "type"} - set(paper)]
        found += _authors(paper.get("authors"))
        found += [] if isinstance(paper.get("year", 1), int) else ["year is no number"]
        if not re.fullmatch(r"10\.\d{4,9}(\.\d+)?/[A-Za-z0-9:/_;\-.()\[\]\\]+", str(paper.get("doi", DOI))):
            found.append("doi")
        for one in paper.get("identifiers", []):
            sound = {"type", "value"} <= set(one) <= {"type", "value", "description"}
            found += [] if sound and one["type"] in ("doi", "url", "swh", "other") else ["identifier"]
    return found


def _authors(authors: Any) -> list[str]:
    if not isinstance(authors, list) or not authors:
        return ["no authors"]
    return [
        f"author {author}" for author in authors
        if not author or not (set(author) <= PERSON or ("name" in author and set(author) <= ENTITY))
    ]  # fmt: skip


@pytest.fixture
def tree() -> Any:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def test_the_file_is_valid(tree: Any) -> None:
    assert faults(tree) == []
    assert tree["version"] == hetcl.__version__


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"cff-version": 1.2}, "cff-version is not the text 1.2.0"),
        ({"author": "x"}, "unknown key author"),
        ({"authors": []}, "no authors"),
        ({"authors": [{"family-name": "X"}]}, "author {'family-name': 'X'}"),
        (
            {"preferred-citation": {"type": "article", "title": "t", "authors": [{"name": "x"}], "doi": "x"}},
            "doi",
        ),
    ],
)
def test_faults_are_seen(tree: Any, change: dict[str, Any], fault: str) -> None:
    assert fault in faults(tree | change)


def test_the_readme_cites_the_same_paper(tree: Any) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (entry,) = re.findall(r"^```bibtex\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    fields = {k: " ".join(v.split()) for k, v in re.findall(r"(\w+)\s*=\s*\{([^{}]*)\}", entry)}
    paper = tree["preferred-citation"]
    assert [a["family-names"] for a in paper["authors"]] == AUTHORS
    assert fields["author"].split(" and ") == [
        f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]
    ]
    assert fields["title"] == paper["title"]
    assert fields["journal"] == paper["journal"] == "IEEE Transactions on Multimedia"
    assert fields["doi"] == paper["doi"] == DOI
    assert int(fields["year"]) == paper["year"] == 2021
    first = " ".join(readme[: readme.index("$ make demo")].split())
    assert paper["title"] in first
    assert "2011.09941" in first
    assert all(f"{a['given-names']} {a['family-names']}" in first for a in paper["authors"])
