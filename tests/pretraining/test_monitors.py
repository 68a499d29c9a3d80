"""Alignment, uniformity and kNN against loops; each message in its planted case and in no other; bad images."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hetcl.analysis.probe.knn import knn_accuracy
from hetcl.errors import WorkFailed
from hetcl.model.queue import KeyQueue
from hetcl.pretraining import monitors
from hetcl.training.bad_images import BadImages
from hetcl.types import BadRecord
from tests.pretraining.build import batch_of, contrast_stage


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_alignment_is_the_mean_squared_distance_of_pairs() -> None:
    q, k = unit(7, 5), unit(7, 5)
    slow = (
        sum(
            sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))
            for x, y in zip(q, k, strict=True)
        )
        / 7
    )
    assert monitors.alignment(q, k).item() == pytest.approx(slow, rel=1e-12)
    assert monitors.alignment(q, q).item() == 0
    assert monitors.alignment(q, -q).item() == pytest.approx(4)


def test_uniformity_is_the_log_of_the_mean_gaussian_of_distances() -> None:
    x = unit(9, 4)
    pairs = [math.exp(-2 * float((x[i] - x[j]).square().sum())) for i in range(9) for j in range(9) if i != j]
    assert monitors.uniformity(x).item() == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-12)
    assert monitors.uniformity(x[:1].expand(6, 4)).item() == pytest.approx(0, abs=1e-12)
    assert monitors.uniformity(unit(400, 256)).item() == pytest.approx(-4, abs=0.1)
    assert monitors.uniformity(x[:1]).item() == 0


def test_knn_is_the_weighted_vote_of_the_nearest() -> None:
    bank, queries = torch.randn(40, 6), torch.randn(300, 6)
    bank_labels, labels = torch.randint(4, (40,)), torch.randint(5, (300,))
    right = 0
    for query, truth in zip(queries, labels, strict=True):
        cosines = [float(query @ b / query.norm() / b.norm()) for b in bank]
        nearest = sorted(range(40), key=lambda i: -cosines[i])[:7]
        votes = [0.0] * 5
        for i in nearest:
            votes[int(bank_labels[i])] += math.exp(cosines[i] / 0.07)
        right += votes.index(max(votes)) == int(truth)
    found = knn_accuracy(bank, bank_labels, queries, labels, k=7)
    assert found == pytest.approx(right / 300, abs=1e-9)
    assert 0.05 < found < 0.6
    assert knn_accuracy(bank, bank_labels, bank, bank_labels, k=1) == 1
    assert knn_accuracy(bank[:3], bank_labels[:3], bank[:3], bank_labels[:3], k=20) >= 0  # k above N


def test_the_figures_of_parts_are_those_of_each_part_alone() -> None:
    queue = KeyQueue(11, {"semantic": 5, "spatial": 4}, seed=2).double()
    index = torch.tensor([0, 1, 2, 3, 0, 5])
    queue.push(torch.cat([unit(4, 5), unit(4, 4)], dim=1), torch.tensor([7, 0, 8, 3]))
    query = {"semantic": unit(6, 5), "spatial": unit(6, 4)}
    key = {name: F.normalize(q + 0.3 * torch.randn_like(q), dim=1) for name, q in query.items()}
    logits = torch.randn(6, 12)
    found = monitors.figures(query, key, queue, logits, index, mask_own=True)
    past = {"semantic": queue.keys[:, :5], "spatial": queue.keys[:, 5:]}
    for name, q in query.items():
        k = key[name]
        in_queue = in_batch = 0
        for i in range(6):
            own = float(q[i] @ k[i])
            others = [float(q[i] @ past[name][j]) for j in range(11) if int(queue.index[j]) != int(index[i])]
            in_queue += own > max(others)
            in_batch += own > max(float(q[i] @ k[j]) for j in range(6) if index[j] != index[i])
        assert found[f"{name}_accuracy_queue"].item() == pytest.approx(in_queue / 6)
        assert found[f"{name}_accuracy_batch"].item() == pytest.approx(in_batch / 6)
        assert found[f"{name}_alignment"].item() == pytest.approx(monitors.alignment(q, k).item())
    assert found["accuracy_queue"].item() == pytest.approx(sum(bool(r[0] > r[1:].max()) for r in logits) / 6)
    both = torch.cat([query["semantic"], query["spatial"]], dim=1) / math.sqrt(2)
    assert found["uniformity"].item() == pytest.approx(monitors.uniformity(both).item())
    assert set(found) <= set(monitors.columns(["moco-v2", "hcl"]))


# ---- messages --------------------------------------------------------------------------------------------------------

CALM = {
    "loss": 2.0,
    "chance": 3.0,
    "queue_filled": 1.0,
    "accuracy_queue": 0.4,
    "accuracy_batch": 0.35,
    "uniformity": -2.5,
    "semantic_uniformity": -2.0,
    "spatial_uniformity": -2.0,
    "knn": 0.3,
    "step": 1000,
}
FILLING = [{"loss": 1.0, "queue_filled": 0.2}, {"loss": 1.2, "queue_filled": 0.5}]
LEAKING = [
    {"accuracy_queue": 0.9995, "accuracy_batch": 0.9},
    {"accuracy_queue": 0.9995, "accuracy_batch": 0.9, "knn": 0.2},
]
AGED = {"accuracy_queue": 0.51, "accuracy_batch": 0.012}
PLANTED: dict[str, tuple[list[dict[str, float]], str]] = {
    "filling": (FILLING, "the loss rises while the queue fills (50%)"),
    "age": ([AGED | {"step": s} for s in range(100, 700, 50)], "(1.2%, hardly growing) for 500 steps"),
    "leak": (LEAKING, "batch norm may leak"),
    "collapse": ([{"uniformity": -0.001}] * 2, "the embedding has collapsed"),
    "one vector for all": ([{"uniformity": 0.0}] * 2, "the embedding has collapsed"),
    "one part": ([{"spatial_uniformity": -0.001}] * 2, "the spatial part has collapsed"),
}


def said(rows: list[dict[str, float]], **watch: Any) -> list[str]:
    watching = monitors.Watch(**watch)
    return [message for row in rows for message in watching.messages({**CALM, **row})]


@pytest.mark.parametrize("case", PLANTED)
def test_a_message_is_given_once_in_its_case_and_no_other_with_it(case: str) -> None:
    rows, words = PLANTED[case]
    messages = said([*rows, rows[-1], rows[-1]])
    assert len(messages) == 1, messages
    assert words in messages[0]


@pytest.mark.parametrize(
    "rows",
    [
        [{}, {}],
        [{"loss": 1.0, "queue_filled": 0.2}, {"loss": 0.8, "queue_filled": 0.5}],  # it falls
        [{"loss": 1.0}, {"loss": 1.5}],  # the queue is full: nothing to explain
        [
            AGED | {"step": s, "queue_filled": 0.5} for s in range(0, 2000, 100)
        ],  # random keys are easy to tell
        [{"accuracy_queue": 0.04, "accuracy_batch": 0.0, "step": s} for s in range(0, 2000, 100)],
        [AGED | {"step": s} for s in range(0, 500, 50)],
        [AGED | {"step": s} if s != 400 else {"step": s} for s in range(0, 900, 100)],  # it comes and goes
        [AGED | {"step": s, "accuracy_batch": 0.02 * 1.05**i} for i, s in enumerate(range(0, 3000, 50))],
        [*LEAKING, {"knn": 0.29}, LEAKING[1]],  # one check may be chance
        [
            {"accuracy_queue": 0.9995, "accuracy_batch": 0.99},
            {"accuracy_queue": 0.9995, "accuracy_batch": 0.99, "knn": 0.5},
            {"accuracy_queue": 0.9995, "accuracy_batch": 0.99, "knn": 0.5},
        ],
        [{"accuracy_queue": 0.95, "accuracy_batch": 0.9, "knn": 0.1}] * 3,
        [
            {"uniformity": -0.001, "step": s} for s in (100, 200, 290)
        ],  # an untrained encoder is nearly constant
        [{"uniformity": -0.001}],
        [{"uniformity": -0.001 * 2**i, "step": 300 + 50 * i} for i in range(8)],  # on its way out
    ],
    ids=[
        "calm",
        "falling",
        "full",
        "filling",
        "chance",
        "early",
        "on and off",
        "learning late",
        "knn back",
        "knn rises",
        "not perfect",
        "untrained",
        "one row",
        "spreading",
    ],
)
def test_no_message_without_its_cause(rows: list[dict[str, float]]) -> None:
    assert said(rows) == []


SMALL = {
    40: (0.300, 0.139), 60: (0.316, 0.175), 80: (0.289, 0.156), 100: (0.277, 0.213), 140: (0.202, 0.155),
    200: (0.200, 0.205), 300: (0.177, 0.211), 400: (0.188, 0.242), 500: (0.147, 0.306), 600: (0.108, 0.305),
}  # fmt: skip
"""Accuracy in the queue and in the batch by step, of the recipe ``small`` on 10,000 images of tiny-imagenet."""


@pytest.mark.parametrize("worse", [1.0, 1.5, 2.5], ids=["as it was", "ill", "very ill"])
def test_a_healthy_beginning_is_silent(worse: float) -> None:
    """Keys are told by age at first in every run; another data set shows more of it and mends as well."""
    rows = [
        {
            "step": step,
            "accuracy_queue": min(0.9, worse * in_queue) if step < 400 else in_queue,
            "accuracy_batch": in_batch / worse if step < 400 else in_batch,
        }
        for step, (in_queue, in_batch) in SMALL.items()
    ]
    assert said(rows) == []
    assert said([{"step": 50, "accuracy_queue": 0.6, "accuracy_batch": 0.1}, {"step": 1000}]) == []


@pytest.mark.parametrize("every", [1, 50, 200])
def test_telling_keys_by_age_is_reported_when_it_lasts_whatever_the_rows(every: int) -> None:
    rng = torch.Generator().manual_seed(every)
    rows = []
    for step in range(every, 2000, every):
        noise = (
            0.01 / every**0.5 * float(torch.randn((), generator=rng))
        )  # a batch of 128, averaged over rows
        rows.append({"step": step, "accuracy_queue": 0.51, "accuracy_batch": max(0.0, 0.012 + noise)})
    watch = monitors.Watch(settle=600)
    at = [row["step"] for row in rows if list(watch.messages({**CALM, **row}))]
    assert len(at) == 1
    assert 600 <= at[0] <= 1300


def test_a_part_that_tells_age_is_named() -> None:
    """What a spatial part of nine numbers did: 60% in the queue, chance in the batch."""
    spatial = {"spatial_accuracy_queue": 0.6, "spatial_accuracy_batch": 0.037}
    (message,) = said([spatial | {"step": s} for s in range(0, 1000, 100)])
    assert message.startswith("accuracy of the spatial part against the queue (60.0%)")


@pytest.mark.parametrize(
    ("queue_steps", "momentum", "steps", "settle"),
    [
        (8, 0.99, 62_480, 1000),  # the recipe small
        (256, 0.999, 1_000_000, 10_000),  # the paper's
        (512, 0.9, 1_000_000, 10_240),  # a queue of many steps
        (256, 0.999, 8_000, 2_000),  # a quarter of a short run
        (8, 0.99, 750, 500),  # never at once
        (8, 1.0, 10_000, 2_500),
    ],
)
def test_how_long_is_long(queue_steps: float, momentum: float, steps: int, settle: int) -> None:
    assert monitors.settling(queue_steps=queue_steps, key_momentum=momentum, steps=steps) == settle


def test_a_stage_takes_its_patience_from_its_own_settings() -> None:
    batch = batch_of(views=2, count=4, pixels=32, images=9)
    stage = contrast_stage(
        "moco-v2",
        [batch] * 4000,
        side=4,
        groups=1,
        queue=160,
        lr=0.1,
        sgd_momentum=0.9,
        weight_decay=0.0,
        temperature=0.2,
        mask_own=True,
    )
    assert stage.watch.settle == 800  # 20 turnovers of 40 steps


def test_collapse_is_reported_in_time() -> None:
    """At the second row after 300 steps, and again for a run that collapses later."""
    for begins in (0, 5_000):
        watch = monitors.Watch()
        rows = [{"step": s, "uniformity": -0.0005 if s >= begins else -2.0} for s in range(200, 10_000, 200)]
        at = [row["step"] for row in rows if list(watch.messages({**CALM, **row}))]
        assert at == [max(600, begins + 200)]


def test_rows_without_figures_say_nothing() -> None:
    watch = monitors.Watch()
    assert list(watch.messages({"knn": 0.1, "epoch": 0, "step": 0})) == []
    assert list(watch.messages({"loss": 1.0, "accuracy": 0.5, "epoch": 1, "step": 900})) == []


def test_a_row_reads_as_words() -> None:
    text = monitors.line(
        {
            **CALM,
            "queue_filled": 0.25,
            "alignment": 0.5,
            "lr": 0.03,
            "spatial_accuracy_batch": 0.1,
            "semantic_accuracy_batch": 0.2,
        }
    )
    for words in (
        "loss 2.000 (chance 3.00)",
        "queue 25% full",
        "in queue 40.0%, in batch 35.0%",
        "semantic 20.0%, spatial 10.0%",
        "alignment 0.50, uniformity -2.50",
        "kNN 30.0%",
        "lr 0.03",
    ):
        assert words in text
    assert monitors.line({}) == ""
    assert monitors.brief(CALM) == ["loss 2.000", "in batch 35.0%"]
    assert monitors.brief({"loss": 1.0, "accuracy": 0.5}) == ["loss 1.000", "accuracy 50.0%"]
    assert monitors.brief({"knn": 0.3}) == []


# ---- bad images ----------------------------------------------------------------------------------------------------


def bad_batch(*indices: int) -> Any:
    records = tuple(BadRecord(i, f"p{i}.jpg", "cut short, it seems") for i in indices)
    return replace(batch_of(views=1, count=10, pixels=2, images=100), bad=records)


def seen(batch: Any) -> tuple[int, Any]:
    return len(batch.index), batch.bad


def listed(path: Path) -> list[int]:
    with open(path, newline="") as f:
        return [int(row["index"]) for row in csv.DictReader(f)]


def test_bad_images_are_listed_once_and_named_once(tmp_path: Path) -> None:
    path, words = tmp_path / "bad.csv", list[str]()
    bad = BadImages(path, 0.5, 1000)
    bad.warn = words.append
    bad.see(*seen(bad_batch()))
    assert not path.exists()
    bad.see(*seen(bad_batch(3, 3, 8)))
    bad.see(*seen(bad_batch(8, 1)))
    assert listed(path) == [3, 8, 1]
    assert bad.known == 3
    assert len(words) == 1
    assert "p3.jpg cannot be used (cut short, it seems)" in words[0]

    again = BadImages(path, 0.5, 1000)  # resumed, perhaps after a kill within a line
    again.warn = words.append
    again.see(*seen(bad_batch(3, 5)))
    with open(path, "a") as f:
        f.write("12")
    BadImages(path, 0.5, 1000).see(*seen(bad_batch(7)))
    assert listed(path) == [3, 8, 1, 5, 7]
    assert len(words) == 1


def test_more_bad_images_than_their_share_stop_the_run(tmp_path: Path) -> None:
    bad = BadImages(tmp_path / "bad.csv", 0.1, 40)
    bad.warn = lambda text: None
    bad.see(*seen(bad_batch(1, 2, 3, 4, 5)))  # too early to judge
    for _ in range(2):
        bad.see(*seen(bad_batch()))
    with pytest.raises(
        WorkFailed, match="5 of the first 45 images opened cannot be used, more than max_bad = 10%"
    ):
        bad.see(*seen(bad_batch()))
    calm = BadImages(tmp_path / "calm.csv", 0.1, 40)
    calm.warn = lambda text: None
    for step in range(20):
        calm.see(*seen(bad_batch(step)))
