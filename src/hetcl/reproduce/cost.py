"""What the cells of a plan cost on this machine, from real steps, before they are begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from hetcl.downstream.pace import measure_step as measure_finetuning
from hetcl.images.sources import open_source
from hetcl.methods import METHODS
from hetcl.pretraining.pace import measure_step
from hetcl.quantities import duration
from hetcl.reproduce.cells import Cell, Plan
from hetcl.settings import resolve, resolve_finetune, stages_of
from hetcl.training.devices import device_name, make_fabric


@dataclass(frozen=True)
class Cost:
    """Seconds on one device of this machine, by verb."""

    pretrain: float
    finetune: float
    device: str
    tests: int
    """Cells of other verbs, which are not measured."""

    def __str__(self) -> str:
        total = self.pretrain + self.finetune
        tests = f"; {self.tests} tests besides, a fraction of that" if self.tests else ""
        return (
            f"about {total / 3600:,.1f} hours of one {self.device} ({duration(total)}): pre-training "
            f"{self.pretrain / 3600:,.1f}, fine-tuning {self.finetune / 3600:,.1f}{tests}. From steps timed here on "
            "noise; reading images, evaluations and other work on the machine come on top"
        )


def cost_of(cells: Iterable[Cell], plan: Plan, say: Callable[[str], None]) -> Cost:
    """Time a step of each kind that the cells have, and add up.

    Raises:
        InputError: settings or data that cannot be used.
    """
    cells = list(cells)
    say("cost      timing a step of each kind ...")
    total = {"pretrain": 0.0, "finetune": 0.0}
    paces: dict[Any, float] = {}
    images = len(open_source(plan.data["images"])) if any(c.verb == "pretrain" for c in cells) else 0
    compute = [f"--{k}={v}" for k, v in plan.compute.items() if k in ("device", "threads")]
    some = resolve(None, compute)
    fabric = make_fabric(device=some.device, devices=1, precision=some.precision, threads=some.threads)
    for cell in cells:
        if cell.verb == "pretrain":
            s = resolve(cell.recipe, cell.words)
            todo = list(stages_of(s).values())
            for stage in todo[1:] if cell.models and len(todo) == 2 else todo:
                fixed = replace(stage, epochs=1, lr=0.1, queue=min(stage.queue, 4096), milestones=())
                key = replace(s, seed=0, stage1=fixed, stage2=fixed)
                if key not in paces:
                    classes = 1000 if METHODS[stage.method].labels else None
                    paces[key] = measure_step(s, stage, fabric=fabric, classes=classes).images_per_second
                total["pretrain"] += stage.epochs * images / paces[key] if paces[key] else float("inf")
        elif cell.verb == "finetune":
            t = resolve_finetune(cell.recipe, cell.words)
            arch = some.backbone if plan.scale.name == "full" else "timm:resnet10t"
            tuned = replace(t, seed=0, steps=1, milestones=(), evaluations=1)
            if tuned not in paces:
                paces[tuned] = measure_finetuning(t, arch, fabric=fabric)
            total["finetune"] += t.steps * t.batch / paces[tuned]
    tests = sum(cell.verb not in total for cell in cells)
    return Cost(total["pretrain"], total["finetune"], device_name(fabric.device), tests)
