"""One page of everything, for all tests of pages: names that would do harm among it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetcl.reporting.page import report
from tests.reporting import folders


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of every kind."""
    root = tmp_path_factory.mktemp("mixed")
    good = folders.make_run(root / "good", "good")
    hostile = root / folders.HOSTILE.replace("/", "_")
    return [
        good,
        folders.make_run(hostile, "collapsed", **{"stage1.lr": 3.0}),
        folders.make_run(root / "half", "half"),
        folders.make_contrast(root / "contrast", good, name=folders.HOSTILE),
        folders.make_where(root / "where", good),
        folders.make_what(root / "what"),
        folders.make_detector(root / "detector", good, label=folders.HOSTILE),
        folders.make_evaluation(root / "evaluation", root / "detector"),
        folders.make_reproduction(root / "reproduction", label=folders.HOSTILE),
    ]


@pytest.fixture(scope="session")
def page(mixed: list[Path]) -> Path:
    """The page of :func:`mixed`."""
    return report(mixed, out=mixed[0].parent / "report.html", examples=0)
