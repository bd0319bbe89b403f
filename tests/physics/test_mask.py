"""Masks have cryoDRGN's sums, a core of ones, and an edge that only falls."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from drgn_ray.physics.mask import default_threshold, disc_mask, soften, sphere_mask, threshold_mask

pytestmark = pytest.mark.filterwarnings("ignore:.*(Map ID|machine stamp)")
TOY, SPIKE = ("toymodel_small_nocenter.mrc", 0.5), ("spike-vol.mrc", 12.472)
# Soft edge and dilation (Å) and Å/px, and the sum of the mask over voxels at or below the threshold (section 7.3).
SUMS = [
    (TOY, 2.0, 3.0, 1.0, 1760.1),
    (TOY, 2.0, 3.0, 2.79, 242.0),
    (TOY, 2.0, 7.0, 1.0, 5571.7),
    (TOY, 2.0, 7.0, 2.79, 592.0),
    (TOY, 5.0, 3.0, 1.0, 4256.2),
    (TOY, 5.0, 3.0, 2.79, 543.9),
    (TOY, 5.0, 7.0, 1.0, 9545.2),
    (TOY, 5.0, 7.0, 2.79, 1021.3),
    (SPIKE, 2.0, 3.0, 1.0, 3042.6),
    (SPIKE, 2.0, 3.0, 2.79, 450.0),
    (SPIKE, 2.0, 7.0, 1.0, 8542.9),
    (SPIKE, 2.0, 7.0, 2.79, 1069.0),
    (SPIKE, 5.0, 3.0, 1.0, 6853.3),
    (SPIKE, 5.0, 3.0, 2.79, 1011.0),
    (SPIKE, 5.0, 7.0, 1.0, 11745.8),
    (SPIKE, 5.0, 7.0, 2.79, 1821.7),
]


def read(folder: Path, name: str) -> np.ndarray:
    return np.array(mrcfile.read(folder / "fixtures" / name), np.float32)


@pytest.mark.parametrize(("map_and_threshold", "soft_edge", "dilate", "apix", "expected"), SUMS)
def test_the_sum_outside_of_the_threshold_is_cryodrgns(
    map_and_threshold: tuple[str, float],
    soft_edge: float,
    dilate: float,
    apix: float,
    expected: float,
    reference_data: Path,
) -> None:
    name, threshold = map_and_threshold
    volume = read(reference_data, name)
    mask = threshold_mask(volume, apix=apix, threshold=threshold, dilate=dilate, soft_edge=soft_edge)
    assert mask[volume <= threshold].sum(dtype=np.float64) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(("soft_edge", "dilate"), [(2.0, 3.0), (2.0, 7.0), (5.0, 3.0), (5.0, 7.0)])
def test_edges_thinner_than_a_voxel_add_nothing(soft_edge: float, dilate: float, reference_data: Path) -> None:
    volume = read(reference_data, SPIKE[0])
    mask = threshold_mask(volume, apix=8.0, threshold=SPIKE[1], dilate=dilate, soft_edge=soft_edge)
    assert mask[volume <= SPIKE[1]].sum() == 0
    assert (mask[volume > SPIKE[1]] == 1).all()


def test_the_default_threshold_is_half_of_the_brightest_but_a_ten_thousandth() -> None:
    volume = np.zeros((1, 1, 100_001))
    volume[0, 0, :11] = [8.0] * 10 + [6.0]  # number 10 from the top, counted from 0, is the 99.99th percentile
    assert default_threshold(volume) == pytest.approx(3.0)


def test_a_point_grows_along_the_axes_and_falls_as_a_quarter_of_a_cosine() -> None:
    volume = np.zeros((21, 21, 21))
    volume[10, 10, 10] = 1
    mask = threshold_mask(volume, apix=2.0, threshold=0.5, dilate=4.0, soft_edge=8.0)
    expected = [1, 1, 1, *np.cos(np.pi / 2 * np.array([1, 2, 3, 4]) / 4), 0, 0, 0, 0]
    assert mask[10, 10, 10:] == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(mask[10, 10], mask[10, 10, ::-1])
    assert mask[10, 11, 11] == 1, "an octahedron of two steps has this voxel"
    assert mask[11, 11, 11] == pytest.approx(np.cos(np.pi / 8), abs=1e-6), "and not this, one voxel outside of it"


@pytest.mark.parametrize("width", [0.5, 1.0, 3.7, 6.0])
def test_a_soft_edge_only_falls_and_ends_at_its_width(width: float) -> None:
    core = np.zeros((32, 32, 32), bool)
    core[12:20, 12:20, 12:20] = True
    row = soften(core, width)[16, 16, 19:]
    assert row[0] == 1
    assert (np.diff(row) <= 0).all()
    assert (row[np.arange(len(row)) >= width] == 0).all()
    inside = row[np.arange(len(row)) < width]
    assert (inside > 0).all()
    assert (np.diff(inside) < 0).all()


def test_an_empty_core_is_an_empty_mask() -> None:
    assert not soften(np.zeros((8, 8, 8), bool), 3.0).any()
    assert not threshold_mask(np.zeros((8, 8, 8)), apix=1.0, threshold=1.0).any()


def test_without_an_edge_a_mask_is_its_core() -> None:
    core = np.random.default_rng(0).random((8, 8, 8)) > 0.5
    assert np.array_equal(soften(core, 0.0), core)


def test_a_sphere_has_its_volume_about_the_origin() -> None:
    mask = sphere_mask(64, 20.0)
    assert mask.sum() == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.01)
    assert [np.flatnonzero(mask.any(axis=axes)).tolist() for axes in ((1, 2), (0, 2), (0, 1))] == [[*range(12, 53)]] * 3


def test_a_soft_sphere_falls_outside_of_its_radius() -> None:
    row = sphere_mask(64, 20.0, width=4.0)[32, 32, 32:]
    assert row == pytest.approx([1] * 21 + [*np.cos(np.pi / 2 * np.array([1, 2, 3]) / 4)] + [0] * 8, abs=1e-6)


def test_a_disc_is_the_middle_of_the_sphere() -> None:
    y, x = np.mgrid[-16:16, -16:16]
    assert np.array_equal(disc_mask(32), x**2 + y**2 <= 16**2)
