"""``hetcl export``: a MODEL's weights as a file of another library, checked before it is there.

    export("run", format="detectron2", out="backbone.pkl")

The order: read the weights, write them under a hidden name, load that back and compare (``export_proof.py``), and only
then give the file its name and put the card beside it (``cards.py``). A check that fails leaves nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import os
import shutil
import signal
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.model.pyramid import OWN, ResNetPyramid, WrappedPyramid
from hetcl.paths import create, expand
from hetcl.runs.folder import machine
from hetcl.runs.lock import NAME, FolderLock
from hetcl.weights import cards, export_proof, hub, writers
from hetcl.weights.cards import PURPOSES, Facts
from hetcl.weights.encoder import name_of
from hetcl.weights.export_proof import Proof
from hetcl.weights.facts import input_facts
from hetcl.weights.matched import some
from hetcl.weights.sources import Weights, no_arch, pyramid_of, read_weights
from hetcl.weights.writers import Material, Payload


@dataclass(frozen=True)
class Kind:
    """What is written."""

    purpose: str
    """What it is for, in a line."""
    suffixes: tuple[str, ...]
    """Endings the file may have."""
    why: str
    """Why those."""

    @property
    def folder(self) -> bool:
        """Whether it is a folder of files."""
        return not self.suffixes


@dataclass(frozen=True)
class Format(Kind):
    """One way out for a backbone."""

    write: Callable[[Material, Path], Payload]
    """Raises ``InputError`` when the weights do not fit the format."""
    check: Callable[[Material, Payload, Path], tuple[Proof, str]]
    """The proof and the code it ran. Raises ``WorkFailed`` when the file is not equal to its source."""


def export(
    model: str,
    *,
    format: str,
    out: str | Path,
    overwrite: bool = False,
    allow_partial: str | Sequence[str] = (),
) -> list[Path]:
    """Write ``model``'s weights for another library, with a card beside them, and prove them equal.

    Args:
        model: a MODEL: a run, a checkpoint, a file of weights, ``torchvision:ARCH...``.
        format: a key of :data:`FORMATS`.
        out: the file; its ending must be one of the format's. Of ``hub`` the folder.
        overwrite: replace what is there.
        allow_partial: globs of keys of ``model`` that may be unknown; they are left out. Nothing may be missing.

    Returns:
        the file and its card, ``out`` with ``.md`` behind; of a folder its files, the card last.

    Raises:
        InputError: no such weights or format, weights that the format cannot hold, or an ``out`` that cannot be.
        WorkFailed: the file could not be written, or is not equal to its source; nothing is left of it.
    """
    kind = _format(format)
    file = Path(expand(out))
    check_out(file, format, kind, overwrite)
    material = _material(model, allow_partial)
    if material.facts.arch.startswith(f"{OWN}:") and format not in ("onnx", "full"):
        raise InputError(
            f"{model} is of {material.facts.arch}, a backbone given from Python, which no library has: export it as "
            "onnx or full, or load the run's backbone.safetensors into your module, whose names it has"
        )
    with workspace(file, format, kind, overwrite) as folder:
        hidden = folder / file.name
        payload = kind.write(material, hidden)
        *files, card = _parts(file, kind)
        for path in files:
            write(folder / path.relative_to(file.parent), payload.beside.get(path.name, payload.data), file)
        try:
            proof, ran = kind.check(material, payload, hidden)
        except WorkFailed as e:
            why = str(e).replace(f"{folder}{os.sep}", "")
            raise WorkFailed(f"the exported file is not equal to {model}, and was removed: {why}") from None
        run = writers.run_of(model)
        text = cards.card(
            file=file,
            source=name_of(model),
            target=payload.target,
            facts=material.facts,
            proof=proof,
            ran=ran,
            sha256=hashlib.sha256(payload.data).hexdigest(),
            run=run,
            commit=machine()["commit"],
            rounded=any(v.dtype == torch.float64 for v in material.weights.query.values()),
        )
        if kind.folder:
            text = hub.header(file.name, material.facts, run) + text
        write(folder / card.relative_to(file.parent), text.encode(), file)
        return put_in_place(folder, file, [*files, card])


def _parts(file: Path, kind: Format) -> list[Path]:
    """What is written, the card last."""
    return [file / name for name in hub.PARTS] if kind.folder else [file, card_of(file)]


def card_of(file: Path) -> Path:
    """Where the card of ``file`` is."""
    return file.with_name(file.name + ".md")


# ---- arguments -------------------------------------------------------------------------------------------------------


def _format(name: str) -> Format:
    if name in FORMATS:
        return FORMATS[name]
    if name in PURPOSES:
        raise InputError(f"--format {name} is of fine-tuned runs: hetcl.export_predictor(RUN, out=FILE)")
    near = difflib.get_close_matches(name, PURPOSES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(PURPOSES)}"
    raise InputError(f"--format {name}: no such format; {hint}")


def check_out(file: Path, name: str, kind: Kind, overwrite: bool) -> None:
    """Raises ``InputError`` when ``file`` cannot be written."""
    if not file.parent.is_dir():
        raise InputError(f"--out {file}: there is no folder {file.parent}; make it first")
    if kind.folder:
        return _check_folder(file, overwrite)
    endings = " or ".join(kind.suffixes)
    if not file.name or file.is_dir():
        raise InputError(
            f"--out {file} is a folder; name a file in it, such as {file / ('backbone' + kind.suffixes[0])}"
        )
    if file.suffix not in kind.suffixes:
        raise InputError(f"--out {file}: --format {name} writes {endings} ({kind.why}); change the ending")
    if len(os.fsencode(card_of(file).name)) > 255:
        raise InputError(f"--out {file}: the name is too long for a file; choose a shorter one")
    for path in (file, card_of(file)):
        if path.is_dir():
            raise InputError(f"--out {file}: {path} is a folder, and the card goes there; name another file")
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise InputError(f"--out {path} exists; add --overwrite to replace it, or name another file")


def _check_folder(file: Path, overwrite: bool) -> None:
    """Raises ``InputError`` when the folder ``file`` cannot be made, or holds what is not of an export."""
    try:
        held = set(os.listdir(file)) if file.exists() else set[str]()
    except NotADirectoryError:
        raise InputError(f"--out {file} is a file, and --format hub writes a folder; name another") from None
    other = sorted(name for name in held - {*hub.PARTS} if not name.startswith(".git"))
    if other or any((file / name).is_dir() for name in hub.PARTS):
        raise InputError(
            f"--out {file} holds something else ({(other or [*held])[0]}); name a new or empty folder"
        )
    if held and not overwrite:
        raise InputError(
            f"--out {file} exists; add --overwrite to replace what is in it, or name another folder"
        )


def _material(model: str, allow_partial: str | Sequence[str]) -> Material:
    """Raises ``InputError``: no weights, no architecture, or weights that do not fit it or are not finite."""
    weights = read_weights(model, allow_partial=allow_partial)
    if weights.arch is None:
        raise InputError(no_arch(model))
    if weights.matched is not None and weights.matched.missing:
        raise InputError(
            f"{model} lacks weights ({some(weights.matched.missing)}), and random ones in their place would be of no "
            "use to anybody: give whole weights, and allow only keys that are too many"
        )
    if any(n.endswith("running_var") and bool((v < 0).any()) for n, v in weights.query.items()):
        raise InputError(f"{model} holds a negative variance in its batch norms: its statistics are broken")
    pyramid = pyramid_of(weights)
    assert isinstance(pyramid, ResNetPyramid | WrappedPyramid)
    return Material(model, weights, pyramid.float(), _facts(pyramid.arch, weights))


def _facts(arch: str, weights: Weights) -> Facts:
    method = weights.facts.get("method")
    given = input_facts(weights.facts, arch, weights.origin)
    return Facts(
        arch=arch,
        method=(str(method),) if isinstance(method, str) else tuple(str(m) for m in method or ()),
        size=given.size,
        mean=given.mean,
        std=given.std,
        channels=given.channel_order,
        assumed=given.source == "assumed",
        pixel_max=given.pixel_max,
    )


# ---- files -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def workspace(file: Path, name: str, kind: Kind, overwrite: bool) -> Iterator[Path]:
    """A hidden folder to make ``file`` in while no other process makes it. Raises as :func:`check_out`."""
    with _hidden_folder(file.parent) as folder, _lock(file) as lock:
        lock.hold()
        check_out(file, name, kind, overwrite)
        yield folder


@contextlib.contextmanager
def _hidden_folder(parent: Path) -> Iterator[Path]:
    """On the same disk, gone at the end, also when a signal ends the work."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".hetcl-export-", dir=parent))
    except OSError as e:
        raise InputError(f"cannot write in {parent}: {e.strerror}; name another --out") from None
    try:
        with _signals_as_errors():
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _signals_as_errors() -> Iterator[None]:
    """Inside, a signal that asks the program to end raises ``Stopped``, so that what is hidden is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        raise Stopped(number, "stopped; nothing was exported")

    names = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n)]
    before = {number: signal.signal(number, stop) for number in names}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lock(file: Path) -> FolderLock:
    """The lock of one file: others may be written beside it."""
    return FolderLock(file.parent, f"{NAME}-{zlib.crc32(os.fsencode(file.name)):08x}")


def write(path: Path, data: bytes, out: Path) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        with create(path) as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise _disk(out, e) from None


def put_in_place(folder: Path, file: Path, paths: list[Path]) -> list[Path]:
    """Files from ``folder`` under their own names, the card last."""
    card = paths[-1]
    try:
        card.unlink(missing_ok=True)  # of an older file: no card is better than a false one
        card.parent.mkdir(exist_ok=True)
        for path in paths:
            os.replace(folder / path.relative_to(file.parent), path)
    except OSError as e:
        raise _disk(file, e) from None
    return paths


def _disk(file: Path, error: OSError) -> WorkFailed:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why, mend = ("the disk is full", "make room") if full else (error.strerror or str(error), "mend that")
    return WorkFailed(f"cannot write {file}: {why}; {mend} and export again")


FORMATS: dict[str, Format] = {
    name: Format(PURPOSES[name], suffixes, why, write, check)
    for name, suffixes, why, write, check in (
        (
            "torchvision",
            (".pth", ".pt"),
            "a file of torch.save",
            writers.to_torchvision,
            export_proof.check_code,
        ),
        (
            "timm",
            (".pth", ".pt", ".safetensors"),
            "timm goes by them",
            writers.to_timm,
            export_proof.check_code,
        ),
        (
            "detectron2",
            (".pkl",),
            "detectron2 knows its pickles by it",
            writers.to_detectron2,
            export_proof.check_detectron2,
        ),
        ("mmdet", (".pth", ".pt"), "a file of torch.save", writers.to_mmdet, export_proof.check_mmdet),
        ("onnx", (".onnx",), "as all readers expect", writers.to_onnx, export_proof.check_onnx),
        (
            "safetensors",
            (".safetensors",),
            "readers go by it",
            writers.to_safetensors,
            export_proof.check_code,
        ),
        ("hub", (), "a folder", writers.to_hub, export_proof.check_hub),
        ("full", (".safetensors",), "readers go by it", writers.to_full, export_proof.check_full),
    )
}
"""By name: what it is for, how it is written, how it is checked."""
