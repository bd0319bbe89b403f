"""Ways through the latents are those of cryoDRGN's ``graph_traversal``, ``direct_traversal`` and ``pc_traversal``."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drgn_ray.analysis.latent_space import principal_components
from drgn_ray.analysis.paths import along_component, length, line, neighbor_graph, shortest_path
from drgn_ray.errors import ConfigError


@pytest.fixture(scope="module")
def z() -> np.ndarray:
    """Latents on an arc, with noise."""
    rng = np.random.default_rng(0)
    along = rng.uniform(0, 1, 2000)
    arc = np.stack([np.cos(3 * along), np.sin(3 * along), along**2], axis=1)
    return (arc + rng.normal(0, 0.05, arc.shape)).astype(np.float32)


@pytest.fixture
def z_file(z: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "z.pkl"
    path.write_bytes(pickle.dumps(z))
    return path


@pytest.mark.parametrize("anchors", [[50, 100], [5, 700, 1200]])
def test_the_way_from_particle_to_particle(
    anchors: list[int], z: np.ndarray, z_file: Path, cryodrgn: Callable[..., None]
) -> None:
    there, rows = z_file.with_name("path.txt"), z_file.with_name("rows.txt")
    words = ["--anchors", *anchors, "--max-neighbors", 30, "--avg-neighbors", 10, "-o", there, "--outind", rows]
    cryodrgn("graph_traversal", z_file, *words)
    ours = shortest_path(neighbor_graph(z, 30, 10), anchors)
    assert ours.tolist() == np.loadtxt(rows, int).tolist()
    np.testing.assert_allclose(z[ours], np.loadtxt(there), rtol=1e-6)
    assert length(z[ours]) > np.linalg.norm(z[anchors[0]] - z[anchors[1]])


def test_the_straight_way(z: np.ndarray, z_file: Path, cryodrgn: Callable[..., None]) -> None:
    there = z_file.with_name("path.txt")
    cryodrgn("direct_traversal", z_file, "--anchors", 77, 333, 1999, "-n", 6, "-o", there)
    ours = line(z[[77, 333, 1999]], 6)
    theirs = np.loadtxt(there)
    np.testing.assert_allclose(ours, theirs[np.any(np.diff(theirs, axis=0, prepend=np.inf) != 0, axis=1)], atol=1e-6)


def test_the_way_along_a_component(z: np.ndarray, z_file: Path, cryodrgn: Callable[..., None]) -> None:
    cryodrgn("pc_traversal", z_file, "--pc", 1, 2, "-n", 10, "-o", z_file.parent / "along")
    for component in (0, 1):
        theirs = np.loadtxt(z_file.parent / "along" / f"pc{component + 1}.txt")
        ours = along_component(z, principal_components(z), component, 10)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_there_is_no_way_between_islands() -> None:
    islands = np.concatenate([np.random.default_rng(0).normal(at, 0.1, (50, 2)) for at in (0, 10)])
    with pytest.raises(ConfigError, match="particles 1 and 2 of the path: between them particles are further apart"):
        shortest_path(neighbor_graph(islands, 5, 3), [3, 77])
