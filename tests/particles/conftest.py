"""Stores whose images say which row they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from numbered_store import BOX_SIZE, SHARD_ROWS, write_numbered

from drgn_ray.particles import store as store_module
from drgn_ray.particles.store import ParticleStore

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 images a shard, 64 a chunk."""
    monkeypatch.setattr(store_module, "SHARD_BYTES", SHARD_ROWS * BOX_SIZE**2 * 2)


@pytest.fixture
def numbered_path(small_shards: None, tmp_path: Path) -> Path:
    """A whole store of 1,000 numbered images in 4 shards."""
    path = tmp_path / "numbered.zarr"
    write_numbered(path).finish()
    return path


@pytest.fixture
def numbered(numbered_path: Path) -> ParticleStore:
    """It, opened."""
    return ParticleStore(numbered_path)
