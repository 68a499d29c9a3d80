"""What all verbs that compute do alike, where nothing of a verb is needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hetcl.errors import InputError, WorkFailed
from hetcl.training.dry_run import refusing
from hetcl.training.session import Session


def session(out: Path, **more: Any) -> Session:
    settings = {"device": "cpu", "devices": 1, "precision": "auto", "threads": 1, "workers": 0}
    made = Session()
    made.start(SimpleNamespace(**settings | more), out / "log.txt")
    return made


def test_the_lines_and_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = session(tmp_path)
    one.say_where(tmp_path, precision=one.precision, memory="enough")
    one.say_where(tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        "device    CPU, 1 thread, fp32",
        "memory    enough",
        f"folder    {tmp_path}",
        "device    CPU, 1 thread",
        f"folder    {tmp_path}",
    ]
    assert list(one.machine(precision="fp32"))[-3:] == ["device", "precision", "ranks"]
    assert one.machine()["ranks"] == 1


def test_bad_input_is_failed_work_once_the_work_has_begun(tmp_path: Path) -> None:
    one, ended = session(tmp_path), list[int]()
    one.reporter.stop = lambda: ended.append(1)  # type: ignore[method-assign]
    with pytest.raises(WorkFailed, match="mend it") as failed, one.working():
        raise InputError("mend it")
    assert isinstance(failed.value.__cause__, InputError)
    with pytest.raises(KeyError), one.working():
        raise KeyError
    with one.working():
        pass
    assert ended == [1, 1, 1]


def test_a_dry_run_names_what_fails_and_draws_nothing() -> None:
    def fail() -> None:
        torch.rand(3)
        raise RuntimeError("first\nsecond")

    before = torch.get_rng_state()
    said = r"^it does not run \(first\); do other things$"
    with pytest.raises(InputError, match=said), refusing("it does not run", "do other things"):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ZeroDivisionError), refusing("it does not run", "do other things"):
        _ = 1 / 0
