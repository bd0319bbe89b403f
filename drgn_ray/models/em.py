"""Expectation and maximisation for a linear subspace of volumes: probabilistic PCA seen through projections.

``V(k; z) = V_0(k) + sum_m z_m U_m(k)`` with z ~ N(0, 1) in each dimension, seen with a contrast a ~ N(1,
contrast_variance) that multiplies the image.  ``a V_0 + sum_m (a z_m) U_m`` is linear in c = (a, a z_1, ..., a z_M), so
contrast and latent have one Gaussian posterior.

Tipping and Bishop 1999 (probabilistic PCA and its EM); Tagare et al. 2015 (projections of a linear subspace); MacKay
1992 (prior powers from the evidence).

Shape letters: B images, P half-disc points, C = M + 1 volumes, Q = C (C + 1) / 2 pairs of them, R shells 0 to R - 1,
D box, S and H sides of the half-space lattice (`drgn_ray.physics.gridding`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from drgn_ray.physics.fourier import in_solvent
from drgn_ray.physics.gridding import complete_plane, interpolate
from drgn_ray.physics.observation import Observation
from drgn_ray.physics.volume_lattice import envelope, lattice_of, lattice_shells, volumes_of

LEAST_POWER = 0.1  # of the consensus's in the shell: a component with less is not given up before it is found
LEAST_WEIGHT = 1e-3  # of a shell's mean: voxels with less say nothing about the shell's power
POWER_ROUNDS = 6
POWER_SAMPLE = 2_000  # lattice points of a shell, that tell its powers well enough
# A lattice point gets a share s of each image's noise, so its weight grows as the sum of s, but the variance of its
# noise as the sum of s²: by this less, the mean of s² over the mean of s for points anywhere between lattice points.
NOISE_SHARE = (2 / 3) ** 3
CONTRAST_VARIANCES = (1e-4, 1.0)
LEAST_CONTRAST = 0.5  # that is divided by


@dataclass(frozen=True)
class Subspace:
    """Volumes and how images see them.

    Attributes
    ----------
    volumes
        V_0, U_1, ..., U_M (z, y, x), the U_m orthogonal and in order of their power.
    noise
        Mean |noise|² of a coefficient at the shells.
    contrast_variance
        Of the contrast around 1.
    """

    volumes: Float[Tensor, "C D D D"]
    noise: Float[Tensor, " R"]
    contrast_variance: float

    @property
    def num_components(self) -> int:
        """M."""
        return len(self.volumes) - 1

    def leading(self, num_components: int) -> Subspace:
        """Keep V_0 and the first components."""
        return Subspace(self.volumes[: num_components + 1], self.noise, self.contrast_variance)


class Evidence(NamedTuple):
    """What images say of their c: ``-log p(image | c) = (energy - 2 inner·c + c·gram c) / 2`` and a constant."""

    gram: Float[Tensor, "B C C"]
    inner: Float[Tensor, "B C"]
    energy: Float[Tensor, " B"]

    def leading(self, num_volumes: int) -> Evidence:
        """Of the first volumes alone."""
        return Evidence(self.gram[:, :num_volumes, :num_volumes], self.inner[:, :num_volumes], self.energy)

    def pooled(self, particle: Int[Tensor, " B"]) -> tuple[Evidence, Int[Tensor, " B"]]:
        """Add up what the images of each particle (tilts) say; and which of the particles each image is of."""
        found, index = particle.unique(return_inverse=True)
        if len(found) == len(particle):
            return self, torch.arange(len(particle), device=particle.device)
        sums = (each.new_zeros(len(found), *each.shape[1:]).index_add_(0, index, each) for each in self)
        return Evidence(*sums), index

    def log_likelihood(self, c: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
        """Of the images, given their c."""
        squared = (c * (self.gram @ c[..., None])[..., 0]).sum(dim=-1)
        return -(self.energy - 2 * (self.inner * c).sum(dim=-1) + squared) / 2


class Posterior(NamedTuple):
    """Of c; and the log-likelihood of the images with c integrated out, up to what the noise alone makes of it."""

    mean: Float[Tensor, "B C"]
    covariance: Float[Tensor, "B C C"]
    log_likelihood: Float[Tensor, " B"]

    def of(self, index: Int[Tensor, " N"]) -> Posterior:
        """Posteriors of some of the images or particles."""
        return Posterior(*(each[index] for each in self))


def shells_of(k: Int[Tensor, "P 2"]) -> Int[Tensor, " P"]:
    """Shell round(|k|) of points."""
    return torch.linalg.vector_norm(k.double(), dim=-1).round().to(torch.int64)


def posterior(images: Evidence, contrast_variance: float) -> Posterior:
    """Combine what images say with the prior of contrast and latent."""
    num_volumes = images.inner.shape[1]
    prior = torch.ones(num_volumes, dtype=images.gram.dtype, device=images.gram.device)
    prior[0] = 1 / contrast_variance
    expected = torch.zeros_like(prior)
    expected[0] = 1.0
    factor = torch.linalg.cholesky(images.gram + torch.diag(prior))
    covariance = torch.cholesky_inverse(factor)
    right = images.inner + prior * expected
    mean = torch.einsum("bij,bj->bi", covariance, right)
    log_determinant = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(dim=-1) - prior.log().sum()
    misfit = images.energy + prior[0] - (right * mean).sum(dim=-1)
    return Posterior(mean, covariance, -(misfit + log_determinant) / 2)


class Viewer:
    """A subspace as images see it at some points.

    Parameters
    ----------
    subspace, k
        The subspace and the points.
    """

    def __init__(self, subspace: Subspace, k: Int[Tensor, "P 2"]) -> None:
        self.k, self.contrast_variance = k, subspace.contrast_variance
        self.noise = subspace.noise.to(k.device, torch.float32)[shells_of(k)]
        self.lattice = lattice_of(subspace.volumes.to(k.device)).contiguous()

    def slices(self, seen: Observation) -> Complex[Tensor, "B P C"]:
        """Slices of every volume with the images' CTFs."""
        return interpolate(self.lattice, self.k, seen.rotation) * seen.ctf[..., None]

    def evidence(
        self, slices: Complex[Tensor, "B P C"], seen: Observation, points: Bool[Tensor, " P"] | None = None
    ) -> Evidence:
        """Compare images with `slices`, at all points or at some."""
        scale = (2 / self.noise).sqrt()
        if points is not None:
            scale = scale * points
        of_volumes = torch.view_as_real(slices * scale[:, None]).flatten(2)  # (B, P, C and real or imaginary)
        of_image = torch.view_as_real(seen.coefficients * scale)
        # Real with real and imaginary with imaginary part; a layout for which all is needed would have to be copied.
        gram = torch.einsum("bcrdr->bcd", (of_volumes.mT @ of_volumes).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)))
        inner = torch.einsum("bcrr->bc", (of_volumes.mT @ of_image).unflatten(1, (-1, 2)))
        return Evidence(gram, inner, (of_image**2).sum(dim=(1, 2)))

    def posterior(self, seen: Observation, particle: Int[Tensor, " B"] | None = None) -> Posterior:
        """Infer contrast and latent of images, those of the same particle together."""
        told = self.evidence(self.slices(seen), seen)
        if particle is None:
            return posterior(told, self.contrast_variance)
        pooled, index = told.pooled(particle)
        return posterior(pooled, self.contrast_variance).of(index)


