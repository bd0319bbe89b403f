"""Adding points of central slices to a 3-D lattice: the inner loop of back-projection.

Sums are kept for the half-space k_x >= 0 of a real volume, as an array (z, y, x, 3) of real part, imaginary part and
weight, with the origin at (D/2 + 1, D/2 + 1, 0).  A point with k_x < 0 is added at -k as its conjugate; in the plane
k_x = 0 only one of the two mirror images is added, and `complete_plane` adds the other.

On the CPU the loop is compiled by Numba (thirty to ninety times as fast as torch's index operations, and without their
temporaries); `insert_with_torch` is the same sum for other devices.
"""

from __future__ import annotations

import itertools
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
        distance) at floor and ceiling of each coordinate, which do not; where a coordinate is a whole number, both are
        the same neighbour, which then gets its share twice.
    """
    if sums.device.type == "cpu":
        trilinear = kernel == "trilinear"
        points = k.to(torch.float32).numpy()
        _insert_compiled(sums.numpy(), values.numpy(), weights.numpy(), points, rotation.numpy(), trilinear)
    else:
        insert_with_torch(sums, values, weights, k, rotation, kernel)


@numba.njit(inline="always")
def _fused(kx: np.float32, rx: np.float32, ky: np.float32, ry: np.float32) -> np.float32:
    """Round ``kx * rx``, then round once more when ``ky * ry`` is added, as a fused multiply-add does.

    So cryoDRGN's matrix product rounds, and its kernel asks whether a coordinate is a whole number.
    """
    return np.float32(np.float64(np.float32(kx * rx)) + np.float64(ky) * np.float64(ry))


def _insert_loop(
    sums: np.ndarray, values: np.ndarray, weights: np.ndarray, k: np.ndarray, rotation: np.ndarray, trilinear: bool
) -> None:
    one, nothing = np.float32(1), np.float32(0)  # all stays in float32, which is half again as fast
    origin = sums.shape[0] // 2
    for image in range(values.shape[0]):
        for point in range(k.shape[0]):
            kx = k[point, 0]
            ky = k[point, 1]
            if trilinear:
                x = kx * rotation[image, 0, 0] + ky * rotation[image, 1, 0]
                y = kx * rotation[image, 0, 1] + ky * rotation[image, 1, 1]
                z = kx * rotation[image, 0, 2] + ky * rotation[image, 1, 2]
            else:
                x = _fused(kx, rotation[image, 0, 0], ky, rotation[image, 1, 0])
                y = _fused(kx, rotation[image, 0, 1], ky, rotation[image, 1, 1])
                z = _fused(kx, rotation[image, 0, 2], ky, rotation[image, 1, 2])
            real = values[image, point].real
            imag = values[image, point].imag
            weight = weights[image, point]
            if x < 0:
                x, y, z, imag = -x, -y, -z, -imag
            floor_x = np.floor(x)
            floor_y = np.floor(y)
            floor_z = np.floor(z)
            at_x = int(floor_x)
            at_y = int(floor_y) + origin
            at_z = int(floor_z) + origin
            num_whole = int(x == floor_x) + int(y == floor_y) + int(z == floor_z)
            times = np.float32(1 << num_whole)  # floor and ceiling are then one neighbour
            for above_z in range(2):
                near_z = z - floor_z if above_z else one - (z - floor_z)  # 1 - distance along the axis
                for above_y in range(2):
                    near_y = y - floor_y if above_y else one - (y - floor_y)
                    for above_x in range(2):
                        near_x = x - floor_x if above_x else one - (x - floor_x)
                        if trilinear:
                            share = near_x * near_y * near_z
                        else:
                            squares = (one - near_x) ** 2 + (one - near_y) ** 2 + (one - near_z) ** 2
                            share = times * max(nothing, one - np.sqrt(squares))
                        sums[at_z + above_z, at_y + above_y, at_x + above_x, 0] += share * real
                        sums[at_z + above_z, at_y + above_y, at_x + above_x, 1] += share * imag
                        sums[at_z + above_z, at_y + above_y, at_x + above_x, 2] += share * weight


try:
    _insert_compiled = numba.njit(nogil=True, cache=True)(_insert_loop)
except RuntimeError:  # there is no place to keep the compiled code, so every process compiles it again
    _insert_compiled = numba.njit(nogil=True)(_insert_loop)


def insert_with_torch(
    sums: Float[Tensor, "S S H 3"],
    values: Complex[Tensor, "B P"],
    weights: Float[Tensor, "B P"],
    k: Int[Tensor, "P 2"],
    rotation: Float[Tensor, "B 3 3"],
    kernel: Kernel,
) -> None:
    """Do what `insert` does with torch's operations alone, on any device."""
    kx, ky = k.to(rotation.dtype)[:, :, None].unbind(1)
    first = kx * rotation[:, :1, :]
    where = (first.double() + ky.double() * rotation[:, 1:2, :].double()).to(first.dtype)  # as a fused multiply-add
    mirrored = where[..., 0] < 0
    where = torch.where(mirrored[..., None], -where, where)
    imag = torch.where(mirrored, -values.imag, values.imag)
    rows = torch.stack([values.real, imag, weights], dim=-1)
    corner, far = where.floor(), where.floor() + 1 if kernel == "trilinear" else where.ceil()
    side_y, side_x = sums.shape[1:3]
    flat = sums.view(-1, 3)
    for offset in itertools.product((0, 1), repeat=3):
        neighbour = torch.where(torch.tensor(offset, dtype=torch.bool, device=where.device), far, corner)
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
