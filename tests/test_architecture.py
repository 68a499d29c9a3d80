"""The shape of the house: who may import whom, who may load torch, who sees settings, what files may hold.

Read from the syntax tree, so imports inside functions and under ``TYPE_CHECKING`` count as well: a type of
another room is knowledge of that room. Only the rule about torch leaves both out, since neither loads it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "hetcl"

GROUND = {
    *("types", "errors", "draws", "printable", "quantities", "paths", "textfiles", "trees", "machine"),
    *("signals", "methods", "ranks", "boxes", "guidance"),
}
"""Modules that every room may import; they import only each other."""

FIRST = {"images", "views", "model", "runs", "training"}
"""The first floor: rooms that meet only through ``types``, but for the exceptions in ROOMS."""

ROOMS: dict[str, set[str]] = {
    "images": set(),
    "views": {"images"},
    "datasets": {"images"},
    "model": set(),
    "runs": set(),
    "training": {"runs"},
    "weights": FIRST,
    "analysis": FIRST | {"weights", "datasets"},
    "pretraining": FIRST | {"weights", "analysis", "reporting"},
    "downstream": FIRST | {"weights", "datasets", "analysis"},
    "reporting": FIRST | {"weights", "analysis"},
    "reproduce": FIRST | {"weights", "pretraining", "downstream", "analysis", "reporting"},
}
"""Room -> the other rooms it may import. A new room is given a line here."""

DATA = {"recipes"}
"""Folders that hold no code."""

OPENS = "reporting.examples"
"""The one module of ``reporting`` that opens data and weights; the others know ``runs``, WORDS and one another."""
WORDS = ("analysis.text.", "analysis.where.report_text.")
"""How figures are worded: pages say it as the verbs do."""

ENTRIES = {
    "pretraining.run",
    "pretraining.build",
    "pretraining.plan",
    "pretraining.demo",
    "pretraining.doctor",
    "pretraining.pace",
    "analysis.contrast.run",
    "analysis.probe.run",
    "analysis.probe.what",
    "analysis.where.run",
    "analysis.embed",
    "weights.exporters",
    "downstream.doctor",
    "downstream.finetune",
    "downstream.plan",
    "downstream.evaluate",
    "downstream.trained",
    "downstream.predictions",
    "reporting.commands",
    "reporting.sections",
    "reproduce.work",
    "reproduce.run",
    "reproduce.cost",
    "downstream.pace",
}
"""Inside the rooms, the modules that may import ``settings``: those with an entry function, with the class that does a
verb's work, with its plan, or with what it builds; the rest may not."""

TORCH_FREE = {"", "cli", "completion", "settings", *GROUND, "runs", "runs.folder", "runs.output", "recipes"}
"""Modules that never load torch: the command line answers before it."""

LOAD_TORCH = {"torch", "torchvision", "timm", "lightning", "lightning_fabric", "lightly", "torchmetrics"}
"""Other people's packages that load torch; ``safetensors.torch`` does too."""

LONGEST = {"src": 400, "experiments": 400, "bench": 500, "tests": 500}
"""Lines of a Python file, by folder."""


@dataclass(frozen=True)
class Import:
    """One imported name: ``hetcl.views.crops`` or ``torch.nn``, and whether importing the module runs it."""

    name: str
    line: int
    at_once: bool


