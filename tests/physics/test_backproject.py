"""Volumes of many noiseless views are the density, in its grey values, up to the edge of the box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blob_views import APIX, SIGMA, SIZE, back_projector, lopsided, pictures, random_views
from torch import Tensor

from drgn_ray.analysis.agreement import volume_correlation
from drgn_ray.physics.backproject import BackProjector, unfiltered_volume, wiener_volume
from drgn_ray.physics.fourier import images_to_half_disc
from drgn_ray.physics.lattice import half_disc
from drgn_ray.physics.simulate import BlobMolecule, density

NYQUIST = SIZE // 2


def heights(volume: Tensor, blob: BlobMolecule) -> float:
    """Density at a blob's centre over what it is in truth."""
    x, y, z = (blob.position[0] / APIX).round().int() + SIZE // 2
    return float(volume[z, y, x] / density(blob, SIZE, APIX)[z, y, x])


def gains(after: Tensor, before: Tensor) -> np.ndarray:
    """Regression of one volume's coefficients on another's, shell by shell."""
    a, b = torch.fft.fftn(after), torch.fft.fftn(before)
    axis = torch.fft.fftfreq(SIZE) * SIZE
    shell = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt().round().int().flatten()
    cross, power = (torch.bincount(shell, (x * b.conj()).real.flatten()) for x in (a, b))
    return (cross / power).numpy()


def test_many_views_give_the_density_in_its_grey_values() -> None:
    """Slices are denser towards the origin: without a balance each voxel would see F too far inside, 4% too high."""
    truth = density(lopsided(), SIZE, APIX).numpy()
    volume = unfiltered_volume(back_projector(lopsided(), random_views(2000)).sums).numpy()
    assert volume_correlation(volume, truth) > 0.999
    assert volume_correlation(volume[:, :, ::-1], truth) < 0.9
    slope = np.polyfit(truth.ravel(), volume.ravel(), 1)[0]
    assert slope == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize("away", [0, 8, 11])
def test_a_blob_keeps_its_height_wherever_it_is(away: int) -> None:
    """Without the correction for the kernel one 11 px from the centre along two axes would lose a third."""
    blob = BlobMolecule(torch.tensor([[APIX * away * 0.707, 0.0, -APIX * away * 0.707]]).round(), torch.ones(1), SIGMA)
    volume = unfiltered_volume(back_projector(blob, random_views(2000)).sums)
    assert heights(volume, blob) == pytest.approx(1, abs=0.05)


def test_an_image_of_weight_two_counts_as_two() -> None:
    views = random_views(12)
    weight = torch.ones(12)
    weight[3] = 2
    twice = torch.cat([views, views[3:4]])
    weighted, repeated = (back_projector(lopsided(), *call).sums for call in ((views, weight), (twice,)))
    assert torch.allclose(weighted, repeated, atol=1e-3)


def test_an_image_of_weight_zero_is_left_out() -> None:
    views = random_views(12)
    weight = (torch.arange(12) % 2).float()
    weighted, chosen = (back_projector(lopsided(), *call).sums for call in ((views, weight), (views[1::2],)))
    assert torch.allclose(weighted, chosen, atol=1e-4)


def test_the_ctf_is_divided_out_whatever_its_sign() -> None:
    points = half_disc(SIZE)
    views = random_views(1500)
    generator = torch.Generator().manual_seed(5)
    ctf = torch.randn(len(views), points.num_points, generator=generator)
    projector = BackProjector(points)
    projector.insert(images_to_half_disc(pictures(lopsided(), views), points) * ctf, ctf, views)
    truth = density(lopsided(), SIZE, APIX).numpy()
    volume = unfiltered_volume(projector.sums).numpy()
    assert volume_correlation(volume, truth) > 0.99
    assert np.polyfit(truth.ravel(), volume.ravel(), 1)[0] == pytest.approx(1, abs=0.05)


def test_a_ctf_that_rises_from_nothing_pulls_no_low_frequency_outwards() -> None:
    """Squared CTFs begin as k⁴, so that within a voxel all weight is on its far side unless that is balanced."""
    points, views = half_disc(SIZE), random_views(2000)
    ctf = -torch.sin((points.k.float() ** 2).sum(dim=-1) / 30).expand(len(views), -1)
    coefficients = images_to_half_disc(pictures(lopsided(), views), points) * ctf
    rising = torch.sin(torch.arange(NYQUIST + 1) ** 2 / 30) ** 2
    truth, off = density(lopsided(), SIZE, APIX), {}
    for name, mean_squared_ctf in (("balanced", rising), ("not", torch.ones(NYQUIST + 1))):
        projector = BackProjector(points, mean_squared_ctf=mean_squared_ctf)
        projector.insert(coefficients, ctf, views)
        off[name] = np.abs(gains(unfiltered_volume(projector.sums), truth)[1:5] - 1).max()
    assert off["balanced"] < 0.1
    assert off["not"] > 1.5 * off["balanced"]


def test_halves_that_agree_need_no_wiener_filter() -> None:
    sums = back_projector(lopsided(), random_views(500)).sums
    unfiltered, filtered = unfiltered_volume(sums), wiener_volume(sums, torch.ones(NYQUIST + 1))
    assert (filtered - unfiltered).abs().max() < 0.01 * unfiltered.max()


@pytest.mark.parametrize(
    ("fsc", "taken"), [(0.8, 0.8), (0.5, 0.5), (0.143, 0.143), (0.05, 0.05), (0.01, 0.02), (-0.5, 0.02)]
)
def test_the_wiener_filter_shrinks_by_the_signal_to_noise_ratio_of_both_halves(fsc: float, taken: float) -> None:
    """SNR / (1 + SNR) with SNR = 2 FSC / (1 - FSC), and no less than at 0.02."""
    sums = back_projector(lopsided(), random_views(1000)).sums
    unfiltered, filtered = unfiltered_volume(sums), wiener_volume(sums, torch.full((NYQUIST + 1,), fsc))
    slope = np.polyfit(unfiltered.flatten().numpy(), filtered.flatten().numpy(), 1)[0]
    assert slope == pytest.approx(2 * taken / (1 + taken), rel=0.04)


def test_the_wiener_filter_knows_one_shell_from_another() -> None:
    sums = back_projector(lopsided(), random_views(500)).sums
    fsc = torch.where(torch.arange(NYQUIST + 1) < 4, 1.0, 0.0)
    gain = gains(wiener_volume(sums, fsc), unfiltered_volume(sums))
    assert gain[1:3].min() > 0.8
    assert gain[5:8].max() < 0.4


def test_the_corners_and_the_solvent_are_zero() -> None:
    volume = unfiltered_volume(back_projector(lopsided(), random_views(1000)).sums)
    assert volume[0, 0, 0] == volume[-1, -1, -1] == 0
    rim = volume[SIZE // 2, SIZE // 2, 2:4]
    assert rim.abs().max() < 0.02 * volume.max()
