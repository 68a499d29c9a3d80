"""A run folder: where its files are, and how they are written so that a killed run loses nothing. Free of torch.

``settings.yaml`` what was asked; ``metrics.csv`` one row each ``log_every`` steps, a function of the settings and
the data alone; ``timing.csv`` speed, which is not; ``log.txt`` what the console said; ``tensorboard/``;
``checkpoints/``; ``bad_pictures.csv`` where pictures were unusable; ``backbone.safetensors`` and ``summary.json`` at
the end.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hetcl import __version__
from hetcl.errors import InputError, WorkFailed
from hetcl.machine import cores


def disk_problem(path: Path, error: OSError) -> WorkFailed:
    """A write that failed, in one line with the fix."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why, mend = ("the disk is full", "make room") if full else (error.strerror or error, "mend that")
    return WorkFailed(
        f"cannot write {path}: {why}; what was saved before is intact: {mend} and go on with --resume"
    )


def rank_name() -> str:
    """Which process of a run this is, as far as its launcher says, before ranks meet; ``0``: the first or only one."""
    return next((os.environ[n] for n in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if n in os.environ), "0")


def first_process() -> bool:
    """Whether this is the process that writes and speaks (rank 0)."""
    return rank_name() == "0"


def absolute(spec: str) -> str:
    """A MODEL or DATASET as a run elsewhere would have to name it: the file or folder in it is written in full."""
    head, colon, path = spec.rpartition(":")
    if colon and not os.path.exists(spec):
        return head + colon + os.path.abspath(path) if os.path.exists(path) else spec
    return os.path.abspath(spec)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` wholly or not at all. Raises ``WorkFailed`` when the disk refuses."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink()
        raise disk_problem(path, e) from None


class RunFolder:
    """Paths and small files of one run.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.yaml"
        self.metrics = self.path / "metrics.csv"
        self.timing = self.path / "timing.csv"
        self.log = self.path / "log.txt"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.bad_pictures = self.path / "bad_pictures.csv"
        self.backbone = self.path / "backbone.safetensors"
        self.summary = self.path / "summary.json"

    def check(self, *, resume: bool) -> None:
        """Raises ``InputError`` when the folder holds a run and ``resume`` is off, or is not a run at all."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {self.path} is a file; name a folder for the run")
        held = [p for p in self.path.iterdir() if p.name != "log.txt"] if self.path.is_dir() else []
        if held and self.settings.is_file() and not resume:
            raise InputError(
                f"--out {self.path} holds a run; add --resume to go on with it, or name a new folder"
            )
        if held and not self.settings.is_file() and not self._unborn(held):
            raise InputError(f"--out {self.path} is not empty and holds no run; name a new or empty folder")

    def create(self, *, resume: bool) -> None:
        """Make the folder. Raises ``InputError`` when that cannot be, or as :meth:`check`."""
        self.check(resume=resume)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(
                f"cannot make the run folder {self.path}: {e.strerror}; name another with --out"
            ) from None

    def _unborn(self, held: list[Path]) -> bool:
        """A folder whose run was killed before its settings were written."""
        return all(p.name in ("checkpoints", "settings.yaml.part") for p in held) and not any(
            self.checkpoints.glob("*.ckpt")
        )

    def write_settings(self, tree: Mapping[str, Any]) -> None:
        """Save the resolved settings, data and command (YAML)."""
        import yaml

        write_atomic(self.settings, yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True).encode())

    def read_settings(self) -> dict[str, Any]:
        """What :meth:`write_settings` saved. Raises ``InputError`` when the file is missing or broken."""
        import yaml

        try:
            tree = yaml.safe_load(self.settings.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{self.path} is no run folder: it has no settings.yaml") from None
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as e:
            raise InputError(f"cannot read {self.settings}: {str(e).splitlines()[0]}") from None
        if not isinstance(tree, dict) or not isinstance(tree.get("settings"), dict):
            raise InputError(
                f"{self.settings} does not hold the settings of a run; put it back, or start a new folder"
            )
        return tree

    def read_metrics(self) -> list[dict[str, float | str]]:
        """Rows of metrics.csv with numbers as floats; empty cells are left out."""
        if not self.metrics.is_file():
            return []
        with open(self.metrics, newline="", encoding="utf-8") as f:
            return [
                {k: v if k == "stage" else float(v) for k, v in row.items() if v} for row in csv.DictReader(f)
            ]

    def write_summary(self, tree: Mapping[str, Any]) -> None:
        """Final figures, machine, commit and wall time as JSON."""
        write_atomic(self.summary, (json.dumps(dict(tree), indent=2) + "\n").encode())


class Table:
    """A CSV file that grows by rows and can be cut back to where a checkpoint left it.

    Args:
        path: the file; its header is written when it is new or cut to nothing.
        columns: the header; a row may leave cells empty and have no others.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)

    def cut(self, size: int | None) -> None:
        """Forget everything after the first ``size`` bytes (0: start anew; None: a last line that is cut short)."""
        try:
            kept = b""
            if self.path.exists() and size != 0:
                with open(self.path, "rb") as f:
                    kept = f.read(os.fstat(f.fileno()).st_size if size is None else size)
            kept = kept[: kept.rfind(b"\n") + 1]
            with open(self.path, "r+b" if self.path.exists() else "w+b") as f:
                f.truncate(len(kept))
            if not kept:
                self._write(dict(zip(self.columns, self.columns, strict=True)))
        except OSError as e:
            raise disk_problem(self.path, e) from None

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row. Floats keep nine digits, which is exact for fp32."""
        try:
            self._write({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()})
        except OSError as e:
            raise disk_problem(self.path, e) from None

    def _write(self, row: Mapping[str, Any]) -> None:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerow(dict(row))
        with open(self.path, "ab") as f:
            f.write(text.getvalue().encode())

    def size(self) -> int:
        """Bytes safely on disk."""
        try:
            with open(self.path, "rb") as f:
                os.fsync(f.fileno())
                return os.fstat(f.fileno()).st_size
        except OSError as e:
            raise disk_problem(self.path, e) from None


def machine() -> dict[str, Any]:
    """This machine and this code, for the summary: versions, processor, commit when there is one."""
    from importlib.metadata import PackageNotFoundError, version

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "hetcl": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": of("torch"),
        "torchvision": of("torchvision"),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
    }


def commit() -> str | None:
    """Commit of the checkout that hetcl runs from, with ``+`` when it has changes; None when there is none."""
    here = Path(__file__).resolve().parent
    run = ["git", "-C", str(here)]
    try:
        top = subprocess.run(
            [*run, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5
        )
        # Installed inside somebody else's repository (a virtual environment, say) that commit is not ours.
        ours = subprocess.run(
            [*run, "ls-files", "--error-unmatch", "folder.py"], capture_output=True, timeout=5
        )
        if top.returncode or ours.returncode:
            return None
        dirty = subprocess.run(
            [*run, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return top.stdout.strip() + ("+" if dirty.stdout.strip() else "")
