"""Encoders: from what is seen of an image to the posterior of its latent.

Shape letters: B images, P half-disc points, M components of a linear subspace, N the most of them, Z zdim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drgn_ray.config import ModelConfig
from drgn_ray.models.em import Subspace
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.mlp import ResidualMLP
from drgn_ray.physics.lattice import hartley_from_half
from drgn_ray.physics.observation import Observation, Observe

WIDTH = 128  # of the network that bends a linear posterior


class Encoder(nn.Module, ABC):
    """Amortised inference.

    Attributes
    ----------
    takes_window
        Whether the images may be windowed.
    """

    takes_window: bool

    @classmethod
    @abstractmethod
    def of(cls, model: ModelConfig, observe: Observe) -> Encoder:
        """Make one as the settings say."""

    @abstractmethod
    def forward(self, seen: Observation) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return (z_mu, z_logvar)."""

    @property
    @abstractmethod
    def usual_beta(self) -> float:
        """Weight of the KL divergence where none is given."""

    def start_from(self, subspace: Subspace, radius: int) -> None:
        """See `Model.start_from`; a network of the image starts from nothing."""

    def late_parameters(self) -> list[nn.Parameter]:
        """See `Model.late_parameters`."""
        return []


class ResidualEncoder(Encoder):
    """Phase-flipped Hartley values of the disc to the mean and log-variance of q(z | image), as cryoDRGN's."""

    takes_window = True

    def __init__(self, *, num_points: int, zdim: int, enc_dim: int, enc_layers: int) -> None:
        super().__init__()
        self.zdim = zdim
        self.mlp = ResidualMLP(2 * num_points, enc_layers, enc_dim, out_features=2 * zdim)

    @classmethod
    def of(cls, model: ModelConfig, observe: Observe) -> Encoder:
        """See `Encoder.of`."""
        num_points = observe(window=model.window).num_points
        return cls(num_points=num_points, zdim=model.zdim, enc_dim=model.enc_dim, enc_layers=model.enc_layers)

    def forward(self, seen: Observation) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return (z_mu, z_logvar).

        Always in float32: the encoder is a thousandth of the work, and bfloat16 costs its gradients two digits.
        """
        flipped = hartley_from_half(seen.coefficients * torch.sign(seen.ctf))
        with torch.autocast(flipped.device.type, enabled=False):
            z_mu, z_logvar = self.mlp(flipped).chunk(2, dim=-1)
        return z_mu, z_logvar

    @property
    def usual_beta(self) -> float:
        """1/zdim, cryoDRGN's default."""
        return 1 / self.zdim


class PosteriorEncoder(Encoder):
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

    takes_window = False

    def __init__(self, *, linear: LinearSubspace, num_basis: int, zdim: int) -> None:
        super().__init__()
        self.linear, self.num_basis, self.zdim = linear, num_basis, zdim
        self.bend = ResidualMLP(2 * num_basis, 1, WIDTH, 2 * zdim)
        nn.init.zeros_(self.bend.last.weight)
        nn.init.zeros_(self.bend.last.bias)

    @classmethod
    def of(cls, model: ModelConfig, observe: Observe) -> Encoder:
        """See `Encoder.of`."""
        linear = LinearSubspace(observe=partial(observe, window=False))
        return cls(linear=linear, num_basis=max(model.num_basis, model.zdim), zdim=model.zdim)

    @property
    def usual_beta(self) -> float:
        """Twice the noise's power, which makes the loss the negative ELBO up to a factor."""
        return 2 * float(self.linear.noise[1:].mean())

    def start_from(self, subspace: Subspace, radius: int) -> None:
        """See `Model.start_from`."""
        self.linear.start_from(subspace, radius)

    def late_parameters(self) -> list[nn.Parameter]:
        """See `Model.late_parameters`."""
        return list(self.bend.parameters())

    def forward(self, seen: Observation) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return (z_mu, z_logvar)."""
        with torch.autocast(seen.ctf.device.type, enabled=False):
            z_mu, z_logvar = (_padded(each, self.num_basis) for each in self.linear.infer(seen))
            mu_bent, logvar_bent = self.bend(torch.cat([z_mu, z_logvar], dim=1)).chunk(2, dim=1)
        return z_mu[:, : self.zdim] + mu_bent, z_logvar[:, : self.zdim] + logvar_bent


def _padded(values: Float[Tensor, "B M"], count: int) -> Float[Tensor, "B N"]:
    """Dimensions that the subspace has not say nothing: mean 0, log-variance 0."""
    return nn.functional.pad(values, (0, count - values.shape[1]))
