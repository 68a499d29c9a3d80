"""The wheel: built, installed into an environment of its own, and used from a folder outside the repository.

The environment has nothing but the wheel and, on its path, what this one has installed: torch is not fetched again. A
path in a ``.pth`` file brings no editable installation along, so ``hetcl`` there is the wheel's.
"""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

import hetcl

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "pretrain --data scenes:16 --out run --recipe smoke --backbone timm:test_resnet --size 32 --batch 8 --groups 2 "
    "--stage1.epochs 1 --stage2.epochs 1 --knn.every 0 --threads 1 --workers 0 --device cpu"
).split()


def run(*words: object, cwd: Path) -> str:
    """What a command says, in an environment without this process's own paths to code."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "COV"))}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=outside, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves its folders beside the source."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "-w", out, source, cwd=source)
    (built,) = out.glob("hetcl-*.whl")
    return built


@pytest.fixture(scope="module")
def bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``python`` and ``hetcl`` of the clean environment are."""
    home = tmp_path_factory.mktemp("clean") / "env"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home.parent)
    python = home / "bin" / "python"
    place = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
    )
    (place / "reused.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index")
    run(*pip, "--ignore-installed", wheel, cwd=home)
    return home / "bin"


def test_every_file_of_the_package_is_in_the_wheel_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "src" / "hetcl"
    wanted = {
        path.relative_to(ROOT / "src").as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == wanted


def test_the_metadata_are_those_of_the_citation(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    told = email.message_from_bytes(archive.read(name))
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert told["Version"] == cited["version"] == hetcl.__version__
    assert told["License-Expression"] == cited["license"]
    assert told["Author"] == cited["authors"][0]["name"]
    assert told["Keywords"].split(",") == cited["keywords"]
    assert f"Paper, https://doi.org/{cited['preferred-citation']['doi']}" in told.get_all("Project-URL", [])
    assert {"wandb", "mlflow", "onnx", "heif"} <= {*told.get_all("Provides-Extra", [])}
    assert told.get_payload().startswith("# hetcl")
    assert any(n.endswith("licenses/LICENSE") for n in archive.namelist())


@pytest.mark.slow
def test_the_installed_wheel_trains_and_reports_from_anywhere(bin: Path, tmp_path: Path) -> None:
    where = run(bin / "python", "-c", "import hetcl; print(hetcl.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(bin.parent)
    assert run(bin / "hetcl", "--version", cwd=tmp_path).strip() == f"hetcl {hetcl.__version__}"
    assert "hcl-r50" in run(bin / "hetcl", "recipes", cwd=tmp_path)
    run(bin / "hetcl", *SMALL, cwd=tmp_path)
    run(bin / "hetcl", "report", "run", "--examples", "0", "--out", "page.html", cwd=tmp_path)
    assert (tmp_path / "run" / "backbone.safetensors").is_file()
    assert (tmp_path / "page.html").stat().st_size > 100_000
    said = run(bin / "hetcl", "reproduce", "fig2", "--quick", "--dry-run", "--out", "quick", cwd=tmp_path)
    assert "hetcl pretrain" in said
