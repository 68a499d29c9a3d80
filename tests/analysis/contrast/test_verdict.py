"""The verdict line in planted cases, from made-up figures."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from hetcl.analysis.contrast.report_text import sentences, table
from hetcl.analysis.contrast.verdict import remarks, verdicts
from tests.analysis.contrast.report_content import HCL, MOCO, e, report


def planted(
    gain: tuple[float, float, float] = (0.09, 0.053, 0.127),
    *,
    random: float = 0.4,
    crop: tuple[float, float, float] = (0.01, -0.01, 0.03),
    embedding: tuple[float, float, float] = (0.0, -0.02, 0.02),
    queries: int = 5000,
    views: tuple[str, ...] = ("crop", "standard"),
    **held: Any,
) -> dict[str, Any]:
    """A run and what it is held against: ``gain`` under ``standard``, where ``random`` is found by random weights."""
    names = {"run": MOCO, "run pooled": {"pooled": 512}, "random r pooled": {"pooled": 512}, "random r": MOCO}
    content = report(names, views=views, dims=(), gallery=queries - 1)
    roles = ("model", "backbone", "random", "random")
    for model, role in zip(content["models"], roles, strict=True):
        model |= {"role": role, "of": "run" if role != "random" else model["name"]}
        model["features"] = "pooled" if "pooled" in model["name"] else "embedding"
    base = {"crop": 0.6 if random < 0.6 else random, "standard": random, "none": 1.0}
    content["differences"] = []
    for v in views:
        for pair, d in (
            (["run pooled", "random r pooled"], gain if v == "standard" else crop),
            (["run", "random r"], embedding),
        ):
            top1 = dict(zip(("value", "low", "high"), d, strict=True))
            content["differences"].append(
                {"views": v, "vector": "full", "models": pair, "top1": top1, "mrr": top1}
            )
            for row in content["results"]:
                if row["views"] == v and row["model"] in pair:
                    row["top1"] = e(base[v] + (d[0] if row["model"] == pair[0] else 0.0))
    one = {
        "model": "run",
        "judged": "run pooled",
        "random": "random r pooled",
        "embedding": "run",
        "random_embedding": "random r",
        "before": None,
        "untrained": False,
    }
    content["yardsticks"] = [one | held]
    return content


def verdict(content: dict[str, Any]) -> dict[str, Any]:
    (row,) = verdicts(content)
    return row


def test_learned() -> None:
    row = verdict(planted())
    assert row["status"] == "learned"
    assert row["line"] == (
        "Learned: run tells images apart better than the same architecture with random weights: +9.0 points (95% "
        "interval 5.3 to 12.7; 49.0% against 40.0%; pooled features, 48 pixels, views standard). That does not say how "
        "well it transfers; hetcl probe and hetcl finetune do."
    )
    assert (row["views"], row["difference"]["low"], row["yardstick"]) == (
        "standard",
        0.053,
        "random r pooled",
    )


def test_the_views_where_random_weights_do_worst_decide() -> None:
    """Early in training a model falls behind random weights on plain crops, and is ahead where colours change."""
    content = planted((0.105, 0.083, 0.126), random=0.097, crop=(-0.196, -0.221, -0.17))
    content["verdict"] = verdicts(content)
    assert content["verdict"][0]["status"] == "learned"
    (line,) = remarks(content)
    assert line.startswith("crop: run finds the partner less often than random weights, which go by colours")
    assert "(-19.6 points, -22.1 to -17.0; 40.4% against 60.0%)" in line
    other = planted((-0.196, -0.221, -0.17), random=0.3, crop=(0.105, 0.083, 0.126))
    assert verdict(other)["status"] == "not learned"


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ((0.001, -0.01, 0.012), "no better than"),
        ((-0.05, -0.07, -0.03), "worse than"),
        ((0.012, 0.006, 0.018), "no better than"),  # what two seeds of random weights differ by
    ],
)
def test_not_learned(gain: tuple[float, float, float], words: str) -> None:
    row = verdict(planted(gain))
    assert row["status"] == "not learned"
    assert row["line"].startswith(f"Not learned: run tells images apart {words} the same architecture")


def test_a_small_gain_counts_where_random_weights_find_little() -> None:
    assert verdict(planted((0.012, 0.006, 0.018), random=0.01))["status"] == "learned"


def test_too_few_images_to_tell() -> None:
    row = verdict(planted((0.04, -0.02, 0.1), queries=200))
    assert (row["status"], row["needed"]) == (
        "too few",
        2000,
    )  # a third of the interval: nine times the images
    assert row["line"].startswith(
        "Too few images to tell whether run has learned: against the same architecture"
    )
    assert "About 2,000 images would tell." in row["line"]
    assert verdict(planted((0.0, -0.3, 0.3), queries=40))["needed"] == 9000
    eight = verdict(planted((0.6, 0.1, 0.9), embedding=(0.6, 0.1, 0.9), queries=8))
    assert (eight["status"], eight["needed"]) == ("too few", 4000)


def test_learned_in_part() -> None:
    row = verdict(planted((0.0, -0.01, 0.01), embedding=(0.08, 0.06, 0.1)))
    assert row["status"] == "partly"
    assert row["line"].startswith("Learned in part: run's embedding tells images apart better")
    assert "+8.0 points" in row["line"]
    assert "The backbone, which is what goes on, does not: +0.0 points" in row["line"]


@pytest.mark.parametrize("name", ["run", "run pooled"])
@pytest.mark.parametrize("sign", [{"uniformity": -0.001}, {"effective_rank": 1.0}])
def test_collapsed(name: str, sign: dict[str, float]) -> None:
    content = planted((-0.3, -0.32, -0.28))
    for part in content["parts"]:
        if part["model"] == name:
            part |= sign
    row = verdict(content)
    assert row["status"] == "collapsed"
    why = (
        "nearly the same vector for every image (uniformity -0.001, where 0 is one vector for all)."
        if "uniformity" in sign
        else "a vector on one and the same line for every image (effective rank 1.0, where 1 is a line)."
    )
    assert row["line"].startswith(f"Collapsed: run gives {why}")


def test_a_collapsed_part_random_weights_or_few_images_are_no_collapse() -> None:
    content = planted()
    for part in content["parts"]:
        if part["model"] == "random r pooled":
            part["uniformity"] = 0.0
        if part["model"] == "run pooled":
            part["uniformity"] = -0.001  # small differences that tell images apart
    assert verdict(content)["status"] == "learned"
    level = planted((0.001, -0.01, 0.012))
    for part in level["parts"]:
        part["uniformity"] = -0.004  # as flat as its architecture begins
    assert verdict(level)["status"] == "not learned"
    few = planted((0.0, -0.3, 0.3), queries=20)
    for part in few["parts"]:
        part["effective_rank"] = 1.2
    assert verdict(few)["status"] == "too few"


def test_a_test_that_is_too_easy() -> None:
    row = verdict(planted((0.005, -0.01, 0.02), random=0.97))
    assert row["status"] == "unclear"
    assert "the test is too easy" in row["line"]


def test_views_that_keep_the_colors_cannot_tell_that_nothing_was_learned() -> None:
    row = verdict(planted(crop=(-0.2, -0.22, -0.18), views=("crop",)))
    assert row["status"] == "unclear"
    assert row["line"].endswith("Test with --views standard.")
    assert verdict(planted(crop=(0.2, 0.18, 0.22), views=("crop",)))["status"] == "learned"
    assert verdict(planted(views=("none",)))["line"].startswith("Cannot tell whether run has learned")


def test_random_weights_and_weights_that_never_moved() -> None:
    row = verdict(planted(random=0.4, untrained=True) | {})
    assert (row["status"], row["difference"]["value"]) == ("not learned", 0.09)
    assert "every weight of run's backbone is the one that training starts from" in row["line"]
    content = planted()
    content["yardsticks"][0] |= {"random": None, "untrained": True}
    assert verdict(content)["status"] == "random"
    assert verdict(content)["line"].startswith("Random: run has random weights")


def test_the_order_of_a_difference_does_not_matter() -> None:
    content = planted()
    for row in content["differences"]:
        row["models"].reverse()
        row["top1"] = {
            "value": -row["top1"]["value"],
            "low": -row["top1"]["high"],
            "high": -row["top1"]["low"],
        }
    assert verdict(content) == verdict(planted())


def test_what_a_model_began_with_is_told_apart_or_not() -> None:
    content = planted(before="run stage 1 pooled")
    content["models"].append(
        content["models"][1] | {"name": "run stage 1 pooled", "role": "before", "of": "run stage 1"}
    )
    for v in content["views"]:
        content["results"].append(
            {"views": v, "model": "run stage 1 pooled", "vector": "full", "top1": e(0.5), "bins": []}
        )
        d = {"value": 0.0, "low": -0.01, "high": 0.01}
        content["differences"].append(
            {"views": v, "vector": "full", "models": ["run pooled", "run stage 1 pooled"], "top1": d}
        )
    content["verdict"] = verdicts(content)
    lines = list(remarks(content))
    assert lines[-1].startswith(
        "standard: run cannot be told from run stage 1 pooled (+0.0 points, -1.0 to 1.0"
    )


# ---- several models --------------------------------------------------------------------------------------------------


def test_models_that_are_not_alike_are_not_compared() -> None:
    content = report({"run": HCL, "other": MOCO, "third": MOCO}, dims=())
    for model, (size, features) in zip(
        content["models"], ((64, "embedding"), (224, "pooled"), (64, "pooled")), strict=True
    ):
        model |= {"size": size, "features": features}
    text = "\n".join(sentences(content))
    assert "more often" not in text
    assert "no difference" not in text
    assert (
        "Not compared with each other, since size or features differ: run (embedding at 64 pixels); other (pooled at "
        "224 pixels); third (pooled at 64 pixels). --size and --features make them alike."
    ) in text
    content["models"][2] |= {"size": 224}
    text = "\n".join(sentences(content))
    assert "crop, with full vectors: other finds the partner more often than third" in text
    assert "than run" not in text


def test_models_that_are_not_alike_are_not_ranked_together() -> None:
    content = planted()
    extra = report({"other": MOCO, "random o": MOCO}, dims=(), level={"other": 0.43, "random o": 0.42})
    for model, role in zip(extra["models"], ("model", "random"), strict=True):
        content["models"].append(model | {"role": role, "of": "other", "features": "embedding", "size": 32})
    content["results"] += extra["results"]
    lines = sentences(content)
    assert any(
        line.startswith(
            "standard: the other view is found among 4,999 other images by run pooled 49.0%, random r pooled 40.0% "
            "(pooled at 48 pixels); other 43.0%, random o 42.0% (embedding at 32 pixels); run 40.0%, random r 40.0% "
            "(embedding at 48 pixels); chance "
        )
        for line in lines
    ), lines
    assert any(
        "size or features differ: run, random r (embedding at 48 pixels); run pooled, random r pooled (pooled at 48 "
        "pixels); other, random o (embedding at 32 pixels). --size" in line
        for line in lines
    ), lines
    page = io.StringIO()
    Console(file=page, width=160).print(table(content))
    rows = [line.split() for line in page.getvalue().splitlines()]
    assert rows[0][:5] == ["model", "features", "pixels", "vector", "dims"]
    assert rows[1] == [content["results"][0]["views"], "views"]
    assert ["other", "embedding", "32", "full"] in [row[:4] for row in rows]
    assert ["run", "pooled", "48", "full"] in [row[:4] for row in rows]


def test_models_that_are_alike_have_no_column_for_it() -> None:
    page = io.StringIO()
    Console(file=page, width=160).print(table(report({"run": MOCO, "other": MOCO}, dims=())))
    assert page.getvalue().split()[:3] == ["model", "vector", "dims"]
    assert "pixels" not in "\n".join(sentences(report({"run": MOCO, "other": MOCO}, dims=())))


def test_other_architectures_are_compared_with_a_word() -> None:
    content = report({"run": MOCO, "other": MOCO})
    content["models"][1]["arch"] = "b"
    text = "\n".join(sentences(content))
    assert "run finds the partner more often than other" in text
    assert "Architectures differ (a, b)" in text
    assert "Architectures differ" not in "\n".join(sentences(report({"run": MOCO, "other": MOCO})))


def test_what_models_are_held_against_is_not_called_broken_or_best() -> None:
    content = planted()
    for part in content["parts"]:
        if part["model"].startswith("random"):
            part["uniformity"] = 0.0
    text = "\n".join(sentences(content))
    assert "collapsed" not in text
    assert "no difference" not in text
    assert "random r pooled 40.0%" in text