def module_name(path: Path) -> str:
    """``""`` for the package itself, ``"views"`` for ``views/__init__.py``, ``"views.crops"`` ..."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports_of(source: str, module: str, *, package: bool = False) -> list[Import]:
    """Every import of ``source``, the text of ``hetcl.<module>``; relative ones are made absolute.

    ``from a import b`` gives ``a.b``, since ``b`` may be a module. ``import_module("hetcl...")`` counts too.
    """
    here = ["hetcl", *[p for p in module.split(".") if p]]
    here = here if package else here[:-1]

    def walk(node: ast.AST, at_once: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(a.name, node.lineno, at_once) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            yield from (Import(".".join([*base, a.name]), node.lineno, at_once) for a in node.names)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0] if node.args else None
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield Import(str(first.value), node.lineno, at_once)
        if isinstance(node, ast.If) and is_type_checking(node.test):
            for guarded in node.body:
                yield from walk(guarded, False)
            for other in node.orelse:
                yield from walk(other, at_once)
            return
        inside = at_once and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return list(walk(ast.parse(source), True))


def own(name: str) -> str | None:
    """``"views.crops"`` for ``"hetcl.views.crops"``, ``""`` for ``"hetcl"``, None for other packages."""
    return name[len("hetcl") :].lstrip(".") if name.split(".")[0] == "hetcl" else None


def trespasses(source: str, module: str) -> list[str]:
    """What ``source``, standing at ``module``, imports against the rule; one line each."""
    room = module.split(".")[0]
    found = []
    for item in imports_of(source, module):
        target = own(item.name)
        if target is None or target == "__version__":
            continue
        top = target.split(".")[0]
        if room in GROUND or room == "settings":
            allowed = top in GROUND or top == room == "settings"
        elif room in ROOMS:
            allowed = top in GROUND | {room} | ROOMS[room]
            allowed |= top == "settings" and module in ENTRIES
        else:  # the roof: cli, the lazy public API and what stands beside them
            allowed = True
        if not allowed:
            found.append(f"hetcl.{module}, line {item.line}: imports {item.name}")
    return found


def sources() -> dict[str, Path]:
    return {module_name(p): p for p in sorted(PACKAGE.rglob("*.py"))}


SOURCES = sources()


def text_of(module: str) -> str:
    return SOURCES[module].read_text(encoding="utf-8")


def loaded_with(module: str) -> list[str]:
    """The module, the packages it lies in, and what of hetcl it imports at once, as module names."""
    parts = module.split(".")
    found = ["", *[".".join(parts[: i + 1]) for i in range(len(parts))]]
    package = SOURCES[module].name == "__init__.py"
    for item in imports_of(text_of(module), module, package=package):
        target = own(item.name)
        while item.at_once and target:
            if target in SOURCES:
                found.append(target)
            target = target.rpartition(".")[0]
    return [m for m in found if m in SOURCES]


# ---- who may know whom ----


@pytest.mark.parametrize("module", list(SOURCES))
def test_a_room_imports_only_what_lies_below(module: str) -> None:
    assert not trespasses(text_of(module), module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("types", "from hetcl.views import crops"),
        ("draws", "import hetcl.settings"),
        ("settings", "from hetcl.training.engine import fit"),
        ("views.crops", "from hetcl.model.momentum import gather"),
        ("images.decode", "from ..views import crops"),
        ("images.decode", "from hetcl import views"),
        ("images.decode", "import hetcl"),
        ("model.queue", "def f():\n    from hetcl.views import order"),
        ("model.queue", "if TYPE_CHECKING:\n    from hetcl.views.pairs import Pairs"),
        ("runs.folder", "importlib.import_module('hetcl.training.engine')"),
        ("training.engine", "from hetcl.settings import Pretrain"),
        ("pretraining.stages", "from hetcl.settings import Pretrain"),
        ("pretraining.run", "from hetcl.downstream import finetune"),
        ("weights.sources", "from hetcl.analysis import probe"),
        ("images.decode", "from hetcl.cli import main"),
    ],
)
def test_the_rule_sees_a_trespass(module: str, source: str) -> None:
    assert trespasses(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "views.crops",
            "from hetcl.images.decode import decode\nfrom hetcl.types import Sample\nimport torch",
        ),
        ("views.crops", "from . import photometric\nfrom .loader import Loader"),
        ("training.engine", "from hetcl.runs import checkpoint"),
        ("pretraining.run", "from hetcl.settings import Pretrain\nfrom hetcl.training.engine import fit"),
        ("runs.folder", "from hetcl import __version__, errors"),
        ("cli", "def f():\n    from hetcl.pretraining.run import pretrain"),
    ],
)
def test_the_rule_lets_neighbours_meet(module: str, source: str) -> None:
    assert not trespasses(source, module)


def test_pages_are_made_of_files_alone() -> None:
    for module in (m for m in SOURCES if m.split(".")[0] == "reporting" and m != OPENS):
        seen = {str(own(i.name)) for i in imports_of(text_of(module), module)}
        rooms = {name.split(".")[0] for name in seen if not f"{name}.".startswith(WORDS)} & set(ROOMS)
        assert rooms <= {"runs", "reporting"}, module


def test_the_table_for_readers_says_the_same() -> None:
    lines = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| room |"))
    told = {}
    for line in lines[start + 2 : lines.index("", start)]:
        _, room, _, imports, _ = line.split("|")
        name, *more = re.findall(r"`(\w+)`", room)
        told["ground" if "ground" in room else name] = {*re.findall(r"`(\w+)`", imports)}, {name, *more}
    assert told.pop("ground")[1] == GROUND
    del told["cli"]
    assert {room: imports for room, (imports, _) in told.items()} == ROOMS


def test_every_room_has_a_line_in_the_table_and_a_docstring() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))} - {"__pycache__"}
    assert folders - DATA - {"settings"} <= set(ROOMS), "give the new room a line in ROOMS"
    for folder in folders:
        assert folder in SOURCES, f"{folder}/ has no __init__.py"
    without = [m for m in SOURCES if not ast.get_docstring(ast.parse(text_of(m)))]
    assert not without, "modules without a docstring that says their job"


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    for room, others in ROOMS.items():
        assert not [o for o in others if room in ROOMS[o]]


# ---- torch comes late ----


def torch_free() -> list[str]:
    rooms = ("settings", "reporting")
    return [
        m for m in SOURCES
        if m in TORCH_FREE or (m.split(".")[0] in rooms and m != OPENS)
        or "free of torch" in (ast.get_docstring(ast.parse(text_of(m))) or "").lower()
    ]  # fmt: skip


def loads_torch(source: str, module: str) -> list[str]:
    return [
        f"hetcl.{module}, line {i.line}: {i.name}"
        for i in imports_of(source, module)
        if i.at_once and (i.name.split(".")[0] in LOAD_TORCH or i.name.startswith("safetensors.torch"))
    ]


@pytest.mark.parametrize("module", torch_free())
def test_nothing_on_the_way_to_the_command_line_loads_torch(module: str) -> None:
    seen: set[str] = set()
    todo = [module]
    while todo:
        here = todo.pop()
        if here not in seen:
            seen.add(here)
            assert not loads_torch(text_of(here), here), f"loaded on the way from hetcl.{module}"
            todo += loaded_with(here)


@pytest.mark.parametrize(
    ("source", "loads"),
    [
        ("import torch.nn as nn", True),
        ("from timm import create_model", True),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None", True),
        ("class A:\n    import torchvision", True),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import torch", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor", False),
        ("def f():\n    import torch", False),
        ("import numpy", False),
    ],
)
def test_the_torch_rule_sees_what_is_loaded_at_once(source: str, loads: bool) -> None:
    assert bool(loads_torch(source, "cli")) is loads


def test_torch_free_modules_really_leave_torch_out() -> None:
    names = ["hetcl" + (f".{m}" if m else "") for m in torch_free()]
    code = "import importlib, sys\nfor m in sys.argv[1:]:\n    importlib.import_module(m)\n"
    code += "    assert 'torch' not in sys.modules, m"
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- what files may hold ----


def repository_files() -> list[Path]:
    """Files that are, or are about to be, in the repository; without git, the files of the known folders."""
    ask = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(ask, cwd=ROOT, capture_output=True, check=True, timeout=60)
        names = [n for n in done.stdout.decode().split("\0") if n]
    except (OSError, subprocess.SubprocessError):
        tops = ["src", "tests", "docs", "bench", "experiments", ".ci"]
        inside = [p for t in tops for p in (ROOT / t).rglob("*") if "__pycache__" not in p.parts]
        names = [str(p.relative_to(ROOT)) for p in [*ROOT.iterdir(), *inside]]
    return [ROOT / n for n in names if (ROOT / n).is_file()]


MACHINE = re.compile(
    "|".join(
        [
            r"(?<![\w.$}])/(?:work|root|opt)/",
            r"(?<![\w.])/home/(?!me/|you/)\w+/",
            r"--(?:extra-)?index-" + "url",
            r"--find-" + "links",
            r"file:/" + r"//",
            r"https?://[^\s/\"']*(?:pypi|registry|artifactory|nexus)",
        ]
    )
)
"""Absolute paths of one machine, and where one machine takes its packages from."""


def test_no_file_holds_a_path_of_one_machine_or_a_package_host() -> None:
    files = repository_files()
    assert ROOT / "pyproject.toml" in files
    found = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("data = '/wo" + "rk/shared/data'", True),
        ("see /roo" + "t/.cache/torch", True),
        ("pip install --index-" + "url https://x.org", True),
        ("torch @ file:/" + "//tmp/torch.whl", True),
        ("https://py" + "pi.example.org/simple", True),
        ("--data ../shared/data/photos", False),
        ("/home/me/photos", False),
        ("the network/root/a branch, $PREFIX/root/x, net/work/x", False),
    ],
)
def test_the_path_rule_sees_them(line: str, caught: bool) -> None:
    assert bool(MACHINE.search(line)) is caught


def test_python_files_stay_short_enough_to_read() -> None:
    files = [p.relative_to(ROOT) for p in repository_files() if p.suffix == ".py"]
    lengths = {name: len((ROOT / name).read_bytes().splitlines()) for name in files}
    long = {str(name): n for name, n in lengths.items() if n > LONGEST.get(name.parts[0], 400)}
    assert not long, f"split these files (longer than {LONGEST}): {long}"
