"""Adding points of central slices to a 3-D lattice and reading them from it: the inner loops of maps and of EM.

Sums are kept for the half-space k_x >= 0 of a real volume, as an array (z, y, x, 3) of real part, imaginary part and
weight, with the origin at (D/2 + 1, D/2 + 1, 0).  A point with k_x < 0 is added at -k as its conjugate; in the plane
k_x = 0 only one of the two mirror images is added, and `complete` and `complete_plane` add the other.

On the CPU the loop is compiled by Numba (thirty to ninety times as fast as torch's index operations, and without their
temporaries); `insert_with_torch` is the same sum for other devices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numba
import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

_MOST_NUMBERS = 1 << 27  # in a temporary array of torch's operations
Kernel = Literal["trilinear", "cryodrgn"]


def lattice_side(box_size: int) -> int:
    """Lattice points along an axis: one more than D/2 on every side of the origin, for neighbours of the last."""
    return box_size + 3


def empty_sums(box_size: int, device: torch.device | None = None) -> Float[Tensor, "S S H 3"]:
    """Zeros for the lattice of a box."""
    side = lattice_side(box_size)
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
def _turned(
    kx: np.float32, ky: np.float32, rotation: Float[np.ndarray, "3 3"]
) -> tuple[np.float32, np.float32, np.float32]:
    """``(kx, ky, 0) @ rotation``."""
    x = kx * rotation[0, 0] + ky * rotation[1, 0]
    y = kx * rotation[0, 1] + ky * rotation[1, 1]
    z = kx * rotation[0, 2] + ky * rotation[1, 2]
    return x, y, z


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
                x, y, z = _turned(kx, ky, rotation[image])
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


def interpolate(
    volumes: Complex[Tensor, "S S H C"], k: Int[Tensor, "P 2"], rotation: Float[Tensor, "B 3 3"]
) -> Complex[Tensor, "B P C"]:
    """Slices ``(kx, ky, 0) @ rotation`` of several volumes, trilinear between their lattice points."""
    if volumes.device.type != "cpu":
        return interpolate_with_torch(volumes, k, rotation)
    slices = torch.empty(len(rotation), len(k), volumes.shape[-1], dtype=torch.complex64)
    numbers = torch.view_as_real(volumes.contiguous()).flatten(-2).numpy()
    written = torch.view_as_real(slices).flatten(-2).numpy()
    _interpolate_compiled(numbers, k.to(torch.float32).numpy(), rotation.contiguous().numpy(), written)
    return slices


def _interpolate_loop(volumes: np.ndarray, k: np.ndarray, rotation: np.ndarray, slices: np.ndarray) -> None:
    one = np.float32(1)
    origin = volumes.shape[0] // 2
    num_channels = volumes.shape[3]
    for image in range(slices.shape[0]):
        for point in range(k.shape[0]):
            x, y, z = _turned(k[point, 0], k[point, 1], rotation[image])
            mirrored = x < 0
            if mirrored:
                x, y, z = -x, -y, -z
            at_x = int(x)
            floor_y = np.floor(y)
            floor_z = np.floor(z)
            at_y = int(floor_y) + origin
            at_z = int(floor_z) + origin
            for channel in range(num_channels):
                slices[image, point, channel] = 0
            for above_z in range(2):
                near_z = z - floor_z if above_z else one - (z - floor_z)
                for above_y in range(2):
                    near_y = y - floor_y if above_y else one - (y - floor_y)
                    for above_x in range(2):
                        near_x = x - np.float32(at_x) if above_x else one - (x - np.float32(at_x))
                        share = near_x * near_y * near_z
                        for channel in range(num_channels):
                            slices[image, point, channel] += (
                                share * volumes[at_z + above_z, at_y + above_y, at_x + above_x, channel]
                            )
            if mirrored:
                for channel in range(1, num_channels, 2):
                    slices[image, point, channel] = -slices[image, point, channel]


def interpolate_with_torch(
    volumes: Complex[Tensor, "S S H C"], k: Int[Tensor, "P 2"], rotation: Float[Tensor, "B 3 3"]
) -> Complex[Tensor, "B P C"]:
    """Do what `interpolate` does with torch's operations alone, on any device."""
    where, mirrored = _points(k, rotation)
    flat = torch.view_as_real(volumes).flatten(-2).flatten(0, 2)
    slices = torch.zeros(*where.shape[:2], flat.shape[-1], device=flat.device)
    for index, share in _neighbours(where, volumes.shape):
        slices += share[..., None] * flat[index]
    slices = torch.view_as_complex(slices.unflatten(-1, (-1, 2)))
    return torch.where(mirrored[..., None], slices.conj(), slices)


