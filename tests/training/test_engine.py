"""The loop alone: rows, resume at every step, what is not finite, a disk that refuses, signals."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.runs import checkpoint
from hetcl.training.engine import Loop, Meters
from hetcl.training.signals import StopSignal
from tests.training.task import Line, loop_of


def rows(path: Path) -> list[str]:
    return (path / "metrics.csv").read_text().splitlines()


class Killed(BaseException):
    """In place of SIGKILL."""


def killer(at: int) -> Any:
    def disturb(step: int, _: Line) -> None:
        if step == at:
            raise Killed

    return disturb


# ---- rows and meters -------------------------------------------------------------------------------------------------


def test_rows_are_means_since_the_last_row(tmp_path: Path) -> None:
    losses: list[float] = []

    class Listening(Line):
        def step(self, batch: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
            out = super().step(batch, step)
            losses.append(out["loss"].item())
            return out

    loop_of(Listening(), tmp_path, log_every=2).fit()
    head, *body = rows(tmp_path)
    assert head == "stage,epoch,step,loss,score,lr"
    cells = [row.split(",") for row in body]
    assert [c[:3] for c in cells] == [
        ["line", "0", "0"],  # the figures before training
        ["line", "0", "2"],
        ["line", "0", "4"],
        ["line", "1", "5"],
        ["line", "1", "6"],
        ["line", "1", "8"],
        ["line", "2", "10"],
    ]
    spans = [(0, 2), (2, 4), (4, 5), (5, 6), (6, 8), (8, 10)]
    means = [sum(losses[a:b]) / (b - a) for a, b in spans]
    assert [float(c[3]) for c in cells[1:]] == pytest.approx(means, rel=1e-8)
    assert [c[4] for c in cells] == ["0", "", "", "1", "", "", "2"]


def test_meters_are_means_in_double_precision_and_start_anew() -> None:
    meters = Meters()
    assert meters.take() == {}
    for value in (1e8, 1.0, 1.0):
        meters.add({"loss": torch.tensor(value), "x": torch.tensor(2.0)})
    assert meters.take() == {"loss": (1e8 + 2) / 3, "x": 2.0}
    assert meters.take() == {}


# ---- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 3])
def test_killed_before_any_step_it_ends_the_same(every: int, tmp_path: Path) -> None:
    whole = Line()
    loop_of(whole, tmp_path / "whole", log_every=3).fit()
    for at in range(10):
        path = tmp_path / str(at)
        with pytest.raises(Killed):
            loop_of(Line(disturb=killer(at)), path, log_every=3, checkpoint_every=every).fit()
        found = checkpoint.latest(path / "checkpoints")
        state = found[1] if found else None
        again = Line()
        size = state["metrics_bytes"] if state else 0
        loop_of(again, path, resumed_bytes=size, log_every=3, checkpoint_every=every).fit(state)
        torch.testing.assert_close(again.weight, whole.weight, rtol=0, atol=0)
        assert rows(path) == rows(tmp_path / "whole")
        assert again.draws == whole.draws[10 - len(again.draws) :]
        assert again.evaluated == [0, 1, 2][3 - len(again.evaluated) :]


def test_a_task_draws_the_same_whatever_was_drawn_before(tmp_path: Path) -> None:
    one, two = Line(), Line()
    loop_of(one, tmp_path / "one").fit()
    torch.rand(3)
    loop_of(two, tmp_path / "two").fit()
    assert one.draws == two.draws
    assert len(set(one.draws)) == len(one.draws)


# ---- what is not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("log_every", "every"), [(50, 0), (1, 0), (50, 2), (50, 1)])
def test_a_loss_that_is_not_finite_stops_with_the_step(
    log_every: int, every: int, value: float, tmp_path: Path
) -> None:
    def disturb(step: int, task: Line) -> None:
        if step == 7:
            task.weight.data[0] = value

    with pytest.raises(
        WorkFailed, match=r"loss of line is not finite at step 7; .*last\.ckpt is from before"
    ):
        loop_of(Line(disturb=disturb), tmp_path, log_every=log_every, checkpoint_every=every).fit()
    state = checkpoint.load(tmp_path / "checkpoints" / "last.ckpt")
    done = state["epoch"] * 5 + state["step"]
    assert done == {0: 5, 2: 6, 1: 7}[every]
    assert state["task"]["weight"].isfinite().all()
    assert "nan" not in (tmp_path / "metrics.csv").read_text()
    assert "inf" not in (tmp_path / "metrics.csv").read_text()


def test_a_first_step_that_is_not_finite_names_no_checkpoint(tmp_path: Path) -> None:
    def disturb(step: int, task: Line) -> None:
        task.weight.data[0] = float("nan")

    with pytest.raises(WorkFailed, match=r"not finite at step 0; lower line\.lr") as error:
        loop_of(Line(disturb=disturb), tmp_path).fit()
    assert "last.ckpt" not in str(error.value)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_weights_that_are_not_finite_never_replace_good_ones(tmp_path: Path) -> None:
    """The loss of a step is computed before its gradients spoil the weights."""

    class Exploding(Line):
        def step(self, batch: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
            out = super().step(batch, step)
            if step == 3:
                self.weight.data[2] = float("inf")
            return out

    with pytest.raises(
        WorkFailed, match=r"weights of line are not finite after step 3; .*last\.ckpt is from"
    ):
        loop_of(Exploding(), tmp_path, checkpoint_every=1).fit()
    state = checkpoint.load(tmp_path / "checkpoints" / "last.ckpt")
    assert state["step"] == 3
    assert state["task"]["weight"].isfinite().all()


# ---- a disk that refuses ---------------------------------------------------------------------------------------------


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["torch.save", "os.fsync", "os.replace", "os.link"])
def test_a_full_disk_keeps_what_was_saved(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturb(step: int, _: Line) -> None:
        if step == 4:
            monkeypatch.setattr(broken, full)

    with pytest.raises(WorkFailed, match=r"cannot write .*: the disk is full; .* go on with --resume"):
        loop_of(Line(disturb=disturb), tmp_path, checkpoint_every=2).fit()
    monkeypatch.undo()
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None
    assert (found[0].name, found[1]["step"]) == ("last.ckpt", 4)
    assert not list((tmp_path / "checkpoints").glob("last.ckpt.part"))
    whole, again = Line(), Line()
    loop_of(whole, tmp_path / "whole").fit()
    loop_of(again, tmp_path, resumed_bytes=found[1]["metrics_bytes"]).fit(found[1])
    assert rows(tmp_path) == rows(tmp_path / "whole")


def test_a_full_disk_under_the_rows_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_of(Line(), tmp_path, log_every=1)
    monkeypatch.setattr(loop.metrics, "_write", full)
    with pytest.raises(WorkFailed, match=r"metrics\.csv: the disk is full"):
        loop.fit()


# ---- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [2, 4, 9])
def test_a_signal_saves_and_stops(number: int, at: int, tmp_path: Path) -> None:
    """In the middle of an epoch, at its last step, and at the last step of all."""

    def disturb(step: int, _: Line) -> None:
        if step == at:
            signal.raise_signal(number)

    with pytest.raises(Stopped, match=f"stopped at step {at + 1} of line after saving") as stopped:
        loop_of(Line(disturb=disturb), tmp_path, log_every=3).fit()
    assert stopped.value.signum == number
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None
    assert found[1]["epoch"] * 5 + found[1]["step"] == at + 1
    whole, again = Line(), Line()
    loop_of(whole, tmp_path / "whole", log_every=3).fit()
    loop_of(again, tmp_path, resumed_bytes=found[1]["metrics_bytes"], log_every=3).fit(found[1])
    torch.testing.assert_close(again.weight, whole.weight, rtol=0, atol=0)
    assert rows(tmp_path) == rows(tmp_path / "whole")


def test_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_loop_hands_over_the_rate_of_each_step(tmp_path: Path) -> None:
    rates: list[float] = []

    def disturb(step: int, task: Line) -> None:
        rates.append(task.optimizer.param_groups[0]["lr"])

    loop: Loop = loop_of(Line(disturb=disturb), tmp_path)
    loop.fit()
    assert rates == [loop.learning_rate(step) for step in range(10)]


# ---- reporting -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_shown_stops_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> str:
        raise ValueError("no words for that")

    whole, mute = Line(), Line()
    loop_of(whole, tmp_path / "whole").fit()
    loop = loop_of(mute, tmp_path / "mute")
    said: list[str] = []
    monkeypatch.setattr(mute, "line", broken)
    monkeypatch.setattr(loop.reporter, "warn", said.append)
    loop.fit()
    torch.testing.assert_close(mute.weight, whole.weight, rtol=0, atol=0)
    assert rows(tmp_path / "mute") == rows(tmp_path / "whole")
    assert "could not be shown (ValueError: no words for that)" in said[0]


def test_a_checkpoint_of_something_else_is_one_line(tmp_path: Path) -> None:
    loop_of(Line(), tmp_path).fit()
    state = checkpoint.load(tmp_path / "checkpoints" / "last.ckpt")
    spoiled: list[dict[str, Any]] = [{"meters": 3}, {"task": {"weight": torch.zeros(7)}}, {"task": {}}]
    for change in spoiled:
        with pytest.raises(InputError, match="does not fit this run") as refused:
            loop_of(Line(), tmp_path / "other").fit(state | change)
        assert "\n" not in str(refused.value)