def search_box(box_size: int, radius: int) -> int:
    """Box whose lattice has room for |k| <= radius."""
    return min(2 * (radius + 2), box_size)


def residual_power(
    slices: Complex[Tensor, "B P C"], coefficients: Complex[Tensor, "B P"], found: Posterior
) -> Float[Tensor, " P"]:
    """Sum over images of the expected |coefficient - a V(z)|² at each point."""
    predicted = torch.einsum("bpc,bc->bp", slices, found.mean.to(slices.dtype))
    spread = (slices.conj() * (slices @ found.covariance.to(slices.dtype))).sum(dim=-1).real
    return ((coefficients - predicted).abs() ** 2 + spread).sum(dim=0)


def pairs(matrices: Float[Tensor, "B C C"]) -> Float[Tensor, "B Q"]:
    """Upper triangles, row by row."""
    row, column = torch.triu_indices(*matrices.shape[-2:])
    return matrices[..., row, column]


def symmetric(upper: Float[Tensor, "B Q"], num_volumes: int) -> Float[Tensor, "B C C"]:
    """Undo `pairs`."""
    row, column = torch.triu_indices(num_volumes, num_volumes)
    full = upper.new_empty(*upper.shape[:-1], num_volumes, num_volumes)
    full[..., row, column] = upper
    full[..., column, row] = upper
    return full


