"""Consensus volumes by direct Fourier insertion: sums of CTF-weighted slices, divided by sums of squared CTFs.

Fourier slice theorem; weighting and symmetry as in RELION (Scheres 2012), or as cryoDRGN's ``backproject_voxel``
(section 2.11 of the method notes).
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from drgn_ray.physics.fourier import at_radii, in_solvent, volume_from_hartley
from drgn_ray.physics.gridding import Kernel, complete, empty_sums, insert, to_hartley_lattice
from drgn_ray.physics.lattice import HalfDisc
from drgn_ray.physics.volume_lattice import envelope, lattice_shells

LOWEST_WEIGHT = 1e-3  # of a shell's mean weight: a voxel with less is divided by this (RELION's choice)
LOWEST_MEAN = 1e-4  # of squared CTFs, where they start from nothing
LEAST_FSC = 0.02  # that a shell is weighed by
LOWEST_FSC = 0.143  # of a shell as it is divided; see `wiener_volume`


class BackProjector:
    """Accumulates slices; the functions below make volumes of the sums.

    Parameters
    ----------
    points
        The half-disc whose coefficients are inserted; the sums lie on its device.
    kernel
        See `gridding.insert`.
    symmetry
        Rotations of a point group (`drgn_ray.physics.symmetry`); every slice is inserted under each of them.
    mean_squared_ctf
        Of all images at the radii 0 to D/2; None: 1.  With the trilinear kernel points are weighed so that it, and the
        density of slices, pull no lattice point inwards or outwards.

    Attributes
    ----------
    sums
        Real part, imaginary part and weight, see `drgn_ray.physics.gridding`.
    """

    def __init__(
        self,
        points: HalfDisc,
        *,
        kernel: Kernel = "trilinear",
        symmetry: Float[Tensor, "G 3 3"] | None = None,
        mean_squared_ctf: Float[Tensor, " R"] | None = None,
    ) -> None:
        self.points = points
        self.kernel: Kernel = kernel
        self.symmetry = torch.eye(3)[None] if symmetry is None else symmetry
        self.sums = empty_sums(points.box_size, points.k.device)
        self.balance = balance(torch.linalg.vector_norm(points.k.float(), dim=-1), mean_squared_ctf)

    def insert(
        self,
        coefficients: Complex[Tensor, "B P"],
        ctf: Float[Tensor, "B P"],
        rotation: Float[Tensor, "B 3 3"],
        weight: Float[Tensor, " B"] | None = None,
    ) -> None:
        """Add centred images' coefficients, multiplied by their CTF, at ``(kx, ky, 0) @ rotation``.

        Parameters
        ----------
        weight
            How much each image counts; None: 1.
        """
        weighted = ctf if weight is None else ctf * weight[:, None]
        if self.kernel == "trilinear":
            weighted = weighted * self.balance
        values, weights = coefficients * weighted, ctf * weighted
        for operation in self.symmetry:
            turned = rotation @ operation.to(rotation)
            insert(self.sums, values, weights, self.points.k, turned, self.kernel)


def balance(radius: Float[Tensor, " P"], mean_squared_ctf: Float[Tensor, " R"] | None) -> Float[Tensor, " P"]:
    """Weight of points at `radius` (cycles a box) that makes the sums' density even along the radius.

    Slices through the origin are as dense as 1/|k|, and at low frequency squared CTFs rise steeply.  A lattice point
    would get the mean of what is on the side where there is more.  Beyond its first maximum the CTF is left as it is:
    between the rings of its zeros there is noise.

    Parameters
    ----------
    mean_squared_ctf
        Of all images at the radii 0 to R - 1; None: 1.
    """
    if mean_squared_ctf is None:
        return radius
    rising = mean_squared_ctf.cummax(dim=0).values.clamp_min(LOWEST_MEAN)
    return radius / at_radii(rising, radius)


def unfiltered_volume(sums: Float[Tensor, "S S H 3"]) -> Float[Tensor, "D D D"]:
    """Volume (z, y, x) of sums with the trilinear kernel, divided by their weights: what half maps are made as.

    Weights below a thousandth of their shell's mean are raised to it.
    """
    real, imag, weight = complete(sums).unbind(-1)
    mean = _shell_means(weight)
    divisor = torch.maximum(weight, LOWEST_WEIGHT * mean)
    return _finish(real, imag, torch.where(divisor > 0, divisor, 1.0))


def wiener_volume(sums: Float[Tensor, "S S H 3"], fsc: Float[Tensor, " shells"]) -> Float[Tensor, "D D D"]:
    """Volume (z, y, x) of sums with the trilinear kernel, each shell weighed by its signal-to-noise ratio.

    The posterior mean ``sum / (weight + mean weight of the shell / SNR)`` (Scheres 2012) with SNR = 2 FSC / (1 - FSC)
    of the two halves together; shells without correlation keep 4% of their amplitude, so that they can be compared.

    Parameters
    ----------
    fsc
        FSC of the half maps at shells 0 to D/2.
    """
    real, imag, weight = complete(sums).unbind(-1)
    within = fsc.to(weight).clamp(LOWEST_FSC, 1 - 1e-4)
    noise_to_signal = ((1 - within) / (2 * within))[lattice_shells(weight).clamp_max(len(within) - 1)]
    divisor = weight + _shell_means(weight) * noise_to_signal
    volume = _finish(real, imag, torch.where(divisor > 0, divisor, 1.0))
    # What is beyond the resolution is taken down last: before, its neighbours would leak into it and outweigh it.
    least = fsc.to(weight).clamp_min(LEAST_FSC)
    return multiply_shells(volume, signal_share(least) / signal_share(least.clamp_min(LOWEST_FSC)))


def signal_share(fsc: Float[Tensor, " shells"]) -> Float[Tensor, " shells"]:
    """Share of signal in the sum of both halves, ``SNR / (SNR + 1) = 2 FSC / (1 + FSC)``."""
    return 2 * fsc / (1 + fsc)


def multiply_shells(volume: Float[Tensor, "D D D"], factor: Float[Tensor, " shells"]) -> Float[Tensor, "D D D"]:
    """Multiply the shells round(|k|) of 0 to D/2; those beyond are 0."""
    size = len(volume)
    axis, half = torch.fft.fftfreq(size) * size, torch.arange(size // 2 + 1)
    radius = torch.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + half[None, None, :] ** 2)
    shell = radius.round().to(torch.int64).clamp_max(len(factor))
    factors = torch.cat([factor.cpu(), torch.zeros(1, dtype=factor.dtype)])[shell].to(volume.device)
    return torch.fft.irfftn(torch.fft.rfftn(volume) * factors, s=volume.shape, dim=(0, 1, 2))


def cryodrgn_volume(sums: Float[Tensor, "S S H 3"], reg_weight: float = 1.0) -> Float[Tensor, "D D D"]:
    """Volume (z, y, x) divided as ``cryodrgn backproject_voxel`` divides: weights plus their mean, empty ones 1."""
    real, imag, weight = complete(sums).unbind(-1)
    weight = to_hartley_lattice(weight)
    weight = torch.where(weight == 0, 1.0, weight)
    regularised = weight + reg_weight * weight.mean()
    regularised = regularised * weight.mean() / regularised.mean()
    return volume_from_hartley((to_hartley_lattice(real, imag) / regularised)[:-1, :-1, :-1])


def _finish(
    real: Float[Tensor, "S S H"], imag: Float[Tensor, "S S H"], divisor: Float[Tensor, "S S H"]
) -> Float[Tensor, "D D D"]:
    """Divide, transform, undo what the trilinear kernel does in real space, and mask the corners; solvent is 0.

    Shells beyond D/2 hold nothing but what the kernel spilt there, and are left out.
    """
    size = real.shape[0] - 3
    inside = (lattice_shells(divisor) <= size // 2) / divisor
    hartley = to_hartley_lattice(real * inside, imag * inside)
    for axis in range(3):  # a volume has one coefficient for both ends: of -D/2 alone a symmetric one would not be so
        hartley.select(axis, 0).add_(hartley.select(axis, -1)).div_(2)
    volume = volume_from_hartley(hartley[:-1, :-1, :-1])
    return in_solvent(volume / envelope(size, volume.device).to(volume))


def _shell_means(weight: Float[Tensor, "S S H"]) -> Float[Tensor, "S S H"]:
    """Mean weight of every point's shell, the mirror images counted too."""
    shells = lattice_shells(weight).flatten()
    multiplicity = torch.full_like(weight, 2.0)
    multiplicity[:, :, 0] = 1.0
    count = torch.bincount(shells, multiplicity.flatten())
    total = torch.bincount(shells, (multiplicity * weight).flatten())
    return (total / count)[shells].reshape(weight.shape).to(weight.dtype)
