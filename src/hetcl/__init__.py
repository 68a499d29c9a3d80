"""hetcl: pre-train vision backbones that know where things are."""

from __future__ import annotations

__version__ = "0.1.0"
