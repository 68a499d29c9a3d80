"""Finds one row, then fails; one of its attempts fails before."""

from gpu_sections.section import Section


def run(section: Section) -> None:
    section.attempt("divides", lambda: {"found": 1 // 0}, cap=10)
    section.row("before", found=float("nan"))
    raise RuntimeError("planted failure")
