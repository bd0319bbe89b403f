"""Fourier shell correlation against an evaluation that first proves itself on cryoDRGN's ``cryodrgn_utils fsc``.

cryoDRGN's shell i is i - 1 <= |k| < i, ours RELION's i - 1/2 <= |k| < i + 1/2; only the edges differ.
"""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from drgn_ray.physics.fsc import fourier_shell_correlation

pytestmark = pytest.mark.filterwarnings("ignore:.*(Map ID|machine stamp)")
CRYODRGN_EDGES, RELION_EDGES = (-1.0, 0.0), (-0.5, 0.5)


def shell_by_shell(first: np.ndarray, second: np.ndarray, edges: tuple[float, float]) -> np.ndarray:
    axis = np.arange(len(first)) - len(first) // 2
    radius = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis)), axis=0)
    a, b = (np.fft.fftshift(np.fft.fftn(volume)) for volume in (first, second))
    curve = []
    for shell in range(1, len(first) // 2):
        inside = (radius >= shell + edges[0]) & (radius < shell + edges[1])
        overlap = np.vdot(b[inside], a[inside]).real
        curve.append(overlap / np.linalg.norm(a[inside]) / np.linalg.norm(b[inside]))
    return np.array(curve)


@pytest.fixture(
    scope="module",
    params=[
        ("fsc_toy.txt", "reference/bp_toy.half_map_a.mrc", "reference/bp_toy.half_map_b.mrc"),
        (
            "fsc_toy_vs_model.txt",
            "reference/bp_toy_notrans_uninv.backproject.mrc",
            "fixtures/toymodel_small_nocenter.mrc",
        ),
    ],
    ids=["half maps", "map and model"],
)
def case(request: pytest.FixtureRequest, reference_data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two volumes, and cryoDRGN's curve of shells 1 to D/2 - 1."""
    text, first, second = request.param
    curve = np.loadtxt(reference_data / "reference" / text, skiprows=1)[1:, 1]
    a, b = (np.array(mrcfile.read(reference_data / name), np.float64) for name in (first, second))
    return a, b, curve


def test_the_evaluation_is_cryodrgns_with_cryodrgns_edges(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    first, second, curve = case
    assert np.abs(shell_by_shell(first, second, CRYODRGN_EDGES) - curve).max() < 1e-5


def test_ours_is_the_evaluation_with_relions_edges(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    first, second, _ = case
    ours = fourier_shell_correlation(first, second)
    assert len(ours) == len(first) // 2 + 1
    assert np.abs(ours[1:-1] - shell_by_shell(first, second, RELION_EDGES)).max() < 1e-12
