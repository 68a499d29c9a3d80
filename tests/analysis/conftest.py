"""Checkpoints and images that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.analysis.make import write_checkpoint, write_images


@pytest.fixture(scope="package")
def hcl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with both parts."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "hcl.ckpt")


@pytest.fixture(scope="package")
def moco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the semantic part alone."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "moco.ckpt", method="moco-v2", seed=1)


@pytest.fixture(scope="package")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty different images."""
    return write_images(tmp_path_factory.mktemp("data") / "images", 40)
