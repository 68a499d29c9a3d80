"""Images to features on disk: in one pass over them, all that is missing is computed and stored.

Ranks take turns at the steps; what is written is marked, so a stopped pass goes on where it was, with any number of
ranks. B images in a step, V views of each, D dimensions.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from hetcl.analysis import yardstick
from hetcl.analysis.extractor import Extractor, look
from hetcl.analysis.store import Store
from hetcl.errors import WorkFailed
from hetcl.model.norm_statistics import is_unmeasured
from hetcl.quantities import count, duration
from hetcl.signals import StopSignal
from hetcl.training.bad_images import BadImages, check_share
from hetcl.training.devices import not_finite_because
from hetcl.training.memory import Need, bytes_of, outlook
from hetcl.training.progress import Reporter
from hetcl.training.session import Session
from hetcl.types import Source, ViewBatch, ViewPolicy
from hetcl.views.central import Central
from hetcl.views.crops import crops_of
from hetcl.views.loader import name_of
from hetcl.views.pairs import Pairs
from hetcl.views.photometric import Photometric
from hetcl.weights.encoder import Encoder
from hetcl.weights.facts import view_normalization

FLUSH = 20.0
"""Seconds between moments at which what was computed is safe on disk."""


@dataclass(frozen=True)
class Job:
    """Features to fill in: of this encoder, under these views, into this store."""

    encoder: Encoder
    features: str
    policy: ViewPolicy
    size: int
    store: Store
    columns: tuple[str, ...]
    """Columns of the store, one for each view. A column ``boxes`` gets the crops ``[V, 4]``."""
    unit: bool = True
    """Each part of the features of unit length (:class:`Extractor`)."""
    rows: Callable[[Sequence[Tensor], ViewBatch], Mapping[str, np.ndarray]] | None = None
    """What of the features ``[B, D]`` of each view is stored, by column; None: the features themselves."""

    @property
    def seen(self) -> tuple[int, ViewPolicy, int]:
        """What the encoder looks at; it does so once for all jobs that agree in it."""
        return id(self.encoder), self.policy, self.size


Views = Pairs | Central
"""A pass over images, step by step."""
Passes = Sequence[tuple[Sequence[Job], Views]]
"""Jobs that share their images, and the views of every (policy, size) that one of them names."""


def measure(passes: Passes, source: Source, session: Session, **how: Any) -> None:
    """Batch-norm statistics of the encoders that have none yet; ``how`` as of :func:`yardstick.measure`."""
    how |= {"fabric": session.fabric, "workers": session.workers}
    for job in {id(job.encoder): job for jobs, _ in passes for job in jobs}.values():
        if is_unmeasured(job.encoder.pyramid):  # on every rank the same
            yardstick.measure(job.encoder, source, size=job.size, **how)


def complete(passes: Passes, stores: Sequence[Store], *, left_out: Path, max_bad: float, **how: Any) -> None:
    """:func:`extract` what is missing, if anything is.

    Raises ``WorkFailed`` also where more than ``max_bad`` of the images of ``stores``, one for each part, are unusable:
    ranks count their own images while the pass goes on, and a resumed pass what it sees itself; here all of them count.
    """
    if passes:
        extract(passes, left_out=left_out, max_bad=max_bad, **how)
    lost, images = sum(s.lost for s in stores), sum(s.images for s in stores)
    check_share(lost, images, max_bad, left_out)


def extract(
    passes: Passes, *, session: Session, signal: StopSignal, channels_last: bool, left_out: Path,
    max_bad: float, fewer: str,
) -> None:  # fmt: skip
    """Features of all jobs, whole and on disk; each rank computes its share of the steps that are not there.

    Args:
        left_out: the ledger of unusable images; their rows are left out.
        max_bad: share of unusable images above which the work stops.
        fewer: what to do where the disk has too little room.

    Raises:
        WorkFailed: features that are not finite, too many unusable images, or a disk that refuses.
        Stopped: a signal came; what was computed is kept.
    """
    fabric, reporter = session.fabric, session.reporter
    stores = [job.store for jobs, _ in passes for job in jobs]
    images = sum(views.images for _, views in passes)
    if fabric.global_rank == 0:
        for store in stores:
            store.prepare()
        _check_room(stores, images, fewer)
    fabric.barrier()
    works = [_Pass(jobs, views, fabric, channels_last) for jobs, views in passes]
    need = Need(max(work.room() for work in works), max(views.room for _, views in passes))
    _, warned = outlook(need, fabric.device, "lower batch or workers")
    if warned:
        reporter.warn(warned)
    bad = BadImages(left_out, max_bad, images, fate=" and is left out;", warn=reporter.warn)
    if bad.list.notes:
        reporter.warn(bad.list.notes)
    _fill(works, fabric, reporter, signal, bad)
    fabric.barrier()
    if fabric.global_rank == 0:
        for store in stores:
            store.finish()
    fabric.barrier()


def _check_room(stores: Sequence[Store], images: int, fewer: str) -> None:
    """Refuse to begin what does not fit on the disk."""
    root = stores[0].path.parent
    needed = sum(s.size * len(s.todo()) // max(1, -(-s.images // s.batch)) for s in stores)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise WorkFailed(
            f"the features of {count(images, 'image')} need {needed / 1e9:.1f} GB and {root.parent} has "
            f"{free / 1e9:.1f} GB free; make room and go on with --resume, {fewer}"
        )


def _fill(
    works: Sequence[_Pass], fabric: Fabric, reporter: Reporter, signal: StopSignal, bad: BadImages
) -> None:
    """Compute and write the steps that are missing."""
    rank, ranks = fabric.global_rank, fabric.world_size
    total = sum(work.views.images for work in works)
    have = total - sum(work.rows(step) for work in works for step in work.todo)
    began, since, done = time.monotonic(), time.monotonic(), 0
    reporter.start("looking at images", have, total)
    for work in works:
        try:
            for step, batches in work.views.run(work.todo[rank::ranks]):
                batch = next(iter(batches.values()))
                bad.see(len(batch.index), batch.bad)
                work(step, batches)
                done += work.rows(step) * ranks
                here = min(total, have + done)
                reporter.advance(here)
                pace = done / (time.monotonic() - began)
                left = f"{duration((total - here) / pace)} left"
                at, fast = f"{here:,} of {total:,}", f"{pace:.0f} a second"
                reporter.row(f"images  {at}  {fast}, {left}", left=left, short=[at, fast])
                if signal.number or time.monotonic() - since > FLUSH:
                    work.flush()
                    since = time.monotonic()
                signal.check(f"stopped after {here:,} of {total:,} images; go on with --resume")
        finally:
            work.close()
    reporter.stop()


class _Pass:
    """Batches of views to features, for all jobs at once: each encoder sees each view once."""

    def __init__(self, jobs: Sequence[Job], views: Views, fabric: Fabric, channels_last: bool) -> None:
        self.jobs, self.views, self.fabric = jobs, views, fabric
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.pixels = jobs[0].encoder.facts.pixels
        given = view_normalization(self.pixels)
        self.photometric = {job.policy: Photometric(job.policy, *given) for job in jobs}
        self.waiting = [set(job.store.todo().tolist()) for job in jobs]
        self.todo: list[int] = sorted(set().union(*self.waiting))
        """Steps that one of the stores lacks."""
        groups: dict[tuple[int, ViewPolicy, int], list[Job]] = {}
        for job in jobs:
            groups.setdefault(job.seen, []).append(job)
        self.extractors = {
            seen: Extractor(group[0].encoder, [job.features for job in group], unit=group[0].unit)
            .to(fabric.device, memory_format=self.layout)  # type: ignore[call-overload]
            .eval()
            for seen, group in groups.items()
        }

    def rows(self, step: int) -> int:
        """Images of a step."""
        return min(self.views.batch, self.views.images - step * self.views.batch)

    def room(self) -> int:
        """Bytes of the encoder that takes most, with the images of all views."""
        views = max(2 if job.rows else len(job.columns) for job in self.jobs)

        def bytes_for_one(job: Job) -> int:
            images = torch.zeros(1, self.pixels.channels, job.size, job.size, device=self.fabric.device)
            images = images.contiguous(memory_format=self.layout)
            return bytes_of(lambda: self.extractors[job.seen](images)) + views * 5 * images.numel()

        with torch.no_grad(), self.fabric.autocast():
            return self.views.batch * max(map(bytes_for_one, {job.seen: job for job in self.jobs}.values()))

    def __call__(self, step: int, batches: Mapping[tuple[ViewPolicy, int], ViewBatch]) -> None:
        """Write a step into the stores that lack it."""
        found: dict[tuple[int, ViewPolicy, int], list[dict[str, Tensor]]] = {}
        for job, waiting in zip(self.jobs, self.waiting, strict=True):
            batch = batches[job.policy, job.size]
            if len(batch.index) and job.seen not in found:
                found[job.seen] = self._features(job, batch)
            if step in waiting:
                job.store.write(step, **self._rows(job, batch, found.get(job.seen)))

    def _features(self, job: Job, batch: ViewBatch) -> list[dict[str, Tensor]]:
        """Features of each view of a batch, fp32 on the device."""
        module, photometric = self.extractors[job.seen], self.photometric[job.policy]
        found = []
        for view, (images, color) in enumerate(zip(batch.images, batch.color, strict=True)):
            seen = look(module, images, color, photometric, fabric=self.fabric, layout=self.layout)
            found.append(module.align(seen, crops_of(batch, view).to(self.fabric.device)))
        return found

    def _rows(
        self, job: Job, batch: ViewBatch, views: list[dict[str, Tensor]] | None
    ) -> dict[str, np.ndarray]:
        """The columns of a job's store; without views no rows."""
        if views is None:
            return {name: np.zeros((0, *kind.shape)) for name, kind in job.store.columns.items()}
        if job.rows is not None:
            found = job.rows([view[job.features] for view in views], batch)
            return {**found, "index": batch.index.numpy()}
        pairs = zip(job.columns, views, strict=True)
        rows = {name: self._finite(view[job.features], job, batch) for name, view in pairs}
        if "boxes" in job.store.columns:
            rows["boxes"] = batch.boxes.transpose(0, 1).contiguous().numpy()
        return rows | {"index": batch.index.numpy()}

    def _finite(self, features: Tensor, job: Job, batch: ViewBatch) -> np.ndarray:
        """To the host. Raises ``WorkFailed`` when a value is not finite."""
        values = features.float().cpu().numpy()
        wrong = ~np.isfinite(values).all(axis=1)
        if wrong.any():
            which = int(batch.index[int(np.flatnonzero(wrong)[0])])
            other = "; or leave that model out" if len(self.extractors) > 1 else ""
            raise WorkFailed(
                f"{job.encoder.model} gives {job.features} features that are not finite (NaN or infinite) for "
                f"{int(wrong.sum())} of {len(wrong)} images, e.g. {name_of(self.views.source, which)}: "
                f"{not_finite_because(self.fabric)}{other}"
            )
        return values

    def flush(self) -> None:
        """What was computed is safe on disk. Raises ``WorkFailed``."""
        for job in self.jobs:
            job.store.flush()

    def close(self) -> None:
        """Flush, and let go of files and workers."""
        for job in self.jobs:
            job.store.close()
        self.views.close()
