"""Adding points of central slices to a 3-D lattice: the inner loop of back-projection.

Sums are kept for the half-space k_x >= 0 of a real volume, as an array (z, y, x, 3) of real part, imaginary part and
weight, with the origin at (D/2 + 1, D/2 + 1, 0).  A point with k_x < 0 is added at -k as its conjugate; in the plane
k_x = 0 only one of the two mirror images is added, and `complete_plane` adds the other.

On the CPU the loop is compiled by Numba (thirty to ninety times as fast as torch's index operations, and without their
temporaries); `insert_with_torch` is the same sum for other devices.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numba
import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

Kernel = Literal["trilinear", "cryodrgn"]


def empty_sums(box_size: int, device: torch.device | None = None) -> Float[Tensor, "S S H 3"]:
    """Zeros for a box of size D: one more lattice point than D/2 on every side, for neighbours of the last."""
    side = box_size + 3
    return torch.zeros(side, side, side // 2 + 1, 3, device=device)


def insert(
    sums: Float[Tensor, "S S H 3"],
    values: Complex[Tensor, "B P"],
    weights: Float[Tensor, "B P"],
    k: Int[Tensor, "P 2"],
    rotation: Float[Tensor, "B 3 3"],
    kernel: Kernel,
) -> None:
    """Add values and weights at ``(kx, ky, 0) @ rotation``, spread over the eight lattice neighbours of each point.

    Parameters
    ----------
    kernel
        "trilinear": products of 1 - distance along each axis, which add up to 1.  "cryodrgn": max(0, 1 - Euclidean
        distance), which do not.
    """
    if sums.device.type == "cpu":
        _insert_compiled(
            sums.numpy(), values.numpy(), weights.numpy(), k.to(torch.float32).numpy(), rotation.numpy(), kernel
        )
    else:
        insert_with_torch(sums, values, weights, k, rotation, kernel)


@numba.njit(nogil=True)
def _insert_compiled(
    sums: np.ndarray, values: np.ndarray, weights: np.ndarray, k: np.ndarray, rotation: np.ndarray, kernel: str
) -> None:
    origin = sums.shape[0] // 2
    trilinear = kernel == "trilinear"
    for image in range(values.shape[0]):
        r = rotation[image]
        for point in range(k.shape[0]):
            kx, ky = k[point, 0], k[point, 1]
            x, y, z = kx * r[0, 0] + ky * r[1, 0], kx * r[0, 1] + ky * r[1, 1], kx * r[0, 2] + ky * r[1, 2]
            real, imag = values[image, point].real, values[image, point].imag
            if x < 0:
                x, y, z, imag = -x, -y, -z, -imag
            floor_x, floor_y, floor_z = math.floor(x), math.floor(y), math.floor(z)
            dx, dy, dz = x - floor_x, y - floor_y, z - floor_z
            for near_z in range(2):
                to_z = near_z - dz
                for near_y in range(2):
                    to_y = near_y - dy
                    for near_x in range(2):
                        to_x = near_x - dx
                        if trilinear:
                            share = (1 - abs(to_x)) * (1 - abs(to_y)) * (1 - abs(to_z))
                        else:
                            share = max(np.float32(0), 1 - math.sqrt(to_x * to_x + to_y * to_y + to_z * to_z))
                        cell = sums[
                            int(floor_z) + near_z + origin, int(floor_y) + near_y + origin, int(floor_x) + near_x
                        ]
                        cell[0] += share * real
                        cell[1] += share * imag
                        cell[2] += share * weights[image, point]


def insert_with_torch(
    sums: Float[Tensor, "S S H 3"],
    values: Complex[Tensor, "B P"],
    weights: Float[Tensor, "B P"],
    k: Int[Tensor, "P 2"],
    rotation: Float[Tensor, "B 3 3"],
    kernel: Kernel,
) -> None:
    """Do what `insert` does with torch's operations alone, on any device."""
    where = k.to(rotation.dtype) @ rotation[:, :2, :]
    mirrored = where[..., 0] < 0
    where = torch.where(mirrored[..., None], -where, where)
    imag = torch.where(mirrored, -values.imag, values.imag)
    rows = torch.stack([values.real, imag, weights], dim=-1)
    corner = where.floor()
    side_y, side_x = sums.shape[1:3]
    flat = sums.view(-1, 3)
    for offset in itertools.product((0, 1), repeat=3):
        neighbour = corner + torch.tensor(offset, dtype=where.dtype, device=where.device)
        distance = where - neighbour
        if kernel == "trilinear":
            share = (1 - distance.abs()).prod(dim=-1)
        else:
            share = (1 - torch.linalg.vector_norm(distance, dim=-1)).clamp_min(0)
        x, y, z = neighbour.to(torch.int64).unbind(-1)
        index = ((z + sums.shape[0] // 2) * side_y + y + side_y // 2) * side_x + x
        flat.index_add_(0, index.flatten(), (share[..., None] * rows).flatten(0, 1))


def complete_plane(sums: Float[Tensor, "S S H 3"]) -> Float[Tensor, "S S H 3"]:
    """Add to the plane k_x = 0 its mirror image, which `insert` leaves out."""
    complete = sums.clone()
    mirrored = sums[:, :, 0].flip(0, 1)
    complete[:, :, 0] += mirrored * torch.tensor([1.0, -1.0, 1.0], dtype=sums.dtype, device=sums.device)
    return complete


def to_hartley_lattice(
    half: Float[Tensor, "S S H"], odd: Float[Tensor, "S S H"] | None = None
) -> Float[Tensor, "n n n"]:
    """Lattice of side D + 1 (z, y, x) from the half-space: ``half - odd`` at k and ``half + odd`` at -k.

    With real and imaginary part these are the Hartley values H = Re - Im; without `odd` an even function, as weights.
    """
    odd = torch.zeros_like(half) if odd is None else odd
    inner = slice(1, -1)
    right = (half - odd)[inner, inner, :-1]
    left = (half + odd)[inner, inner, 1:-1].flip(0, 1, 2)
    return torch.cat([left, right], dim=2)
