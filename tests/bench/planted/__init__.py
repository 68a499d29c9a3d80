"""Sections of the bench that go wrong on purpose, and one that does not. None needs torch to be found first."""
