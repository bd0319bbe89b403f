"""A decoded volume, seen along and between its axes, is the slice that the decoder gives for that view."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_networks import batch, network
from torch import Tensor

from drgn_ray.models.vae import VAE

SIZE = 16


@pytest.fixture(scope="module")
def model() -> VAE:
    return network(SIZE).eval()


@pytest.fixture(scope="module")
def z(model: VAE) -> Tensor:
    return torch.randn(3, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def views() -> Tensor:
    """The 24 rotations that map a cube, and so the volume's samples, onto itself."""
    return torch.tensor(Rotation.create_group("O").as_matrix(), dtype=torch.float32).round()


def below_nyquist(model: VAE) -> Tensor:
    return (model.observer.k**2).sum(dim=-1) < (SIZE // 2) ** 2


def slices(model: VAE, z: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
    """Values of the decoder, and the points (kx, ky, kz) they are the values of."""
    keep = below_nyquist(model)
    real, imag = model.decoder.slices(z.expand(len(views), -1), views, model.observer.half_disc)
    k = model.observer.k[keep]
    points = torch.cat([k, torch.zeros(len(k), 1)], dim=1) @ views
    return torch.complex(real, imag)[:, keep], points.round().long()


def spectrum_at(volume: Tensor, points: Tensor) -> Tensor:
    axes = (-3, -2, -1)
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.fftshift(volume, dim=axes), dim=axes), dim=axes)
    x, y, at_z = (points + SIZE // 2).unbind(-1)
    return spectrum[at_z, y, x]


@torch.no_grad()
def test_all_24_views_of_the_cube_are_slices_of_the_volume(model: VAE, z: Tensor, views: Tensor) -> None:
    expected, points = slices(model, z, views)
    ours = spectrum_at(model.decode_volume(z), points)
    off_the_plane = points[..., 2] != 0
    assert off_the_plane.any(dim=1).sum() == 16  # 8 views have z for their axis
    assert (ours - expected)[off_the_plane].abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_in_the_plane_of_the_unturned_view_it_is_the_mean_with_the_mirrored_conjugate(model: VAE, z: Tensor) -> None:
    here, points = slices(model, z, torch.eye(3)[None])
    k = points[0].float() / SIZE
    there = torch.complex(*(part[0] for part in model.decoder.points(z[None], -k)))
    expected = (here[0] + there.conj()) / 2
    assert (spectrum_at(model.decode_volume(z), points)[0] - expected).abs().max() < 1e-5 * here.abs().max()


@torch.no_grad()
def test_the_sum_over_x_is_the_picture_taken_along_x(model: VAE, z: Tensor) -> None:
    along_x = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])  # picture x is y, picture y is z
    expected, points = slices(model, z, along_x)
    picture = model.decode_volume(z).sum(dim=2)  # arrays are z, y, x: rows z, columns y
    spectrum = torch.fft.fftshift(torch.fft.fft2(torch.fft.fftshift(picture)))
    ours = spectrum[points[0, :, 2] + SIZE // 2, points[0, :, 1] + SIZE // 2]
    off_the_plane = points[0, :, 2] != 0
    assert (ours - expected[0])[off_the_plane].abs().max() < 1e-5 * expected.abs().max()


def test_the_volume_is_made_of_real_numbers_in_a_cube(model: VAE, z: Tensor) -> None:
    volume = model.decode_volume(z)
    assert volume.dtype == torch.float32
    assert volume.shape == (SIZE, SIZE, SIZE)


@torch.no_grad()
def test_the_loss_of_a_batch_is_the_mean_of_its_images_losses(model: VAE) -> None:
    seen = batch(6, SIZE)
    alone = [model({name: values[row : row + 1] for name, values in seen.items()}).loss.item() for row in range(6)]
    assert np.std(alone) > 1e-3 * np.mean(alone)  # they are not all the same
    assert model(seen).loss.item() == pytest.approx(np.mean(alone), rel=1e-5)
