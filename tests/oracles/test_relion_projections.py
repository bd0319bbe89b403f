"""Images that RELION made of a single point: hand, shift and CTF sign in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conversions.driver import read_cropped
from conversions.inputs import read_particles
from conversions.table import ParticleTable
from drgn_ray.physics.ctf import compute_ctf
from drgn_ray.physics.fourier import images_to_half_disc
from drgn_ray.physics.lattice import half_disc
from drgn_ray.physics.observation import CTF_COLUMNS

POINT_PX = np.array([17.0, 0.0, 0.0])  # the one voxel of pointmass.mrc, from the centre


def correlations(table: ParticleTable, *, hand: int = 1, shift: int = 1, with_ctf: bool = True) -> np.ndarray:
    """Of RELION's coefficients with CTF times the phase ramp of where the point lands, image by image."""
    points = half_disc(table.samplings[0].box_size)
    seen = images_to_half_disc(
        torch.tensor(read_cropped(table, table.samplings[0], table.samplings[0])), points
    ).numpy()
    parameters = {name: torch.tensor(table.columns[name], dtype=torch.float32) for name in CTF_COLUMNS}
    ctf = compute_ctf(points.freq, **parameters).numpy() if with_ctf else np.ones(seen.shape)
    landed = (table.columns["rotation"] @ POINT_PX)[:, :2] * [1, hand]
    landed = landed - shift * table.columns["translation"] / table.columns["apix"][:, None]
    expected = ctf * np.exp(-2j * np.pi * landed @ points.freq.numpy().T)
    overlap = (seen * expected.conj()).sum(axis=1).real
    return overlap / np.linalg.norm(seen, axis=1) / np.linalg.norm(expected, axis=1)


@pytest.fixture(scope="module")
def table(reference_data: Path) -> ParticleTable:
    return read_particles(str(reference_data / "relion_made" / "relion_proj_batch_pfac2.star"))


def test_relions_images_are_minus_our_ctf_times_the_point_where_we_put_it(table: ParticleTable) -> None:
    assert (correlations(table) < -0.98).all()


def test_no_other_hand_shift_or_ctf_agrees(table: ParticleTable) -> None:
    assert np.abs(correlations(table, hand=-1)).mean() < 0.3
    assert np.abs(correlations(table, shift=-1)).mean() < 0.5
    assert np.abs(correlations(table, with_ctf=False)).mean() < 0.3