def empty_moment_sums(
    box_size: int, num_volumes: int, device: torch.device | None = None, num_planes: int | None = None
) -> Float[Tensor, "planes S H K"]:
    """Zeros for `insert_moments` of C volumes: C real parts, C imaginary parts, C (C + 1) / 2 weights.

    With `num_planes`, for a slab of as many planes along z.
    """
    side = lattice_side(box_size)
    num_channels = 2 * num_volumes + num_volumes * (num_volumes + 1) // 2
    return torch.zeros(num_planes or side, side, side // 2 + 1, num_channels, device=device)


def insert_moments(
    sums: Float[Tensor, "planes S H K"],
    values: Complex[Tensor, "B P"],
    weights: Float[Tensor, "B P"],
    first: Float[Tensor, "B C"],
    second: Float[Tensor, "B Q"],
    k: Int[Tensor, "P 2"],
    rotation: Float[Tensor, "B 3 3"],
    first_plane: int = 0,
) -> None:
    """Add what the normal equations of several volumes need, at ``(kx, ky, 0) @ rotation`` with trilinear shares.

    Parameters
    ----------
    sums
        Or a slab of them: some planes along z.
    first, second
        The images' coefficients of the volumes, which multiply the values, and the products of two of them (the upper
        triangle, row by row), which multiply the weights.
    first_plane
        Of the slab.
    """
    if sums.device.type == "cpu":
        _insert_moments_compiled(
            sums.numpy(),
            values.contiguous().numpy(),
            weights.contiguous().numpy(),
            first.contiguous().numpy(),
            second.contiguous().numpy(),
            k.to(torch.float32).numpy(),
            rotation.contiguous().numpy(),
            first_plane,
        )
    else:
        insert_moments_with_torch(sums, values, weights, first, second, k, rotation, first_plane)


def _insert_moments_loop(
    sums: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    k: np.ndarray,
    rotation: np.ndarray,
    first_plane: int,
) -> None:
    one = np.float32(1)
    num_planes, side, half_side, num_channels = sums.shape
    origin = side // 2
    num_volumes = first.shape[1]
    flat = sums.reshape(-1)  # two neighbours along x lie side by side
    row = np.empty(num_channels, np.float32)
    for image in range(values.shape[0]):
        for point in range(k.shape[0]):
            x, y, z = _turned(k[point, 0], k[point, 1], rotation[image])
            real = values[image, point].real
            imag = values[image, point].imag
            weight = weights[image, point]
            if x < 0:
                x, y, z, imag = -x, -y, -z, -imag
            floor_z = np.floor(z)
            at_z = int(floor_z) + origin - first_plane
            if at_z < -1 or at_z >= num_planes:
                continue
            for volume in range(num_volumes):
                row[volume] = real * first[image, volume]
                row[num_volumes + volume] = imag * first[image, volume]
            for pair in range(second.shape[1]):
                row[2 * num_volumes + pair] = weight * second[image, pair]
            at_x = int(x)
            floor_y = np.floor(y)
            at_y = int(floor_y) + origin
            above_x = x - np.float32(at_x)
            for above_z in range(2):
                if at_z + above_z < 0 or at_z + above_z >= num_planes:
                    continue
                near_z = z - floor_z if above_z else one - (z - floor_z)
                for above_y in range(2):
                    near_y = y - floor_y if above_y else one - (y - floor_y)
                    upper_share = near_z * near_y * above_x
                    lower_share = near_z * near_y * (one - above_x)
                    start = (((at_z + above_z) * side + at_y + above_y) * half_side + at_x) * num_channels
                    lower = flat[start : start + num_channels]
                    upper = flat[start + num_channels : start + 2 * num_channels]
                    for channel in range(num_channels):
                        lower[channel] += lower_share * row[channel]
                        upper[channel] += upper_share * row[channel]


def insert_moments_with_torch(
    sums: Float[Tensor, "planes S H K"],
    values: Complex[Tensor, "B P"],
    weights: Float[Tensor, "B P"],
    first: Float[Tensor, "B C"],
    second: Float[Tensor, "B Q"],
    k: Int[Tensor, "P 2"],
    rotation: Float[Tensor, "B 3 3"],
    first_plane: int = 0,
) -> None:
    """Do what `insert_moments` does with torch's operations alone, on any device."""
    at_once = max(_MOST_NUMBERS // (values.shape[1] * sums.shape[-1]), 1)
    if len(values) > at_once:
        for start in range(0, len(values), at_once):
            rows = slice(start, start + at_once)
            insert_moments_with_torch(
                sums, values[rows], weights[rows], first[rows], second[rows], k, rotation[rows], first_plane
            )
        return
    where, mirrored = _points(k, rotation)
    imag = torch.where(mirrored, -values.imag, values.imag)
    rows = torch.cat(
        [
            values.real[..., None] * first[:, None],
            imag[..., None] * first[:, None],
            weights[..., None] * second[:, None],
        ],
        dim=-1,
    )
    flat = sums.view(-1, sums.shape[-1])
    _, side, half_side, _ = sums.shape
    for index, share in _neighbours(where, (side, side, half_side)):
        if len(sums) == side:  # all planes: nothing to sort out, which a GPU would have to be waited for
            flat.index_add_(0, index.flatten(), (share[..., None] * rows).flatten(0, 1))
            continue
        in_slab = index - first_plane * side * half_side
        inside = (in_slab >= 0) & (in_slab < len(flat))
        flat.index_add_(0, in_slab[inside], share[inside][:, None] * rows[inside])


def _points(
    k: Int[Tensor, "P 2"], rotation: Float[Tensor, "B 3 3"]
) -> tuple[Float[Tensor, "B P 3"], Bool[Tensor, "B P"]]:
    """Where the points of the slices lie, mirrored to k_x >= 0, and which were mirrored."""
    # No matrix product, which autocast would take to bfloat16.
    kx, ky = k.to(rotation.dtype)[:, :, None].unbind(1)
    where = kx * rotation[:, :1, :] + ky * rotation[:, 1:2, :]
    mirrored = where[..., 0] < 0
    return torch.where(mirrored[..., None], -where, where), mirrored


def _neighbours(
    where: Float[Tensor, "B P 3"], shape: Sequence[int]
) -> Iterator[tuple[Int[Tensor, "B P"], Float[Tensor, "B P"]]]:
    """Yield flat index and trilinear share of the eight lattice points around every point."""
    corner = where.floor()
    for offset in itertools.product((0.0, 1.0), repeat=3):
        neighbour = corner + torch.tensor(offset, device=where.device)
        share = (1 - (where - neighbour).abs()).prod(dim=-1)
        x, y, z = neighbour.to(torch.int64).unbind(-1)
        yield ((z + shape[0] // 2) * shape[1] + y + shape[1] // 2) * shape[2] + x, share


def complete_plane(sums: Float[Tensor, "S S H K"], num_volumes: int = 1) -> Float[Tensor, "S S K"]:
    """Plane k_x = 0 with its mirror image, which `insert` and `insert_moments` leave out."""
    sign = torch.ones(sums.shape[-1], dtype=sums.dtype, device=sums.device)
    sign[num_volumes : 2 * num_volumes] = -1  # the imaginary parts
    return sums[:, :, 0] + sums[:, :, 0].flip(0, 1) * sign


def complete(sums: Float[Tensor, "S S H K"]) -> Float[Tensor, "S S H K"]:
    """Put the whole plane k_x = 0 into sums of `insert`."""
    whole = sums.clone()
    whole[:, :, 0] = complete_plane(sums)
    return whole


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


def _compiled(loop: Callable[..., None]) -> Callable[..., None]:
    try:
        return numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # there is no place to keep the compiled code, so every process compiles it again
        return numba.njit(nogil=True)(loop)


_insert_compiled = _compiled(_insert_loop)
_interpolate_compiled = _compiled(_interpolate_loop)
_insert_moments_compiled = _compiled(_insert_moments_loop)
