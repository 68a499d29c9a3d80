"""Write the figures of reproductions into docs/results.md, between the marks that name where they lie.

    python experiments/fill_results.py [--check]

A mark is a line ``<!-- reproduction: FILE -->``; what follows it up to ``<!-- end -->`` is written anew from that
``reproduction.json``, which ``hetcl reproduce`` wrote (paths of its machine shortened). With ``--check`` nothing is
written, and the exit status is 1 where the page says something else.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from hetcl.reproduce.text import chapter, origin

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/results.md"
MARKED = re.compile(r"(<!-- reproduction: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with every marked part as its file has it."""

    def part(found: re.Match[str]) -> str:
        tree = json.loads((ROOT / found[2]).read_bytes())
        return "\n".join([found[1], *chapter(tree, "###"), *origin(tree), "", found[3]])

    return MARKED.sub(part, page)


def main() -> int:
    page = PAGE.read_text("utf-8")
    new = filled(page)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, "utf-8")
    elif new != page:
        print(f"{PAGE.name} does not say what its files hold; run {Path(__file__).name} without --check")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
