"""The Dockerfile and the workflow: what a linter would say of them. Neither is run here."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
KNOWN = {
    *("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "SHELL"),
    *("STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
}
"""Instructions; ADD is left out, since COPY says what happens."""


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile with its arguments, lines joined, comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in whole.splitlines())
    ]


def faults(text: str) -> list[str]:
    """What is wrong with a Dockerfile, by the rules of hadolint that matter here, named by their numbers there."""
    found, did = [], instructions(text)
    of = {word: [rest for w, rest in did if w == word] for word, _ in did}
    found += [f"{word} is no instruction, or is not to be used (DL3020)" for word in of.keys() - KNOWN]
    for image in of.get("FROM", ["nothing"]):
        tag = image.split()[0].partition(":")[2]
        if not tag or tag == "latest":
            found.append(f"{image} has no fixed tag (DL3006, DL3007)")
    for line in of.get("RUN", []):
        words = shlex.split(line)
        if "sudo" in words or "ssh" in words:
            found.append("sudo or ssh in a build (DL3002, DL3004)")
        if "pip" in words and "--no-cache-dir" not in words:
            found.append("pip keeps its cache (DL3042)")
        if "pip" in words and not {"-c", "-r"} & {*words}:
            found.append("pip installs what is not pinned (DL3013)")
        if "apt-get" in words and not (
            "-y" in words and "--no-install-recommends" in words and "rm -rf /var/lib/apt" in line
        ):
            found.append(
                "apt-get without -y, --no-install-recommends, or leaving its lists (DL3009, DL3014, DL3015)"
            )
        if re.search(r"\bcd /|(?<!\|)\|(?!\|)(?!.*pipefail)", line.replace("*)", "")):
            found.append("cd for WORKDIR, or a pipe whose failure is not seen (DL3003, DL4006)")
    found += [f"WORKDIR {p} is relative (DL3000)" for p in of.get("WORKDIR", []) if not p.startswith("/")]
    if not of.get("USER") or of["USER"][-1].split(":")[0] in ("root", "0"):
        found.append("runs as root (DL3002)")
    for word in ("ENTRYPOINT", "CMD"):
        for rest in of.get(word, []):
            try:
                json.loads(rest)
            except ValueError:
                found.append(f"{word} is no JSON list (DL3025)")
    if any(len(of.get(word, [])) > 1 for word in ("ENTRYPOINT", "CMD")):
        found.append("several ENTRYPOINT or CMD (DL4003, DL4004)")
    for argument in of.get("ARG", []):
        if text.count(re.split("=", argument)[0]) < 2:
            found.append(f"ARG {argument} is not used")
    return found


def ignored(name: str, rules: list[str]) -> bool:
    """Whether .dockerignore keeps ``name``, at the top of the repository, out: the last rule that matches decides."""
    out = False
    for rule in rules:
        if fnmatch.fnmatch(name, rule.removeprefix("!")):
            out = not rule.startswith("!")
    return out


DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_dockerfile_has_no_faults() -> None:
    assert not faults(DOCKERFILE)


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("python:${PYTHON}-slim-bookworm", "python", "DL3006"),
        ("--no-cache-dir ", "", "DL3042"),
        ("-c constraints.txt torch", "torch", "DL3013"),
        ("USER hetcl", "USER root", "DL3002"),
        ('ENTRYPOINT ["hetcl"]', "ENTRYPOINT hetcl", "DL3025"),
        ("WORKDIR /data", "WORKDIR data", "DL3000"),
        ("COPY src", "ADD src", "DL3020"),
        ("ARG PYTHON=3.11", "ARG PYTHON=3.11\nARG OTHER=1", "not used"),
        ("RUN useradd", "RUN apt-get install x && useradd", "DL3009"),
    ],
)
def test_the_rules_see_faults(before: str, after: str, rule: str) -> None:
    assert before in DOCKERFILE
    changed = DOCKERFILE.replace(before, after)
    assert any(rule in fault for fault in faults(changed))


def test_what_is_copied_is_there_and_reaches_the_build() -> None:
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    copied = [rest.split()[:-1] for word, rest in instructions(DOCKERFILE) if word == "COPY"]
    names = [name for some in copied for name in some]
    assert {"src", "pyproject.toml"} <= {*names}
    for name in names:
        assert (ROOT / name).exists(), name
        assert not ignored(name, rules), name
    assert ignored("tests", rules)
    assert ignored(".git", rules)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.findall(r'^readme = "(.+)"|^license-files = \["(.+)"\]', project, re.MULTILINE)
    assert {name for pair in needed for name in pair if name} <= {*names}


def test_workflows_run_what_ci_runs() -> None:
    (file,) = (ROOT / ".github" / "workflows").glob("*")
    tree: dict[Any, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert tree[True].keys() == {"push", "pull_request"}  # (YAML 1.1 reads `on` as true)
    assert tree["permissions"] == {"contents": "read"}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    least = re.search(r'requires-python = ">=(.+)"', project)
    assert least is not None
    for job in tree["jobs"].values():
        assert job["timeout-minutes"] <= 120
        steps = job["steps"]
        assert steps[0]["uses"].startswith("actions/checkout@v")
        assert [s["run"] for s in steps if "run" in s] == [".ci/run"]
        assert all("@" in s["uses"] for s in steps if "uses" in s)
        assert job["strategy"]["matrix"]["python"][0] == least[1]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
