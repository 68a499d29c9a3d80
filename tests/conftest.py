"""For every test: no example fails for being slow, since tests assert no times."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("hetcl", deadline=None)
settings.load_profile("hetcl")
