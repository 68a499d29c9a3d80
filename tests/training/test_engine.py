"""The loop alone: rows, resume at every step, what is not finite, a disk that refuses, signals."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.runs import checkpoint
from hetcl.runs.resume import latest
from hetcl.signals import ALWAYS, OTHERS, StopSignal, asked
from hetcl.training.engine import Loop
from hetcl.training.meters import Meters
from tests.pretraining import processes
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
        found = latest(path / "checkpoints")
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
    found = latest(tmp_path / "checkpoints")
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


@pytest.mark.parametrize("number", [*ALWAYS, *OTHERS])
@pytest.mark.parametrize("at", [2, 4, 9])
def test_a_signal_saves_and_stops(number: int, at: int, tmp_path: Path) -> None:
    """In the middle of an epoch, at its last step, and at the last step of all."""

    def disturb(step: int, _: Line) -> None:
        if step == at:
            signal.raise_signal(number)

    with pytest.raises(Stopped, match=f"stopped at step {at + 1} of line after saving") as stopped:
        loop_of(Line(disturb=disturb), tmp_path, log_every=3).fit()
    assert stopped.value.signum == number
    found = latest(tmp_path / "checkpoints")
    assert found is not None
    assert found[1]["epoch"] * 5 + found[1]["step"] == at + 1
    whole, again = Line(), Line()
    loop_of(whole, tmp_path / "whole", log_every=3).fit()
    loop_of(again, tmp_path, resumed_bytes=found[1]["metrics_bytes"], log_every=3).fit(found[1])
    torch.testing.assert_close(again.weight, whole.weight, rtol=0, atol=0)
    assert rows(tmp_path) == rows(tmp_path / "whole")


class Interrupted(Line):
    """Whose data or evaluation stops at a step or an epoch, as a pool of workers does when a signal comes."""

    def __init__(self, error: Exception, *, step: int = -1, epoch: int = -1) -> None:
        super().__init__()
        self.error, self.at, self.after = error, step, epoch

    def batches(self, epoch: int, start: int) -> Iterator[torch.Tensor]:
        for step, batch in enumerate(super().batches(epoch, start), epoch * 5 + start):
            if step == self.at:
                raise self.error
            yield batch

    def evaluate(self, epoch: int) -> dict[str, float]:
        if epoch == self.after:
            raise self.error
        return super().evaluate(epoch)


def resumed_like_the_whole(path: Path, tmp_path: Path, **settings: Any) -> None:
    found = latest(path / "checkpoints")
    assert found is not None
    whole, again = Line(), Line()
    loop_of(whole, tmp_path / "whole", **settings).fit()
    loop_of(again, path, resumed_bytes=found[1]["metrics_bytes"], **settings).fit(found[1])
    torch.testing.assert_close(again.weight, whole.weight, rtol=0, atol=0)
    assert rows(path) == rows(tmp_path / "whole")


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("where", [{"step": 3}, {"step": 5}, {"epoch": 1}, {"epoch": 2}])
def test_a_signal_while_something_is_waited_for_saves(
    where: dict[str, int], slow: bool, tmp_path: Path
) -> None:
    task = Interrupted(Stopped(signal.SIGTERM, "stopped while waiting"), **where)
    task.slow_evaluation = slow
    with pytest.raises(Stopped, match="after saving") as stopped:
        loop_of(task, tmp_path / "run", log_every=3).fit()
    assert stopped.value.signum == signal.SIGTERM
    resumed_like_the_whole(tmp_path / "run", tmp_path, log_every=3)


@pytest.mark.parametrize("error", [WorkFailed("a worker died"), InputError("no image"), MemoryError("x")])
def test_what_was_trained_is_saved_before_an_error_in_the_data(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error), match=str(error)):
        loop_of(Interrupted(error, step=7), tmp_path / "run", log_every=3).fit()
    found = latest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert (found[1]["epoch"], found[1]["step"]) == (1, 2)
    resumed_like_the_whole(tmp_path / "run", tmp_path, log_every=3)


@pytest.mark.parametrize(("minutes", "step"), [(0.0, 5), (15.0, 5), (1e-9, 7)])
def test_a_checkpoint_comes_by_time(minutes: float, step: int, tmp_path: Path) -> None:
    """A kill costs no more than that; and it changes no number."""
    with pytest.raises(Killed):
        loop_of(Line(disturb=killer(7)), tmp_path / "run", checkpoint_minutes=minutes).fit()
    found = latest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found[1]["epoch"] * 5 + found[1]["step"] == step
    resumed_like_the_whole(tmp_path / "run", tmp_path, checkpoint_minutes=minutes)


def test_ranks_save_when_the_first_one_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They ask each other every tenth step: one message for signals and clocks."""
    monkeypatch.setattr("hetcl.training.engine.world", lambda: (0, 2))
    loop = loop_of(Line(), tmp_path, checkpoint_minutes=1e-9)
    sent: list[list[int]] = []

    def all_reduce(both: torch.Tensor, op: Any) -> None:
        sent.append(both.tolist())
        both.copy_(torch.maximum(both, torch.tensor([0, 1])))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    stop = StopSignal()
    loop.step = 4
    assert loop._agreed(stop) == (0, False)
    loop.epoch, loop.step, stop.number = 2, 0, 15
    assert loop._agreed(stop) == (15, True)
    monkeypatch.setattr(Loop, "main", False)
    assert loop._agreed(stop) == (15, True)
    assert sent == [[15, 1], [15, 0]]


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(n) for n in (*ALWAYS, *OTHERS)]
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == asked() == signal.SIGTERM
    assert [signal.getsignal(n) for n in (*ALWAYS, *OTHERS)] == before
    assert asked() == 0


