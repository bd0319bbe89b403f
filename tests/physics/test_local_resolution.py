"""Local resolution of maps whose two sides are known to different resolutions."""

from __future__ import annotations

import numpy as np
import pytest

from drgn_ray.physics.local_resolution import local_resolution
from drgn_ray.physics.volume import low_pass

SIZE, APIX = 64, 1.5


@pytest.fixture(scope="module")
def half_maps() -> tuple[np.ndarray, np.ndarray]:
    """Common structure to 4 Å where x is high and to 9 Å where it is low, and noise of each half's own beyond."""
    rng = np.random.default_rng(0)
    structure = rng.standard_normal((SIZE,) * 3).astype(np.float32)
    right = np.broadcast_to(np.arange(SIZE) >= SIZE // 2, structure.shape)
    signal = np.where(right, low_pass(structure, APIX, 4.0), low_pass(structure, APIX, 9.0))
    noise = [0.2 * rng.standard_normal(structure.shape).astype(np.float32) for _ in range(2)]
    return signal + noise[0], signal + noise[1]


def test_each_side_has_its_own_resolution(half_maps: tuple[np.ndarray, np.ndarray]) -> None:
    found = local_resolution(*half_maps, APIX)
    left, right = (np.median(found[:, :, side]) for side in (slice(13, 19), slice(45, 51)))
    assert left == pytest.approx(9.0, rel=0.12)
    assert right == pytest.approx(4.0, rel=0.12)


def test_equal_maps_are_resolved_to_nyquist_everywhere(half_maps: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.allclose(local_resolution(half_maps[0], half_maps[0], APIX), 2 * APIX)


def test_unrelated_maps_are_resolved_nowhere() -> None:
    rng = np.random.default_rng(1)
    first, second = (rng.standard_normal((SIZE,) * 3).astype(np.float32) for _ in range(2))
    assert np.median(local_resolution(first, second, APIX)) > 20


def test_every_band_is_reported(half_maps: tuple[np.ndarray, np.ndarray]) -> None:
    bands: list[int] = []
    local_resolution(*half_maps, APIX, progress=bands.append)
    assert bands == [1] * 30
