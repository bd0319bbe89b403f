"""An encoder that starts as the posterior of a linear subspace, and learns what bends it.

Shape letters: B images, P half-disc points, M components of the subspace, Z zdim.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.mlp import ResidualMLP
from drgn_ray.physics.observation import Observation

WIDTH = 128


class PosteriorEncoder(nn.Module):
    """The first Z dimensions of the linear posterior, and what a small network makes of all of them.

    The posterior knows each image's CTF and noise, so what is learned holds for images that were not seen; an encoder
    of pixels learns the images of a small set by heart.

    Parameters
    ----------
    linear
        The subspace, which stays as it is.
    num_basis
        The most components the subspace has.
    zdim
        Dimension of the latent space.
    """

    def __init__(self, *, linear: LinearSubspace, num_basis: int, zdim: int) -> None:
        super().__init__()
        self.linear, self.num_basis, self.zdim = linear, num_basis, zdim
        self.bend = ResidualMLP(2 * num_basis, 1, WIDTH, 2 * zdim)
        nn.init.zeros_(self.bend.last.weight)
        nn.init.zeros_(self.bend.last.bias)

    def forward(self, seen: Observation) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return (z_mu, z_logvar)."""
        with torch.autocast(seen.ctf.device.type, enabled=False):
            z_mu, z_logvar = (_padded(each, self.num_basis) for each in self.linear.infer(seen))
            mu_bent, logvar_bent = self.bend(torch.cat([z_mu, z_logvar], dim=1)).chunk(2, dim=1)
        return z_mu[:, : self.zdim] + mu_bent, z_logvar[:, : self.zdim] + logvar_bent


def _padded(values: Float[Tensor, "B M"], count: int) -> Float[Tensor, "B N"]:
    """Dimensions that the subspace has not say nothing: mean 0, log-variance 0."""
    return nn.functional.pad(values, (0, count - values.shape[1]))
