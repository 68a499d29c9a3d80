"""A section without a fault, and in place of the look at the machine."""

from gpu_sections.section import Section


def run(section: Section) -> None:
    section.attempt("adds", lambda: {"found": 1 + 1, "cuda": False}, cap=10)
    section.seconds = 0.0
    section.attempt("too late", lambda: {"found": 3}, cap=10)
