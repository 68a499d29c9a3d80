"""A run folder: where its files are, and how they are written so that a killed run loses nothing. Free of torch.

``settings.yaml`` what was asked; ``metrics.csv`` one row each ``log_every`` steps, a function of the settings and
the data alone; ``timing.csv`` speed, which is not; ``log.txt`` what the console said; ``tensorboard/``;
``checkpoints/``; ``bad_images.csv`` where images were unusable; ``trackers.json`` where others get the figures, too;
``backbone.safetensors`` and ``summary.json`` at the end. docs/reliability.md says how each is protected, and what
becomes of a damaged one.
"""

from __future__ import annotations

import os
import platform
import re
import stat
import subprocess
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetcl import __version__
from hetcl.errors import InputError
from hetcl.machine import cores
from hetcl.paths import expand, expand_spec
from hetcl.printable import printable
from hetcl.runs.files import disk_problem as disk_problem
from hetcl.runs.files import seal, unseal
from hetcl.runs.files import write_atomic as write_atomic
from hetcl.runs.lock import FolderLock
from hetcl.runs.table import Table as Table
from hetcl.trees import LONGEST, TreeError, parse_yaml


def absolute(spec: str) -> str:
    """A MODEL or DATASET as a run elsewhere would have to name it: the file or folder in it is written in full."""
    spec = expand_spec(spec)
    head, colon, path = spec.rpartition(":")
    if colon and not os.path.exists(spec):
        return head + colon + os.path.abspath(path) if os.path.exists(path) else spec
    return os.path.abspath(spec)


class RunFolder:
    """Paths and small files of one run.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(expand(path))
        self.settings = self.path / "settings.yaml"
        self.metrics = self.path / "metrics.csv"
        self.timing = self.path / "timing.csv"
        self.log = self.path / "log.txt"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.bad_images = self.path / "bad_images.csv"
        self.backbone = self.path / "backbone.safetensors"
        self.summary = self.path / "summary.json"
        self.trackers = self.path / "trackers.json"
        self.lock = FolderLock(self.path)

    def check_kinds(self) -> None:
        """Raises ``InputError`` when something else is where a file or folder of the run belongs: before the work."""
        tables = (self.metrics, self.timing, self.bad_images)
        files = (self.settings, *tables, self.log, self.backbone, self.summary, self.trackers)
        for path in [*files, *self.checkpoints.glob("*.ckpt"), self.tensorboard]:
            try:
                mode = path.stat().st_mode
            except OSError:  # not there, or a link to nothing
                continue
            right = (
                stat.S_ISDIR(mode) if path == self.tensorboard else stat.S_ISREG(mode) or stat.S_ISCHR(mode)
            )
            if not right:
                what = "folder" if path == self.tensorboard else "plain file"
                raise InputError(f"{path} is no {what}; move it away and go on with --resume")

    # ---- settings ------------------------------------------------------------------------------------------------

    def write_settings(self, tree: Mapping[str, Any]) -> None:
        """Save the resolved settings, data and command (YAML), with a checksum in the first line."""
        import yaml

        shown = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)
        if any(line != printable(line) for line in shown.split("\n")):  # e.g. marks that reverse a line
            shown = yaml.safe_dump(dict(tree), sort_keys=False)
        text = shown.encode()
        mark = f"# crc32 {zlib.crc32(text):08x} of what follows; who edits it removes this line\n"
        write_atomic(self.settings, mark.encode() + text)

    def read_settings(self, *, newer: bool = True) -> dict[str, Any]:
        """What :meth:`write_settings` saved.

        Args:
            newer: also that of a newer hetcl, whose settings may mean something else.

        Raises:
            InputError: it is missing, broken, or of a newer hetcl.
        """
        try:
            with open(self.settings, encoding="utf-8") as f:
                tree = parse_yaml(f.read(LONGEST + 1))
        except FileNotFoundError:
            raise InputError(f"{self.path} is no run folder: it has no settings.yaml") from None
        except TreeError as e:
            raise InputError(f"cannot read {self.settings}: it is {e}") from None
        except (OSError, UnicodeDecodeError) as e:
            why = e.strerror if isinstance(e, OSError) else "it is not text"
            raise InputError(f"cannot read {self.settings}: {why}") from None
        if not isinstance(tree, dict) or not isinstance(tree.get("settings"), dict):
            raise InputError(
                f"{self.settings} does not hold the settings of a run; put it back, or start a new folder"
            )
        if not newer and _version(tree.get("hetcl")) > _version(__version__):
            raise InputError(f"{self.settings} was written by a newer hetcl ({tree['hetcl']}); upgrade hetcl")
        return tree

    def check_settings(self, tree: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        """Whether what :meth:`read_settings` gave is as the run wrote it.

        Args:
            fields: what it must hold: name to type.

        Raises:
            InputError: something is missing, of another type, or not as it was written.
        """
        mend = "; put back the run's own, or start a new folder"
        for name, kind in fields.items():
            if name not in tree:
                raise InputError(
                    f"{self.settings} lacks {name!r}; put back the run's own, or start a new folder"
                )
            if not isinstance(tree[name], kind) or isinstance(tree[name], bool):
                raise InputError(f"{self.settings}: {name} cannot be {tree[name]!r:.60}{mend}")
        self.check_seal()

    def check_seal(self) -> None:
        """Raises ``InputError`` when settings.yaml has a checksum and does not match it."""
        mark, _, text = self.settings.read_bytes().partition(b"\n")
        stated = re.match(rb"# crc32 ([0-9a-f]{8}) ", mark)
        if stated and int(stated[1], 16) != zlib.crc32(text):
            raise InputError(
                f"{self.settings} does not match its checksum: it is damaged or was edited; put back the run's own "
                "(if it says what you mean, remove its first line)"
            )

    # ---- results -------------------------------------------------------------------------------------------------

    def read_metrics(self) -> list[dict[str, float | str]]:
        """Rows of metrics.csv with numbers as floats; empty cells, and lines that are no rows, are left out."""
        if not self.metrics.is_file():
            return []
        try:
            with open(self.metrics, encoding="utf-8", errors="replace") as f:
                columns = f.readline().rstrip("\n").split(",")
        except OSError:
            return []
        return Table(self.metrics, columns).read()

    def write_summary(self, tree: Mapping[str, Any]) -> None:
        """Final figures, machine, commit and wall time as JSON, with its checksum."""
        write_atomic(self.summary, seal(tree))

    def read_summary(self) -> dict[str, Any]:
        """What :meth:`write_summary` saved; empty when it is not there, or damaged."""
        try:
            return unseal(self.summary.read_bytes())
        except (OSError, TreeError):
            return {}


def _version(text: Any) -> tuple[int, ...]:
    """``"0.1.0"`` as numbers; nothing where it is no version."""
    return tuple(map(int, re.findall(r"\d+", str(text))[:3])) if re.match(r"\d+\.\d+", str(text)) else ()


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
