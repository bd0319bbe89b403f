"""Molecules made of Gaussian blobs, whose projections and volumes are known in closed form.

A sum of Gaussians has the transform F(k) = sum_a m_a exp(-2π²σ²|k|²) exp(-2πi k·p_a), so images need no
interpolation and are an independent truth for the whole pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class BlobMolecule:
    """Blobs at `position` (Å, origin at the box centre) with `mass`, all of width `sigma` (Å).

    With a batch axis, one conformation an image.
    """

    position: Float[Tensor, "*B A 3"]
    mass: Float[Tensor, "*B A"]
    sigma: float


def project(
    molecule: BlobMolecule, rotation: Float[Tensor, "B 3 3"], box_size: int, apix: float
) -> Float[Tensor, "B D D"]:
    """Project each conformation along its view: point p lands at ``(rotation @ p)[:2]``, pixel D/2 is the origin."""
    landed = torch.einsum("bij,baj->bai", rotation, molecule.position)[..., :2] / apix
    freq = torch.fft.fftfreq(box_size)
    return _image_from_plane_waves(landed, molecule.mass, freq, molecule.sigma / apix)


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
