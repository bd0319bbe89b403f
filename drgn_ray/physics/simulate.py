"""Molecules made of Gaussian blobs, whose projections and volumes are known in closed form.

A sum of Gaussians has the transform F(k) = sum_a m_a exp(-2π²σ²|k|²) exp(-2πi k·p_a), so images need no
interpolation and are an independent truth for the whole pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from drgn_ray.physics.ctf import compute_ctf


@dataclass(frozen=True)
class BlobMolecule:
    """Blobs at `position` (Å, origin at the box centre) with `mass`, all of width `sigma` (Å).

    With a batch axis, one conformation an image.
    """

    position: Float[Tensor, "*B A 3"]
    mass: Float[Tensor, "*B A"]
    sigma: float


def project(
    molecule: BlobMolecule,
    rotation: Float[Tensor, "B 3 3"],
    box_size: int,
    apix: float,
    translation: Float[Tensor, "B 2"] | None = None,
) -> Float[Tensor, "B D D"]:
    """Project each conformation along its view: point p lands at ``(rotation @ p)[:2] - translation`` (Å).

    Pixel D/2 is the origin; `translation` is what would centre the image again, as in the store.
    """
    landed = torch.einsum("bij,baj->bai", rotation, molecule.position)[..., :2]
    if translation is not None:
        landed = landed - translation[:, None, :]
    freq = torch.fft.fftfreq(box_size)
    return _image_from_plane_waves(landed / apix, molecule.mass, freq, molecule.sigma / apix)


def apply_ctf(images: Float[Tensor, "B D D"], **parameters: Float[Tensor, " B"]) -> Float[Tensor, "B D D"]:
    """Multiply images by the CTF in Fourier space; `parameters` as in `compute_ctf`."""
    size = images.shape[-1]
    kx, ky = torch.meshgrid(torch.fft.rfftfreq(size), torch.fft.fftfreq(size), indexing="xy")
    ctf = compute_ctf(torch.stack([kx.flatten(), ky.flatten()], dim=-1), **parameters)
    return torch.fft.irfft2(torch.fft.rfft2(images) * ctf.reshape(len(images), *kx.shape), s=(size, size))


def _image_from_plane_waves(
    position_px: Float[Tensor, "B A 2"], mass: Float[Tensor, "B A"], freq: Float[Tensor, " D"], sigma_px: float
) -> Float[Tensor, "B D D"]:
    size = len(freq)
    envelope = torch.exp(-2 * torch.pi**2 * sigma_px**2 * freq**2)
    phase = -2 * torch.pi * freq * (position_px[..., None] + size // 2)  # (B, A, 2, D)
    wave = torch.polar(envelope.expand_as(phase), phase)
    x, y = wave[:, :, 0], wave[:, :, 1] * mass[..., None]
    return torch.fft.ifft2(torch.einsum("bay,bax->byx", y, x)).real


def density(molecule: BlobMolecule, box_size: int, apix: float) -> Float[Tensor, "D D D"]:
    """Volume (z, y, x) of one conformation; its sum over z is `project` without rotation."""
    axis = (torch.arange(box_size) - box_size // 2) * apix
    distance = (axis[None, None, :] - molecule.position.T[:, :, None]) ** 2  # (3, A, D)
    x, y, z = torch.exp(-distance / (2 * molecule.sigma**2)) * apix / (2 * torch.pi * molecule.sigma**2) ** 0.5
    return torch.einsum("a,az,ay,ax->zyx", molecule.mass, z, y, x)
