"""The settings that every verb shares: where and how to compute, and how many images may be unusable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from hetcl.settings.parse import flatten, to_dict


@dataclass(frozen=True)
class ComputeSettings:
    """Where and how to compute; none of these changes what is trained or measured."""

    workers: int = -1
    """Processes that read and cut images, for each device; -1: one for each core up to 8, 0: none."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    devices: int = 1
    """Devices of this process's machine; under torchrun or SLURM the launcher decides."""
    channels_last: bool = True
    """Memory layout of images and convolutions: channels last is faster on CPU and GPU."""
    threads: int = 0
    """Threads for computing on a CPU; 0 leaves PyTorch's choice. Bits repeat only for equal numbers."""
    max_bad: float = 0.1
    """Share of unreadable images above which the work stops; the others are left out and counted."""


@dataclass(frozen=True)
class StreamSettings(ComputeSettings):
    """The same for verbs that read plain images, which may lie in shards."""

    window: int = 0
    """Read images in windows of that many neighbours (slow storage); 0: anywhere."""


MAY_CHANGE = frozenset(
    {"workers", "device", "devices", "threads", "max_bad", "checkpoint_every", "checkpoint_minutes", "track"}
)
"""Settings that a resumed run may have otherwise: they change numbers by rounding at most."""
TRACKERS = ("wandb", "mlflow")
"""Who may get the figures of a training run."""


def check_compute(s: ComputeSettings) -> list[str]:
    """What is wrong with values that each have the right type, a line each."""
    faults = []
    if not -1 <= s.workers <= 1024:
        faults.append(f"setting workers must be -1 (choose) or 0 to 1024, not {s.workers}")
    if s.devices < 1:
        faults.append(f"setting devices must be at least 1, not {s.devices}")
    for name in ("window", "threads"):
        if getattr(s, name, 0) < 0:
            faults.append(f"setting {name} must be 0 or more, not {getattr(s, name)}")
    if s.threads > 1024:
        faults.append(f"setting threads must be at most 1024, not {s.threads}")
    if not 0 <= s.max_bad <= 1:
        faults.append(f"setting max_bad is a share between 0 and 1, not {s.max_bad}")
    return faults


def check_track(names: tuple[str, ...]) -> list[str]:
    """What is wrong with the trackers that are named, a line each."""
    known = " and ".join(TRACKERS)
    faults = [
        f"setting track: no tracker {name!r}; there are {known}" for name in names if name not in TRACKERS
    ]
    return faults or (["setting track names one twice"] if len(set(names)) < len(names) else [])


def check_finite(settings: Any) -> Iterator[str]:
    """A line for each number that is not finite, or too large to mean anything."""
    for key, value in flatten(to_dict(settings)).items():
        numbers = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, float)]
        if not all(abs(v) < 1e30 for v in numbers):
            yield f"setting {key} must be a finite number of sensible size, not {value}"
