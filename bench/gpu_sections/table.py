"""The report as Markdown."""
from __future__ import annotations
from typing import Any, Mapping
def markdown(report: Mapping[str, Any]) -> str:
    return ""