def maximise(
    sums: Float[Tensor, "S S H K"], per_noise: Float[Tensor, " R"], num_volumes: int, least_power: float = LEAST_POWER
) -> Float[Tensor, "C D D D"]:
    """Find the volumes that explain the sums of `gridding.insert_moments` best, under a Gaussian prior of each shell.

    Parameters
    ----------
    sums
        As they were inserted: the plane k_x = 0 without its mirror image.
    per_noise
        What to multiply the sums by at shells 0 to R - 1, so that they are in units of the noise; shells beyond are
        left out.
    least_power
        Of the components, as a share of the consensus's in the same shell.
    """
    shells, num_shells = lattice_shells(sums), len(per_noise)
    whole_plane = complete_plane(sums, num_volumes)
    lattice = torch.zeros(*shells.shape, num_volumes, 2, device=sums.device)
    for shell in range(1, num_shells):  # of which each has a prior of its own
        where = torch.nonzero(shells == shell, as_tuple=True)
        rows, in_plane = sums[where], where[2] == 0
        rows[in_plane] = whole_plane[where[0][in_plane], where[1][in_plane]]
        rows = rows.double() * (float(per_noise[shell]) / NOISE_SHARE)
        times = torch.where(where[2] > 0, 2.0, 1.0)  # points with k_x > 0 stand for their mirror images too
        lattice[where] = _maximise_shell(rows, times.double(), num_volumes, least_power).float()
    # One volume after the other, which bounds what the transforms take beside the sums.
    volumes = torch.cat([volumes_of(each) for each in torch.view_as_complex(lattice).split(1, dim=-1)])
    size = volumes.shape[-1]
    # The envelope is that of the sums, and once more the one that `volumes_of` multiplies by.
    return in_solvent(volumes / envelope(size, volumes.device) ** 2)


def _maximise_shell(
    rows: Float[Tensor, "N K"], times: Float[Tensor, " N"], num_volumes: int, least_power: float
) -> Float[Tensor, "N C 2"]:
    data = torch.stack([rows[:, :num_volumes], rows[:, num_volumes : 2 * num_volumes]], dim=-1)
    weight = symmetric(rows[:, 2 * num_volumes :], num_volumes)
    some = slice(None, None, -(-len(rows) // POWER_SAMPLE))
    power = _powers(data[some], weight[some], times[some], least_power)
    return torch.linalg.solve(weight + torch.diag(1 / power), data)


def _powers(
    data: Float[Tensor, "N C 2"], weight: Float[Tensor, "N C C"], times: Float[Tensor, " N"], least_power: float
) -> Float[Tensor, " C"]:
    """Mean |V|² of every volume, as told by lattice points of a shell."""
    of_consensus = weight[:, 0, 0]
    counted = (times * (of_consensus > LEAST_WEIGHT * (of_consensus * times).sum() / times.sum()))[:, None]
    power = 1 / (1e-6 * weight.diagonal(dim1=1, dim2=2).mean(dim=0)).clamp_min(1e-30)
    for _ in range(POWER_ROUNDS):
        prior = 1 / power
        inverse = torch.linalg.inv(weight + torch.diag(prior))
        values = inverse @ data
        told = 1 - inverse.diagonal(dim1=1, dim2=2) * prior  # by the data, the rest by the prior
        power = ((values**2).sum(dim=-1) * counted).sum(dim=0) / (told * counted).sum(dim=0).clamp_min(1e-9)
        power[1:] = torch.maximum(power[1:], least_power * power[0])
        power = power.clamp_min(1e-30)
    return power


def whiten(
    volumes: Float[Tensor, "C D D D"], first: Float[Tensor, " C"], second: Float[Tensor, "C C"]
) -> tuple[Float[Tensor, "C D D D"], float]:
    """Describe the same images by contrasts of mean 1 and latents of mean 0 and covariance 1, along orthogonal volumes.

    Parameters
    ----------
    first, second
        Mean of c and of its products over the images, as the volumes were fitted to.

    Returns
    -------
    The volumes, and the variance of the contrast.
    """
    contrast, of_both = second[0, 0], second[0, 1:] / second[0, 0]  # a z is of_both * a and what is left
    spread = second[1:, 1:] - contrast * torch.outer(of_both, of_both)
    consensus = volumes[0] + torch.tensordot(of_both.to(volumes), volumes[1:], dims=1)
    factor = torch.linalg.cholesky(spread).to(volumes)
    components = torch.tensordot(factor.T, volumes[1:], dims=1)
    flat = components.flatten(1).double()
    _, axes = torch.linalg.eigh(flat @ flat.T)
    components = torch.tensordot(axes.flip(1).T.to(volumes), components, dims=1)
    variance = float((contrast / first[0] ** 2 - 1).clamp(*CONTRAST_VARIANCES))
    return torch.cat([(consensus * first[0])[None], components]), variance
