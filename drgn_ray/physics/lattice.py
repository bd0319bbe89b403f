"""The half of the Fourier disc that a real image is known by.

A real image has F(-k) = conj F(k), so half of the disc |k| <= radius, without DC, holds all of it.  The points are
those of the (D+1) x (D+1) lattice in row-major order, of which the first half is kept; reversing the list of the
full disc maps k to -k (cryoDRGN, section 2.1 of the method notes).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class HalfDisc:
    """Points k of the half-disc and where ``rfft2`` holds them.

    Attributes
    ----------
    box_size
        D, px.
    k
        Integer frequencies (kx, ky), cycles per box.
    """

    box_size: int
    k: Int[Tensor, "P 2"]

    @property
    def num_points(self) -> int:
        """P, half of the points of the disc."""
        return len(self.k)

    @property
    def freq(self) -> Float[Tensor, "P 2"]:
        """Spatial frequency (x, y), cycles/px; 0.5 is Nyquist."""
        return self.k.to(torch.float32) / self.box_size

    @property
    def radius(self) -> Float[Tensor, " P"]:
        """|k|, cycles per box."""
        return torch.linalg.vector_norm(self.k.to(torch.float32), dim=-1)

    @property
    def mirrored(self) -> Bool[Tensor, " P"]:
        """Points with kx < 0, which ``rfft2`` holds only as the conjugate of -k."""
        return self.k[:, 0] < 0

    @property
    def rfft_index(self) -> Int[Tensor, " P"]:
        """Flat index of k (or of -k where mirrored) into the D x (D/2+1) output of ``rfft2``."""
        kx, ky = torch.where(self.mirrored[:, None], -self.k, self.k).unbind(-1)
        return (ky % self.box_size) * (self.box_size // 2 + 1) + kx

    @property
    def centring_sign(self) -> Float[Tensor, " P"]:
        """(-1)^(kx+ky): the phase that moves the origin from pixel 0 to pixel D/2."""
        return 1.0 - 2.0 * (self.k.sum(-1) % 2)


def half_disc(box_size: int, radius: int | None = None) -> HalfDisc:
    """List the half-disc 0 < |k| <= radius (default D/2, which touches Nyquist) of a box of even size D."""
    assert box_size % 2 == 0, box_size
    half = box_size // 2
    radius = half if radius is None else radius
    assert 0 < radius <= half, (radius, box_size)
    axis = torch.arange(-half, half + 1)
    ky, kx = torch.meshgrid(axis, axis, indexing="ij")
    disc = torch.stack([kx, ky], -1)[(kx**2 + ky**2 <= radius**2) & ((kx != 0) | (ky != 0))]
    return HalfDisc(box_size, disc[: len(disc) // 2])


def hartley_from_half(coefficients: Complex[Tensor, "B P"]) -> Float[Tensor, "B 2*P"]:
    """Hartley values H = Re F - Im F of the whole disc, in the lattice's row-major order.

    H(-k) = Re F + Im F, and reversing the list maps k to -k.
    """
    real, imag = coefficients.real, coefficients.imag
    return torch.cat([real - imag, (real + imag).flip(-1)], dim=-1)


def half_from_hartley(hartley: Float[Tensor, "B N"]) -> Complex[Tensor, "B N//2"]:
    """Undo `hartley_from_half`."""
    forward, backward = hartley.chunk(2, dim=-1)
    backward = backward.flip(-1)
    return torch.complex((forward + backward) / 2, (backward - forward) / 2)
