"""A subspace whose volumes lie on a curved surface over the latents of a linear one.

``V(z) = V_0 + sum_t c_t(z) V_t`` with Hermite polynomials c_t of z, which are uncorrelated under N(0, 1) (Wiener's
polynomial chaos).  A molecule that moves leaves the straight line that principal components draw; the latents still
tell where on its path it is.

Shape letters: B images, D box, M latent dimensions, T terms, C = T + 1 volumes.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drgn_ray.models.em import LEAST_CONTRAST, Posterior, Subspace
from drgn_ray.models.linear import LinearSubspace

HIGHEST_DEGREE = 4
BENDING_TERMS = 6  # beside the linear ones
NUM_SAMPLES = 8  # of an image's latent, whose moments the polynomials' are taken from
_DEGREE_COST = 0.7  # in units of ln(power): how much weaker a component may be to count for one degree less


class CurvedSubspace(LinearSubspace):
    """The latents of a linear subspace, and volumes that are polynomials of them.

    Attributes
    ----------
    degrees
        Of every term in every dimension of z; the constant is not among them.
    curved_volumes
        V_0 and the volumes of the terms.
    """

    FOUND = (*LinearSubspace.FOUND, "degrees", "curved_volumes")
    degrees: Int[Tensor, "T M"]
    curved_volumes: Float[Tensor, "C D D D"]

    def start_from(self, subspace: Subspace, radius: int) -> None:
        """See `Model.start_from`; straight, until `bend` is called."""
        super().start_from(subspace, radius)
        self.bend(torch.eye(subspace.num_components, dtype=torch.int64), subspace.volumes)

    def bend(self, degrees: Int[Tensor, "T M"], volumes: Float[Tensor, "C D D D"]) -> None:
        """Take the terms, and the volumes that were fitted to them."""
        self._hold(degrees=degrees, curved_volumes=volumes.float())

    def describe(self) -> str:
        """See `Model.describe`."""
        if not self.zdim:
            return super().describe()
        bending = len(self.degrees) - self.zdim
        return f"{super().describe()}, volumes {f'bent by {bending} terms' if bending else 'straight'}"

    @property
    def decoded(self) -> Float[Tensor, "C D D D"]:
        """See `LinearSubspace.decoded`."""
        return self.curved_volumes

    def coefficients(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B C"]:
        """See `LinearSubspace.coefficients`."""
        return hermite(z, self.degrees)


def bending_terms(volumes: Float[Tensor, "M D D D"]) -> Int[Tensor, "T M"]:
    """Choose the degrees of the terms: each dimension's own, and products of those along which most happens."""
    num_dims = len(volumes)
    power = volumes.flatten(1).square().sum(dim=1)
    weakness = ((power[0] / power).log() + _DEGREE_COST).tolist()
    products = [
        chosen
        for degree in range(2, HIGHEST_DEGREE + 1)
        for chosen in combinations_with_replacement(range(num_dims), degree)
    ]
    products.sort(key=lambda chosen: sum(weakness[dim] for dim in chosen))
    terms = [(dim,) for dim in range(num_dims)] + products[:BENDING_TERMS]
    return torch.tensor([[chosen.count(dim) for dim in range(num_dims)] for chosen in terms])


def hermite(z: Float[Tensor, "*B M"], degrees: Int[Tensor, "T M"]) -> Float[Tensor, "*B C"]:
    """One, and the products of Hermite polynomials of z, of mean 0 and variance 1 for z ~ N(0, 1)."""
    powers = [torch.ones_like(z), z]
    for degree in range(1, HIGHEST_DEGREE):  # He_(n+1) = z He_n - n He_(n-1), over the root of (n+1)!
        powers.append((z * powers[-1] - degree**0.5 * powers[-2]) / (degree + 1) ** 0.5)
    of_degree = torch.stack(powers, dim=-1)  # (*B, M, degree)
    dims = torch.arange(z.shape[-1], device=z.device)
    columns = [of_degree[..., dims, term].prod(dim=-1) for term in degrees]
    return torch.stack([z.new_ones(z.shape[:-1]), *columns], dim=-1)


def bent(found: Posterior, degrees: Int[Tensor, "T M"], generator: torch.Generator) -> Posterior:
    """Moments of (a, a c_1(z), ...) under the posterior of (a, a z), from samples."""
    factor = torch.linalg.cholesky(found.covariance)
    noise = torch.randn(NUM_SAMPLES, *found.mean.shape, generator=generator, device=found.mean.device)
    drawn = found.mean + torch.einsum("bij,sbj->sbi", factor, noise)
    contrast = drawn[..., :1]
    c = contrast * hermite(drawn[..., 1:] / contrast.clamp_min(LEAST_CONTRAST), degrees)
    mean = c.mean(dim=0)
    left = c - mean
    return Posterior(mean, torch.einsum("sbi,sbj->bij", left, left) / NUM_SAMPLES, found.log_likelihood)
