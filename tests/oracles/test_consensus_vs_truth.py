"""Our consensus against the truth, beside cryoDRGN's ``backproject_voxel`` of the same 5,000 noisy images with CTF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryodrgn_maps import read_map

from conversions.driver import Options, convert
from conversions.inputs import read_particles
from drgn_ray.analysis.consensus import Maps, density_sign, make_maps
from drgn_ray.analysis.states import all_particles
from drgn_ray.distributed.backproject import back_project
from drgn_ray.particles.backproject import Assignment, Method, half_maps
from drgn_ray.physics.fsc import fourier_shell_correlation


@pytest.fixture(scope="module")
def consensus(reference_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Maps:
    table = read_particles(str(reference_data / "adk_sim" / "particles.star"))
    path = tmp_path_factory.mktemp("adk") / "adk.zarr"
    store = convert(table, Options(str(path), None, "float16", None, True, 0, "drgn-ray convert"))
    everything = Assignment(all_particles(len(store)).weight[None], half_maps(store.columns))
    (sums,) = back_project(store, everything, Method(), num_workers=0)
    return make_maps(sums)


def test_every_shell_is_nearer_to_the_truth_than_cryodrgns(consensus: Maps, reference_data: Path) -> None:
    truth, theirs = truth_and_theirs(reference_data)
    ours, other = (fourier_shell_correlation(volume, truth) for volume in (consensus.full, theirs))
    assert (ours[1:] > other[1:]).all()
    assert ours[1:].mean() > other[1:].mean() + 0.05


def test_every_shell_of_the_part_that_moves_too(consensus: Maps, reference_data: Path) -> None:
    """Of the map before its Wiener filter: a mask makes strong shells leak into those that the filter took down."""
    truth, theirs = truth_and_theirs(reference_data)
    mask = read_map(reference_data / "adk_sim" / "mask_variable.mrc")
    unfiltered = (consensus.half1 + consensus.half2) / 2
    ours, other = (fourier_shell_correlation(volume * mask, truth * mask) for volume in (unfiltered, theirs))
    assert (ours[1:] > other[1:]).all()
    assert ours[1:].mean() > other[1:].mean() + 0.02


def test_its_grey_values_are_nearer_to_the_truth_than_cryodrgns(consensus: Maps, reference_data: Path) -> None:
    truth, theirs = truth_and_theirs(reference_data)
    assert error(consensus.full, truth) < 0.6 * error(theirs, truth)
    assert error(consensus.full, truth) < 0.95 * error((consensus.half1 + consensus.half2) / 2, truth)


def truth_and_theirs(reference_data: Path) -> tuple[np.ndarray, np.ndarray]:
    folder = reference_data / "adk_sim"
    return read_map(folder / "gt_mean.mrc"), read_map(folder / "cryodrgn_backproject_consensus.mrc")


def error(volume: np.ndarray, truth: np.ndarray) -> float:
    """Relative error at the best scale."""
    scale = (volume * truth).sum() / (volume**2).sum()
    return float(np.linalg.norm(scale * volume - truth) / np.linalg.norm(truth))


def test_its_density_is_positive(consensus: Maps) -> None:
    sign, skewness = density_sign(consensus.full)
    assert sign == 1
    assert skewness > 2
