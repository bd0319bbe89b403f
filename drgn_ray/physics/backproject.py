"""A consensus volume by direct Fourier insertion with CTF weights.

Each slice point spreads to its eight lattice neighbours with weight max(0, 1 - distance); numerator and weight sums
are regularised and divided as in cryoDRGN's ``backproject_voxel`` (section 2.11 of the method notes).
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from drgn_ray.physics.fourier import volume_from_hartley
from drgn_ray.physics.lattice import HalfDisc, hartley_from_half


class BackProjector:
    """Accumulates slices; `volume` divides the sums.

    Parameters
    ----------
    points
        The half-disc whose coefficients are inserted.
    """

    def __init__(self, points: HalfDisc) -> None:
        self.points = points
        self.side = points.box_size + 1
        self.numerator = torch.zeros(self.side**3)
        self.weight = torch.zeros(self.side**3)

    def insert(
        self, coefficients: Complex[Tensor, "B P"], ctf: Float[Tensor, "B P"], rotation: Float[Tensor, "B 3 3"]
    ) -> None:
        """Add centred images' coefficients, multiplied by their CTF, at ``(kx, ky, 0) @ rotation``."""
        values = hartley_from_half(coefficients * ctf)
        ctf_squared = torch.cat([ctf, ctf.flip(-1)], dim=-1) ** 2
        half = self.points.k.to(rotation.dtype) @ rotation[:, :2, :]  # (B, P, 3) in voxels from the origin
        where = torch.cat([half, -half.flip(1)], dim=1)
        corner = where.floor()
        for offset in itertools.product((0, 1), repeat=3):
            neighbour = corner + torch.tensor(offset, dtype=where.dtype)
            share = (1 - torch.linalg.vector_norm(where - neighbour, dim=-1)).clamp_min(0)
            index = (neighbour + self.side // 2).to(torch.int64)
            inside = ((index >= 0) & (index < self.side)).all(-1)
            flat = ((index[..., 2] * self.side + index[..., 1]) * self.side + index[..., 0])[inside]
            self.numerator.index_add_(0, flat, (share * values)[inside])
            self.weight.index_add_(0, flat, (share * ctf_squared)[inside])

    def volume(self, reg_weight: float = 1.0) -> Float[Tensor, "D D D"]:
        """Real-space volume (z, y, x)."""
        weight = torch.where(self.weight == 0, 1.0, self.weight)
        regularised = weight + reg_weight * weight.mean()
        regularised = regularised * weight.mean() / regularised.mean()
        hartley_volume = (self.numerator / regularised).reshape(self.side, self.side, self.side)
        return volume_from_hartley(hartley_volume[:-1, :-1, :-1])
