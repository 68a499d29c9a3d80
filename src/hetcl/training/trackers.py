"""Weights & Biases and MLflow: the figures of a run, sent where a person asked for them (setting ``track``).

Nothing here may end a training run or hold it up for long: what a tracker raises is said once, and it gets no more.
Where it sends, and as whom, are the tools' own variables (``WANDB_MODE``, ``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``,
``MLFLOW_EXPERIMENT_NAME`` ...).
"""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hetcl.errors import InputError
from hetcl.runs.files import seal, unseal
from hetcl.runs.folder import RunFolder, write_atomic
from hetcl.trees import TreeError

PROJECT = "hetcl"
"""Project and experiment, where the tools' variables name none."""


class Tracker(Protocol):
    """One run at one tool."""

    id: str
    """By which a resumed run goes on with it."""
    where: str
    """An address or a folder, for a person."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures ``STAGE/NAME`` of a step of that stage."""
        ...

    def close(self, *, failed: bool) -> None:
        """The run has ended, or was stopped."""
        ...


class Wandb:
    """A run of Weights & Biases. Each stage counts its own steps, so each has an axis, ``STAGE/step``."""

    def __init__(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT, name=folder.resolve().name, dir=str(folder),
            id=known, resume="allow", config=dict(settings),
            settings=wandb.Settings(console="off", silent=True, init_timeout=30),
        )  # fmt: skip
        self._stages: set[str] = set()
        self.id = self._run.id
        self.where = (None if self._run.offline else self._run.url) or str(Path(self._run.dir).parent)

    def log(self, values: Mapping[str, float], step: int) -> None:
        stages = {name.partition("/")[0] for name in values}
        for stage in stages - self._stages:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        self._run.log({**values, **{f"{stage}/step": step for stage in stages}})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Mlflow:
    """A run of MLflow: settings as its parameters, figures as its metrics."""

    DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
    BATCH = 100
    """Parameters that MLflow takes at once; of metrics it takes more."""

    def __init__(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> None:
        # A server that does not answer would else hold up the training for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        # Who names a folder wants it; mlflow 3.13 and later refuse one unless this is said, too.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient, get_tracking_uri

        if get_tracking_uri().partition(":")[0].partition("+")[0] in self.DATABASES and not (
            importlib.util.find_spec("sqlalchemy") and importlib.util.find_spec("alembic")
        ):
            raise RuntimeError(
                f"it would write to {get_tracking_uri()}, and mlflow-skinny alone knows no databases: set "
                f"MLFLOW_TRACKING_URI to a folder ({Path('mlruns').absolute().as_uri()}) or a server, or pip install "
                "'hetcl[mlflow]'"
            )
        self._metric: Any = Metric
        self._client: Any = MlflowClient()
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            self.id = known
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            self.id = self._client.create_run(experiment, run_name=folder.resolve().name).info.run_id
            params = [Param(key, str(value)) for key, value in settings.items()]
            for start in range(0, len(params), self.BATCH):
                self._client.log_batch(self.id, params=params[start : start + self.BATCH])
        self.where = f"{self._client.tracking_uri}, run {self.id}"

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(key, float(value), now, step) for key, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


KINDS: dict[str, Callable[[Path, str | None, Mapping[str, Any]], Tracker]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
}
"""By the names of the setting ``track``, which are those of the packages and of hetcl's extras."""


def check_installed(names: Sequence[str]) -> None:
    """Raises ``InputError`` for a tracker whose package is not there."""
    for name in names:
        found = importlib.util.find_spec(name)
        if (
            found is None or found.origin is None
        ):  # (a folder of that name, as wandb itself leaves, is no package)
            raise InputError(f"track names {name}, which is not installed: pip install 'hetcl[{name}]'")


class Trackers:
    """Those that a run was asked for; each until it fails.

    Args:
        names: keys of :data:`KINDS`.
        folder: of the run; ``trackers.json`` in it says with which runs of theirs a resumed one goes on.
        tree: what settings.yaml of the run holds.
        say, warn: for a person.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: RunFolder,
        tree: Mapping[str, Any],
        *,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        self._open: dict[str, Tracker] = {}
        known = _known(folder) if names else {}
        settings = _flat(tree.get("settings", {})) | {
            k: v for k, v in tree.items() if k in ("data", "recipe", "init")
        }
        for name in names:
            tracker = self._tried(name, lambda name=name: KINDS[name](folder.path, known.get(name), settings))  # type: ignore[misc]
            if tracker is not None:
                self._open[name] = tracker
                say(f"{name:<10}{tracker.where}")
        ids = {name: tracker.id for name, tracker in self._open.items()}
        if ids:
            write_atomic(folder.trackers, seal(known | ids))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures of a step, to all that have not failed."""
        for name, tracker in [*self._open.items()]:
            self._tried(name, lambda tracker=tracker: tracker.log(values, step))  # type: ignore[misc]

    def close(self, *, failed: bool) -> None:
        """The end of the run."""
        for name, tracker in [*self._open.items()]:
            self._tried(name, lambda tracker=tracker: tracker.close(failed=failed))  # type: ignore[misc]
        self._open.clear()

    def _tried(self, name: str, what: Callable[[], Any]) -> Any:
        """What it gives, or None: it failed, which is said, and it is asked no more."""
        try:
            return what()
        except Exception as e:  # of somebody else's code, network or account
            self._open.pop(name, None)
            self._warn(
                f"{name} failed ({type(e).__name__}: {_reason(e)}) and gets no more figures of this run; training "
                "goes on, and metrics.csv has all of them"
            )
            return None


def _reason(error: Exception, most: int = 300) -> str:
    """The first line of what an error says: whole, or as many whole sentences of it as ``most`` characters hold."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    if len(line) <= most:
        return line
    sentences = [m.end() for m in re.finditer(r"[.!?;](?=\s)", line[: most + 1])]
    return line[: sentences[-1]] if sentences else f"{line[:most].rpartition(' ')[0] or line[:most]} ..."


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _known(folder: RunFolder) -> dict[str, str]:
    """The runs that this one began at each tool; none where the file is damaged or not there."""
    try:
        tree = unseal(folder.trackers.read_bytes())
    except (OSError, TreeError):
        return {}
    return {name: run for name, run in tree.items() if isinstance(run, str)}
