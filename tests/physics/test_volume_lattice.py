"""The lattice of a volume gives the slices that are seen of it, and the volume again."""

from __future__ import annotations

import pytest
import torch
from blob_views import APIX, SIZE, lopsided, pictures, random_views
from torch import Tensor

from drgn_ray.physics.gridding import interpolate
from drgn_ray.physics.lattice import half_disc
from drgn_ray.physics.observation import Observer
from drgn_ray.physics.simulate import density
from drgn_ray.physics.volume_lattice import envelope, lattice_of, lattice_shells, volumes_of

POINTS = half_disc(SIZE)
VIEWS = random_views(20)


@pytest.fixture(scope="module")
def volume() -> Tensor:
    return density(lopsided(), SIZE, APIX)


@pytest.fixture(scope="module")
def seen() -> Tensor:
    """What the observer sees of the molecule's pictures, which are made without a lattice."""
    observer = Observer(box_size=SIZE, data_sign=1, hartley_std=1.0, window=False, ctf=False)
    batch = {"images": pictures(lopsided(), VIEWS), "rotation": VIEWS}
    return observer(batch | {"translation": torch.zeros(20, 2), "apix": torch.ones(20)}).coefficients


def slices_of(volume: Tensor) -> Tensor:
    return interpolate(lattice_of(volume[None]), POINTS.k, VIEWS)[..., 0]


def test_slices_of_a_molecules_volume_are_what_is_seen_of_its_pictures(volume: Tensor, seen: Tensor) -> None:
    slices, shell = slices_of(volume), POINTS.k.float().norm(dim=1).round()
    for radius in range(1, SIZE // 4):
        ours, theirs = (torch.view_as_real(part[:, shell == radius]).flatten() for part in (slices, seen))
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99
        assert (ours.norm() / theirs.norm()).item() == pytest.approx(1, abs=0.03)


def test_without_the_division_by_the_envelope_slices_are_farther_off(volume: Tensor, seen: Tensor) -> None:
    undivided = slices_of(volume * envelope(SIZE))
    assert (slices_of(volume) - seen).norm() < 0.5 * (undivided - seen).norm()


def test_volumes_come_back_from_their_lattice(volume: Tensor) -> None:
    both = torch.stack([volume, volume.transpose(0, 2)])
    assert torch.allclose(volumes_of(lattice_of(both)), both, atol=2e-3 * volume.max().item())


def test_of_a_lattice_that_is_full_to_its_corners_only_the_ball_is_in_the_volume() -> None:
    lattice = lattice_of(torch.randn(1, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    ball = lattice * (lattice_shells(lattice) <= SIZE // 2)[..., None]
    assert torch.equal(volumes_of(lattice), volumes_of(ball))
    spectrum = torch.fft.fftn(volumes_of(lattice)[0] / envelope(SIZE))
    axis = torch.fft.fftfreq(SIZE) * SIZE
    radius = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2).sqrt().round()
    assert spectrum[radius > SIZE // 2].abs().max() < 1e-3 * spectrum.abs().max()
