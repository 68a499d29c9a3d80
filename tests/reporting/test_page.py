"""The page is strict HTML, asks for nothing, and everything from outside is text in it; bad input is one line."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import html5lib
import pytest
from PIL import Image

import hetcl
from hetcl.cli import main
from hetcl.reporting.curves import POINTS, budget
from hetcl.reporting.page import ASSETS, report
from hetcl.reporting.read import read_results
from tests.pretraining.small import command
from tests.reporting import folders


def tree_of(page: Path) -> Any:
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page.read_text("utf-8"))


def words(page: Path) -> str:
    return " ".join("".join(tree_of(page).itertext()).split())


# ---- the page ------------------------------------------------------------------------------------------------------


def test_the_page_is_strict_html_with_landmarks_headings_and_names_once(page: Path) -> None:
    tree = tree_of(page)
    ids = Counter(e.get("id") for e in tree.iter() if e.get("id"))
    assert [name for name, n in ids.items() if n > 1] == []
    links = [a.get("href") for a in tree.iter("a")]
    assert {link[1:] for link in links} <= set(ids)
    assert all(link.startswith("#") for link in links)
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(list(tree.iter(landmark))) == 1
    levels = [int(e.tag[1]) for e in tree.iter() if isinstance(e.tag, str) and re.fullmatch("h[1-4]", e.tag)]
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all(table.find("caption") is not None for table in tree.iter("table"))
    assert all(image.get("alt") for image in tree.iter("img"))


def test_nothing_is_fetched_and_only_our_scripts_may_run(page: Path) -> None:
    tree, text = tree_of(page), page.read_text("utf-8")
    policy = next(m.get("content") for m in tree.iter("meta") if m.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    scripts = [s.text for s in tree.iter("script") if s.get("type") == "module"]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    loads = [e for e in tree.iter() if {"src", "srcset", "data", "action", "poster"} & set(e.attrib)]
    assert all(e.get("src", "").startswith("data:image/webp") for e in loads)
    assert not list(tree.iter("link"))
    assert "url(" not in (ASSETS / "page.css").read_text()
    assert not any(name.startswith("on") for e in tree.iter() for name in e.attrib)
    assert "<iframe" not in text


def test_names_from_outside_are_text(page: Path) -> None:
    tree = tree_of(page)
    assert not [e for e in tree.iter("img") if e.get("src") == "x"]
    assert folders.HOSTILE in words(page)
    for block in tree.iter("script"):
        if block.get("type") == "application/json":
            json.loads(block.text)


def test_everything_given_is_on_the_page(page: Path) -> None:
    text = words(page)
    for expected in (
        "Learned", "Collapsed", "Half-finished", "What did the spatial branch add?", "What now?",
        "Runs beside each other", "It learned.", "Labels are found.", "It finds boxes.", "box AP", "mind the queue",
        "What differs between the runs",
        "hetcl pretrain --data scenes:1000", "hetcl finetune --init", "hetcl evaluate", "abc123", "--examples 0",
    ):  # fmt: skip
        assert expected in text, expected


@pytest.mark.slow
def test_a_trained_run_shows_views_neighbours_and_maps(tmp_path: Path) -> None:
    assert main(command(tmp_path / "run")) == 0
    page = hetcl.report(tmp_path / "run", out=tmp_path / "page.html", examples=3)
    tree = tree_of(page)
    shown = {f.find("figcaption").text: f for f in tree.iter("figure") if f.get("class") == "picture"}
    titles = list(shown)
    assert [t.split()[0] for t in titles] == ["Two", "Nearest", "Maps"]
    sizes = []
    for figure in shown.values():
        (image,) = figure.iter("img")
        data = base64.b64decode(image.get("src").partition("base64,")[2])
        sizes.append(Image.open(io.BytesIO(data)).size)
    assert sizes[1][1] > sizes[2][1]  # three rows, two rows
    settings = tmp_path / "run" / "settings.yaml"
    text = settings.read_text().split("\n", 1)[1]
    for data, said in (
        ("gone", "gone"),
        ("scenes:28", "scenes:28 does not hold the images"),
        ("https://a.b/c.tar", "a page fetches nothing"),
    ):
        settings.write_text(text.replace("scenes:27", data))
        again = words(report(tmp_path / "run", out=page))
        assert "Not shown: " in again
        assert said in again


@pytest.mark.slow
def test_a_page_of_ten_long_runs_stays_small(tmp_path: Path) -> None:
    runs = [folders.make_run(tmp_path / f"run-{i}", "good") for i in range(10)]
    for run in runs:
        header, *lines = (run / "metrics.csv").read_text().splitlines()
        long = [
            re.sub(r"^(stage\d),\d+,\d+", rf"\1,{i},{i * 7}", line)
            for i in range(500)
            for line in lines[1:-1]
        ]
        (run / "metrics.csv").write_text("\n".join([header, *long]) + "\n")
    page = report(runs, out=tmp_path / "page.html", examples=0)
    assert 1e6 < page.stat().st_size < 10e6
    assert "of 4,000 rows" in words(page)


@pytest.mark.parametrize("runs", [1, 10, 30, 200])
def test_more_runs_are_drawn_with_fewer_points(tmp_path: Path, runs: int) -> None:
    one = read_results([folders.make_run(tmp_path / "run", "half")])
    rows = budget(one * runs)
    assert 80 <= rows["points"] <= max(80, min(400, POINTS // (8 * runs)))
    assert 12 <= rows["table"] <= 60


# ---- colours -------------------------------------------------------------------------------------------------------


def luminance(color: str) -> float:
    """WCAG's relative luminance of ``#rrggbb``."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast_of(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_every_colour_can_be_read_in_both_themes() -> None:
    assert contrast_of("#000000", "#ffffff") == pytest.approx(21)
    style = (ASSETS / "page.css").read_text()
    light, dark, *_ = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{[^}]*\}", style)
    )
    for theme in (light, dark):
        for paper in (theme["paper"], theme["card"]):
            assert all(contrast_of(theme[ink], paper) >= 4.5 for ink in ("ink", "quiet", "link"))
            assert all(contrast_of(theme[f"series-{i}"], paper) >= 3 for i in range(1, 9))
        assert all(contrast_of(theme[k], theme[f"{k}-paper"]) >= 4.5 for k in ("good", "bad", "open"))


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = folders.make_run(tmp_path / "good", "good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.html").write_text("<html>mine</html>")
    (tmp_path / "unfinished" / "features").mkdir(parents=True)
    folders.write(tmp_path / "broken", "contrast.json", {})
    (tmp_path / "broken" / "contrast.json").write_text('{"kind": "hetcl')
    folders.write(tmp_path / "strange", "where.json", {"kind": "hetcl-where", "models": 3})
    page = tmp_path / "page.html"
    for runs, out, said in (
        (["missing"], page, "missing is not there"),
        (["empty"], page, "no run and no result"),
        (["."], page, "it holds some: name"),
        (["unfinished"], page, "has not ended: end it with --resume"),
        (["broken"], page, "contrast.json is damaged"),
        (
            ["good", "strange"],
            page,
            f"hetcl: {tmp_path / 'strange'}: its files do not hold what hetcl writes",
        ),
        (["other.html"], page, "is a file; name a folder"),
        (["good"], tmp_path, "is a folder; name a file"),
        (["good"], tmp_path / "other.html", "that hetcl report did not write"),
        (["good"], tmp_path / "no" / "page.html", "its folder is not there"),
    ):
        status = main(["report", *(str(tmp_path / r) for r in runs), "--out", str(out), "--examples", "0"])
        lines = capsys.readouterr().err.splitlines()
        assert status == 2, said
        assert len(lines) == 1, lines
        assert said in lines[0]
    assert not page.exists()
    assert (tmp_path / "other.html").read_text() == "<html>mine</html>"
    assert (
        main(["report", str(tmp_path / "empty"), str(tmp_path / "missing"), str(good), "--out", str(page)])
        == 2
    )
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_damaged_figures_are_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = folders.make_run(tmp_path / "run", "good")
    with open(run / "metrics.csv", "ab") as f:
        f.write(b"stage2,5,nonsense\n" + b"\0" * 40 + b"\nstage2,4,400,nan" + b"," * 17 + b"\n")
    text = words(report(run, out=tmp_path / "page.html", examples=0))
    assert "2 of its 13 lines are left out" in text
    assert "1 value that is no finite number; left out" in text
    assert "Learned" in text
    (run / "metrics.csv").write_bytes(b"\x00\x01 nothing of the kind\nmore")
    (run / "summary.json").write_text("{")
    text = words(report(run, out=tmp_path / "page.html", examples=0))
    assert "no line of it can be read" in text
    assert "summary.json is damaged or of another hetcl" in text


def test_a_page_is_replaced_and_python_says_the_same(tmp_path: Path) -> None:
    run = folders.make_run(tmp_path / "run", "half")
    page = hetcl.report([run], out=tmp_path / "page.html", examples=0)
    assert page == tmp_path / "page.html"
    assert hetcl.report(str(run), out=page, examples=0) == page
    with pytest.raises(hetcl.errors.InputError):
        hetcl.report([], out=page)


def test_a_reproduction_says_its_claims_and_its_command(tmp_path: Path) -> None:
    folder = folders.make_reproduction(tmp_path / "mini")
    text = report(folder, out=tmp_path / "report.html", examples=0).read_text()
    for words in (
        "Of 2 claims: 1 confirmed, 1 not run.", "+1.5 (+0.3 to +2.7)", "+0.8", "not run: MoCo-v1: not published",
        "pretrain/x failed: no room", "Table 1: COCO",
    ):  # fmt: skip
        assert words in text
    assert "hetcl reproduce table1 --mini --images photos --weights moco-v2=moco:x.pth --seeds 3" in re.sub(
        r"</?span>", "", text
    )
    assert "No run of pre-training was given" not in text
