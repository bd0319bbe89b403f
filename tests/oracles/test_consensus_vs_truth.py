"""Our consensus against the truth, beside cryoDRGN's ``backproject_voxel`` of the same 5,000 noisy images with CTF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryodrgn_maps import read_map

from conversions.driver import Options, convert
from conversions.inputs import read_particles
from drgn_ray.analysis.consensus import density_sign, make_maps
from drgn_ray.analysis.states import all_particles
from drgn_ray.distributed.backproject import back_project
from drgn_ray.particles.backproject import Assignment, Method, half_maps
from drgn_ray.physics.fsc import fourier_shell_correlation


@pytest.fixture(scope="module")
def consensus(reference_data: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    table = read_particles(str(reference_data / "adk_sim" / "particles.star"))
    path = tmp_path_factory.mktemp("adk") / "adk.zarr"
    store = convert(table, Options(str(path), None, "float16", None, True, 0, "drgn-ray convert"))
    everything = Assignment(all_particles(len(store)).weight[None], half_maps(store.columns))
    (sums,) = back_project(store, everything, Method(), num_workers=0)
    return make_maps(sums).full


@pytest.mark.parametrize("where", ["the whole box", "the part that moves"])
def test_every_shell_is_nearer_to_the_truth_than_cryodrgns(
    where: str, consensus: np.ndarray, reference_data: Path
) -> None:
    folder = reference_data / "adk_sim"
    truth, theirs = read_map(folder / "gt_mean.mrc"), read_map(folder / "cryodrgn_backproject_consensus.mrc")
    mask = 1.0 if where == "the whole box" else read_map(folder / "mask_variable.mrc")
    ours, other = (fourier_shell_correlation(volume * mask, truth * mask) for volume in (consensus, theirs))
    assert (ours[1:] > other[1:]).all()
    assert ours[1:].mean() > other[1:].mean() + 0.02


def test_its_density_is_positive(consensus: np.ndarray) -> None:
    sign, skewness = density_sign(consensus)
    assert sign == 1
    assert skewness > 2
