"""Real-space volumes to and from the half-space lattice whose slices `gridding.interpolate` reads.

Shape letters: C volumes, D box, S = D + 3 and H = S // 2 + 1 points of the lattice (`drgn_ray.physics.gridding`).
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.nn.functional import pad

_AXES = (1, 2, 3)


def envelope(box_size: int, device: torch.device | None = None) -> Float[Tensor, "D D D"]:
    """Compute what trilinear interpolation between lattice points multiplies a volume by, in real space.

    The kernel is a triangle along each axis, whose transform is sinc².
    """
    axis = torch.sinc((torch.arange(box_size, device=device) - box_size // 2) / box_size) ** 2
    return axis[:, None, None] * axis[None, :, None] * axis[None, None, :]


def lattice_of(volumes: Float[Tensor, "C D D D"]) -> Complex[Tensor, "S S H C"]:
    """Lattice that slices of the volumes (z, y, x) are interpolated from.

    They are divided by the `envelope`, which the interpolation then multiplies them by.
    """
    size = volumes.shape[-1]
    divided = volumes / envelope(size, volumes.device)
    spectrum = torch.fft.rfftn(torch.fft.fftshift(divided, dim=_AXES), dim=_AXES)
    around = torch.arange(-(size // 2) - 1, size // 2 + 2, device=volumes.device) % size
    lattice = spectrum[:, around[:, None], around].permute(1, 2, 3, 0)
    return pad(lattice, (0, 0, 0, 1))  # no point of a slice has its share of k_x = D/2 + 1


def volumes_of(lattice: Complex[Tensor, "S S H C"]) -> Float[Tensor, "C D D D"]:
    """Volumes (z, y, x) that slices interpolated from the lattice are of; shells beyond D/2 are left out."""
    size = lattice.shape[0] - 3
    inside = lattice * (lattice_shells(lattice) <= size // 2)[..., None]
    inner = inside.permute(3, 0, 1, 2)[:, 1:-1, 1:-1, :-1].clone()
    for axis in (1, 2):  # -D/2 and D/2 are one coefficient of a volume
        inner.select(axis, 0).add_(inner.select(axis, -1)).div_(2)
    spectrum = torch.fft.ifftshift(inner[:, :-1, :-1], dim=(1, 2))
    volumes = torch.fft.irfftn(spectrum, s=(size, size, size), dim=_AXES)
    return torch.fft.fftshift(volumes, dim=_AXES) * envelope(size, lattice.device)


def resized(volumes: Float[Tensor, "C D D D"], box_size: int) -> Float[Tensor, "C d d d"]:
    """Volumes whose lattice is the middle of the lattice of larger ones: the same slices, up to fewer shells."""
    lattice = lattice_of(volumes)
    beyond = (volumes.shape[-1] - box_size) // 2
    middle = slice(beyond, lattice.shape[0] - beyond)
    return volumes_of(lattice[middle, middle, : lattice.shape[2] - beyond].contiguous())


def lattice_shells(lattice: Tensor) -> Int[Tensor, "S S H"]:
    """Shell round(|k|) of every point of a lattice or of its sums."""
    side, half = lattice.shape[1:3]
    axis = torch.arange(side, device=lattice.device) - side // 2
    x = torch.arange(half, device=lattice.device)
    radius2 = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + x[None, None, :] ** 2
    return radius2.to(torch.float64).sqrt().round().to(torch.int64)
