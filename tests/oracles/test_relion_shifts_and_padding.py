"""More images made by RELION: a single point without padding, and projections before and after whole-pixel shifts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_relion_projections import correlations
from torch import Tensor

from conversions.driver import read_cropped
from conversions.inputs import read_particles
from conversions.table import ParticleTable
from drgn_ray.physics.observation import Observer


@pytest.fixture(scope="module")
def unpadded(reference_data: Path) -> ParticleTable:
    """Its interpolation is coarser than that of ``relion_proj_batch_pfac2``."""
    return read_particles(str(reference_data / "relion_made" / "relion_proj_batch.star"))


def test_every_unpadded_image_is_minus_our_ctf_times_the_point(unpadded: ParticleTable) -> None:
    assert (correlations(unpadded) < -0.98).all()


@pytest.mark.parametrize("wrong", [{"hand": -1}, {"shift": -1}, {"shift": 0}, {"with_ctf": False}])
def test_what_is_wrong_in_one_thing_does_not_agree(unpadded: ParticleTable, wrong: dict[str, int]) -> None:
    assert np.median(np.abs(correlations(unpadded, **wrong))) < 0.2


def centred_coefficients(star: Path, sign: int = 1) -> Tensor:
    table = read_particles(str(star), no_ctf=True)
    batch = {name: torch.tensor(table.columns[name]).float() for name in ("rotation", "translation", "apix")}
    batch["translation"] *= sign
    batch["images"] = torch.tensor(read_cropped(table, table.samplings[0], table.samplings[0]))
    observer = Observer(box_size=table.samplings[0].box_size, data_sign=1, hartley_std=1.0, window=False, ctf=False)
    return observer(batch).coefficients


def test_relions_origins_bring_shifted_projections_back_to_the_centre(reference_data: Path) -> None:
    centred = centred_coefficients(reference_data / "relion_made" / "rln_proj_64_centered.star")
    shifted = centred_coefficients(reference_data / "relion_made" / "rln_proj_64_shifted.star")
    assert (shifted - centred).abs().max() < 1e-5 * centred.abs().max()


def test_origins_of_the_other_sign_do_not(reference_data: Path) -> None:
    centred = centred_coefficients(reference_data / "relion_made" / "rln_proj_64_centered.star")
    away = centred_coefficients(reference_data / "relion_made" / "rln_proj_64_shifted.star", sign=-1)
    assert (away - centred).abs().max() > centred.abs().max()