@pytest.mark.skipif(not OTHERS, reason="no such signals here")
def test_what_others_do_with_a_signal_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """nohup ignores SIGHUP; a program may have a use of its own for SIGUSR1."""
    heard: list[int] = []
    before = (
        signal.signal(signal.SIGHUP, signal.SIG_IGN),
        signal.signal(signal.SIGUSR1, lambda n, _: heard.append(n)),
    )
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
            assert stop.number == 0
            signal.raise_signal(signal.SIGUSR2)
            assert stop.number == signal.SIGUSR2
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGUSR1, before[1])
    assert heard == [signal.SIGUSR1]


def test_one_inside_another_hears_the_same() -> None:
    with StopSignal() as outer:
        with StopSignal() as inner:
            for number in (signal.SIGTERM, *OTHERS[:1]):
                inner.number = 0
                signal.raise_signal(number)
                assert inner.number == asked() == number
        signal.raise_signal(signal.SIGTERM)
        with StopSignal() as inner:
            assert inner.number == outer.number == signal.SIGTERM


def twice(apart: float, second: int) -> None:
    """A process whose main thread waits where Python cannot answer; the first signal asks to stop, another comes."""
    import hetcl.signals

    hetcl.signals.APART = 0.5
    library, mutex, held = ctypes.CDLL(None), ctypes.create_string_buffer(64), threading.Event()

    def hold() -> None:
        library.pthread_mutex_lock(mutex)
        held.set()
        for seconds, number in ((0.2, signal.SIGTERM), (apart, second), (0.5, 0)):
            time.sleep(seconds)
            os.kill(os.getpid(), number)
        library.pthread_mutex_unlock(mutex)

    with StopSignal():
        threading.Thread(target=hold).start()
        held.wait()
        library.pthread_mutex_lock(mutex)
    os._exit(7)


@pytest.mark.skipif(sys.platform != "linux", reason="knows how long Linux's mutexes are")
@pytest.mark.parametrize(
    ("apart", "second", "status"),
    [
        (0.0, signal.SIGTERM, 7),  # a key that reaches a process and its launcher, which passes it on
        (0.7, signal.SIGTERM, 128 + signal.SIGTERM),
        (0.7, signal.SIGINT, 128 + signal.SIGINT),
        (0.7, signal.SIGHUP, 7),  # a terminal that closes says so more than once
    ],
)
def test_a_second_signal_ends_the_program_at_once(apart: float, second: int, status: int) -> None:
    process = processes.SERVER.Process(target=twice, args=(apart, second))
    process.start()
    process.join(60)
    assert process.exitcode == status


def test_the_loop_hands_over_the_rate_of_each_step(tmp_path: Path) -> None:
    rates: list[float] = []

    def disturb(step: int, task: Line) -> None:
        rates.append(task.optimizer.param_groups[0]["lr"])

    loop: Loop = loop_of(Line(disturb=disturb), tmp_path)
    loop.fit()
    assert rates == [loop.learning_rate(step) for step in range(10)]


# ---- reporting -------------------------------------------------------------------------------------------------------


def test_a_row_says_nothing_twice_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, shown = Line(), list[dict[str, Any]]()
    loop = loop_of(task, tmp_path, log_every=2)
    monkeypatch.setattr(task, "line", lambda _: "loss 1.000 (chance 2.00)  score 3  lr 0.1")
    monkeypatch.setattr(task, "brief", lambda _: ["loss 1.000", "score 3"])
    monkeypatch.setattr(loop.reporter, "row", lambda text, **how: shown.append(how | {"text": text}))
    loop.fit()
    first = shown[1]  # (after the evaluation before training)
    assert first["text"].startswith("line 0/2 step 2  loss 1.000 (chance 2.00)  score 3  lr 0.1  ")
    assert first["text"].endswith(first["left"])
    assert first["left"].endswith(" left")
    assert first["short"] == ("loss 1.000", "score 3")
    at, rate, pace = first["below"]
    assert (at, rate) == ("epoch 0/2, step 2 of 10", "lr 0.1")
    assert "img/s" in pace
    assert shown[-1]["left"] == ""


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
