"""Between the stages: what stage 2 takes from stage 1 and what starts afresh; and ``--init`` in stage 1's place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hetcl.pretraining.run import Plan, PretrainRun
from hetcl.pretraining.stages import Contrast
from hetcl.runs import checkpoint
from hetcl.runs.folder import RunFolder
from hetcl.settings import from_dict
from hetcl.weights.sources import Weights, read_weights


def task_after(before: Weights, undisturbed: Path, tmp_path: Path) -> Contrast:
    """Stage 2 of the undisturbed run's settings as it is before its first step."""
    saved = RunFolder(undisturbed).read_settings()
    plan = Plan(saved["data"], "demo", None, from_dict(saved["settings"], "saved"), None)
    run = PretrainRun(RunFolder(tmp_path), plan, resume=False)
    task = run._task("stage2", plan.settings.stage2, before)
    assert isinstance(task, Contrast)
    return task


def test_stage_2_starts_from_both_encoders_of_stage_1(undisturbed: Path, tmp_path: Path) -> None:
    path = undisturbed / "checkpoints" / "stage1.ckpt"
    then = checkpoint.load(path)["task"]
    query, key = then["query"], then["key"]
    moved = [n for n in query if not torch.equal(query[n], key[n])]
    assert len(moved) > len(query) / 2, "the two encoders are hardly different, so the test says little"

    task = task_after(read_weights(str(path)), undisturbed, tmp_path)
    now_query, now_key = task.pair.query.state_dict(), task.pair.key.state_dict()
    new = {n for n in now_query if n.startswith("branches.spatial.")}
    assert set(now_query) - new == set(query)
    for name, value in now_query.items():
        if name in new:  # the new branch's key copy from its query copy
            torch.testing.assert_close(now_key[name], value, rtol=0, atol=0)
        else:
            torch.testing.assert_close(value, query[name], rtol=0, atol=0)
            torch.testing.assert_close(now_key[name], key[name], rtol=0, atol=0)
    assert task.optimizer.state_dict()["state"] == {}
    assert task.queue.seen == 0
    assert task.queue.keys.shape == (13, 8 + 16)


@pytest.mark.parametrize("broken", ["gone", "another shape"])
def test_a_branch_that_does_not_fit_starts_afresh_in_both(
    broken: str, undisturbed: Path, tmp_path: Path
) -> None:
    weights = read_weights(str(undisturbed / "checkpoints" / "stage1.ckpt"))

    def without(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = {n: v for n, v in state.items() if not n.startswith("branches.")}
        if broken == "gone":
            return kept
        return state | {"branches.semantic.fc.2.weight": torch.zeros(3, 3)}

    assert weights.key is not None
    task = task_after(
        replace(weights, query=without(weights.query), key=without(weights.key)), undisturbed, tmp_path
    )
    query, key = task.pair.query.state_dict(), task.pair.key.state_dict()
    for name, value in query.items():
        if name.startswith("branches."):
            torch.testing.assert_close(key[name], value, rtol=0, atol=0)
        else:
            torch.testing.assert_close(key[name], weights.key[name], rtol=0, atol=0)
