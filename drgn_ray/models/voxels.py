"""Slices of combinations of volumes, differentiable by the kernels of `drgn_ray.physics.gridding`.

Shape letters: B images, P half-disc points, C volumes, S and H points of the lattice.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from drgn_ray.physics.gridding import insert_moments, interpolate


def combined_slices(
    lattice: Complex[Tensor, "S S H C"],
    coefficients: Float[Tensor, "B C"],
    k: Int[Tensor, "P 2"],
    rotation: Float[Tensor, "B 3 3"],
) -> Complex[Tensor, "B P"]:
    """Slices ``(kx, ky, 0) @ rotation`` of the sum of the lattice's volumes times each image's coefficients.

    Volumes are real, so in the plane k_x = 0 a point and its mirror image are one unknown.  The gradient there is that
    of their mean: a lattice that is Hermitian in the plane stays so under an optimiser that treats all numbers alike.
    """
    return _CombinedSlices.apply(lattice, coefficients, k, rotation)


class _CombinedSlices(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lattice: Tensor, coefficients: Tensor, k: Tensor, rotation: Tensor) -> Tensor:
        slices = interpolate(lattice, k, rotation)
        ctx.save_for_backward(slices, coefficients, k, rotation)
        ctx.shape = lattice.shape
        return (slices @ coefficients.to(slices.dtype)[..., None])[..., 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        slices, coefficients, k, rotation = ctx.saved_tensors
        gradient = gradient.resolve_conj()
        of_coefficients = (gradient[:, None] @ slices.conj())[:, 0].real
        *sides, num_volumes = ctx.shape
        sums = coefficients.new_zeros(*sides, 2 * num_volumes)
        weights = torch.zeros_like(gradient.real)  # which no column takes
        insert_moments(sums, gradient, weights, coefficients, coefficients[:, :0], k, rotation)
        of_lattice = torch.complex(*sums.chunk(2, dim=-1))
        plane = of_lattice[:, :, 0]
        of_lattice[:, :, 0] = (plane + plane.flip(0, 1).conj()) / 2
        return of_lattice, of_coefficients, None, None
