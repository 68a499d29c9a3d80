"""One pass over the images: every model that still needs features gets both views of every image.

Ranks take turns at the steps; what is written is marked, so a stopped pass goes on where it was, with any number of
ranks. B images in a step, V = 2 views, D dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from hetcl.analysis.extract import Extractor
from hetcl.analysis.store import Folder
from hetcl.errors import Stopped, WorkFailed
from hetcl.signals import StopSignal
from hetcl.training.bad_images import BadList
from hetcl.training.devices import not_finite_because
from hetcl.training.memory import Need, bytes_of, outlook
from hetcl.training.progress import Reporter, duration
from hetcl.types import Source, ViewBatch, ViewPolicy
from hetcl.views.loader import name_of
from hetcl.views.pairs import Pairs
from hetcl.views.photometric import Photometric
from hetcl.weights.encoder import Encoder

FLUSH = 20.0
"""Seconds between moments at which what was computed is safe on disk."""


@dataclass(frozen=True)
class Job:
    """Features to fill in: of this encoder, under these views, into this folder."""

    encoder: Encoder
    features: str
    policy: ViewPolicy
    size: int
    folder: Folder


def fill(
    jobs: Sequence[Job],
    pairs: Pairs,
    *,
    fabric: Fabric,
    reporter: Reporter,
    signal: StopSignal,
    channels_last: bool,
    left_out: Path,
    max_bad: float,
    images: int,
) -> None:
    """Write the features of every job, as far as they are not there; this rank's share of the steps.

    Args:
        pairs: the views of every (policy, size) that a job names.
        left_out: CSV file that lists unusable images.
        max_bad: share of unusable images above which the work stops.
        images: how many there are in all.

    Raises:
        WorkFailed: features that are not finite, too many unusable images, or a disk that refuses.
        Stopped: a signal came; what was computed is kept.
    """
    work = _Pass(jobs, pairs.source, fabric, channels_last)
    _, warned = outlook(Need(work.room(pairs.batch), pairs.room), fabric.device, "lower batch or workers")
    if warned:
        reporter.warn(warned)
    waiting = {id(job): set(job.folder.todo().tolist()) for job in jobs}
    todo = np.array(sorted(set().union(*waiting.values())), np.int64)
    mine = todo[fabric.global_rank :: fabric.world_size]
    bad = _LeftOut(left_out, max_bad, images, reporter)
    total, seen = images, images - len(todo) * pairs.batch
    began, since, done = time.monotonic(), time.monotonic(), 0
    reporter.start("looking at images", max(0, seen), total)
    try:
        for step, batches in pairs.run(mine.tolist()):
            bad.see(next(iter(batches.values())))
            for job, result in work(batches):
                if step in waiting[id(job)]:
                    job.folder.write(step, *result)
            done += 1
            count = min(total, max(0, seen) + done * fabric.world_size * pairs.batch)
            reporter.advance(count)
            spent = time.monotonic() - began
            pace = done * pairs.batch * fabric.world_size / spent
            reporter.row(
                f"images  {count:,} of {total:,}  {pace:.0f} a second, {duration((total - count) / pace)} left"
            )
            if signal.number or time.monotonic() - since > FLUSH:
                for job in jobs:
                    job.folder.flush()
                since = time.monotonic()
            if signal.number:
                raise Stopped(
                    signal.number, f"stopped after {count:,} of {total:,} images; go on with --resume"
                )
    finally:
        for job in jobs:
            job.folder.close()
    reporter.stop()


class _Pass:
    """Batches of views to features, for all jobs at once: each encoder sees each view once."""

    def __init__(self, jobs: Sequence[Job], source: Source, fabric: Fabric, channels_last: bool) -> None:
        self.source, self.fabric = source, fabric
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.photometric = {job.policy: Photometric(job.policy) for job in jobs}
        # (encoder, policy, size) -> its jobs: one pass through the encoder gives all their features.
        self.groups: dict[tuple[int, ViewPolicy, int], list[Job]] = {}
        for job in jobs:
            self.groups.setdefault((id(job.encoder), job.policy, job.size), []).append(job)
        self.extractors = {
            key: Extractor(group[0].encoder, [job.features for job in group])
            .to(fabric.device, memory_format=self.format)  # type: ignore[call-overload]
            .eval()
            for key, group in self.groups.items()
        }

    def room(self, batch: int) -> int:
        """Bytes of the encoder that takes most, with the images of both views."""

        def bytes_for_one(key: tuple[int, ViewPolicy, int]) -> int:
            size, device = key[2], self.fabric.device
            images = torch.zeros(1, 3, size, size, device=device).contiguous(memory_format=self.format)
            return bytes_of(lambda: self.extractors[key](images)) + 2 * 5 * images.numel()

        with torch.no_grad(), self.fabric.autocast():
            return batch * max(map(bytes_for_one, self.extractors))

    def __call__(
        self, batches: Mapping[tuple[ViewPolicy, int], ViewBatch]
    ) -> list[tuple[Job, tuple[np.ndarray, ...]]]:
        """``(job, (query [b, D], key [b, D], index [b], boxes [b, 2, 4]))`` for every job."""
        out: list[tuple[Job, tuple[np.ndarray, ...]]] = []
        for (encoder, policy, size), group in self.groups.items():
            batch = batches[policy, size]
            index = batch.index.numpy()
            boxes = batch.boxes.transpose(0, 1).contiguous().numpy()
            if not len(index):
                for job in group:
                    empty = np.zeros((0, sum(job.folder.dims.values())), np.float32)
                    out.append((job, (empty, empty, index, boxes)))
                continue
            views = [self._features((encoder, policy, size), batch, view) for view in (0, 1)]
            for job in group:
                query, key = (self._finite(view[job.features], job, batch) for view in views)
                out.append((job, (query, key, index, boxes)))
        return out

    @torch.no_grad()
    def _features(self, key: tuple[int, ViewPolicy, int], batch: ViewBatch, view: int) -> dict[str, Tensor]:
        """Features of one view of a batch, fp32 on the device."""
        images = batch.images[view].to(self.fabric.device, non_blocking=True)
        images = self.photometric[key[1]](images, batch.color[view]).contiguous(memory_format=self.format)
        with self.fabric.autocast():
            return self.extractors[key](images)

    def _finite(self, features: Tensor, job: Job, batch: ViewBatch) -> np.ndarray:
        """To the host. Raises ``WorkFailed`` when a value is not finite."""
        values = features.float().cpu().numpy()
        wrong = ~np.isfinite(values).all(axis=1)
        if wrong.any():
            which = int(batch.index[int(np.flatnonzero(wrong)[0])])
            raise WorkFailed(
                f"{job.encoder.model} gives {job.features} features that are not finite (NaN or infinite) for "
                f"{int(wrong.sum())} of {len(wrong)} images, e.g. {name_of(self.source, which)}: "
                f"{not_finite_because(self.fabric)}; or leave that model out"
            )
        return values


class _LeftOut:
    """Unusable images, listed in a file; too many stop the work."""

    def __init__(self, path: Path, max_bad: float, images: int, reporter: Reporter) -> None:
        self.path, self.max_bad, self.images, self.reporter = path, max_bad, images, reporter
        self.known: set[int] = set()
        self.seen = 0
        self.list = BadList(path)
        if self.list.notes:
            reporter.warn(self.list.notes)

    def see(self, batch: ViewBatch) -> None:
        """Count a batch. Raises ``WorkFailed``."""
        new = [r for r in batch.bad if r.index not in self.known]
        self.seen += len(batch.index) + len(batch.bad)
        if not new:
            return
        if not self.known:
            self.reporter.warn(
                f"{new[0].name} cannot be used ({new[0].reason}) and is left out; {self.path} lists all such images"
            )
        self.known |= {r.index for r in new}
        self.list.add(new)
        if self.seen >= min(self.images, 1000) and len(self.known) > self.max_bad * self.seen:
            raise WorkFailed(
                f"{len(self.known)} of the first {self.seen} images cannot be used, more than max_bad = "
                f"{self.max_bad:.0%}; {self.path} lists them: mend the data, or raise max_bad and go on with --resume"
            )
