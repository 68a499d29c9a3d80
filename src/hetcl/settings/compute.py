"""The settings that every verb shares: where and how to compute, and how many images may be unusable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


@dataclass(frozen=True)
class PixelSettings:
    """As what the pixels of images are read (docs/channels.md)."""

    in_chans: int = 3
    """Channels of an image: 3 is RGB, 1 gray, others as stored (TIFF, .npy)."""
    pixel_max: float = 0.0
    """The stored value that becomes 1, e.g. 4095 for 12 bits; 0: the largest of the files' type, and RGB is read as 8
    bits."""
    mean: tuple[float, ...] = ()
    """Mean of each channel, of pixels in [0, 1]; []: ImageNet's for RGB of 8 bits; for others that of the weights to
    start from, where they have as many channels, else measured on 256 images."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel, likewise."""


PIXELS = frozenset({"in_chans", "pixel_max", "mean", "std"})
"""Their names."""
SQUARE = frozenset({"stage1.views.square", "stage2.views.square"})


def lacked_by_older(saved: Any) -> frozenset[str]:
    """Settings that a run of an older version lacks, each group all together: it read RGB of 8 bits, and drew crops in
    whole images, which are the defaults."""
    if not isinstance(saved, Mapping):
        return frozenset()
    names = flatten(saved).keys()
    return frozenset().union(*(group for group in (PIXELS, SQUARE) if not group & names))


def check_pixels(s: PixelSettings, least: int = 1) -> list[str]:
    """What is wrong with values that each have the right type, a line each."""
    faults = []
    if not least <= s.in_chans <= 512:
        faults.append(f"setting in_chans must be {least} to 512, not {s.in_chans}")
    if s.pixel_max < 0:
        faults.append(f"setting pixel_max must be 0 (the largest of the type) or more, not {s.pixel_max:g}")
    if bool(s.mean) != bool(s.std):
        faults.append("settings mean and std go together: set both, or neither")
    for name in ("mean", "std"):
        values = getattr(s, name)
        if values and s.in_chans and len(values) != s.in_chans:
            faults.append(
                f"setting {name} has {len(values)} values, and in_chans is {s.in_chans}: give one for each"
            )
    if s.std and min(s.std) <= 0:
        faults.append(f"setting std must be above 0, not {list(s.std)}")
    return faults


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
