"""cryoDRGN's variational autoencoder with known poses (Zhong et al., Nature Methods 2021).

Shape letters: B images, P half-disc points, Z zdim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drgn_ray.models.decoder import Decoder
from drgn_ray.models.elbo import ElboTerms, elbo_terms, reconstruction_loss, sample_latent
from drgn_ray.models.mlp import ResidualMLP
from drgn_ray.models.model import Model
from drgn_ray.physics.lattice import hartley_from_half
from drgn_ray.physics.observation import Observation, Observer


class ResidualEncoder(nn.Module):
    """Phase-flipped Hartley values of the disc to the mean and log-variance of q(z | image)."""

    def __init__(self, *, num_points: int, zdim: int, enc_dim: int, enc_layers: int) -> None:
        super().__init__()
        self.mlp = ResidualMLP(2 * num_points, enc_layers, enc_dim, out_features=2 * zdim)

    def forward(self, seen: Observation) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return (z_mu, z_logvar).

        Always in float32: the encoder is a thousandth of the work, and bfloat16 costs its gradients two digits.
        """
        flipped = hartley_from_half(seen.coefficients * torch.sign(seen.ctf))
        with torch.autocast(flipped.device.type, enabled=False):
            z_mu, z_logvar = self.mlp(flipped).chunk(2, dim=-1)
        return z_mu, z_logvar


class VAE(Model):
    """Encoder, decoder and the observation model between them.

    Parameters
    ----------
    observer, encoder, decoder
        The parts.
    zdim
        Dimension of the latent space.
    beta
        Weight of the KL divergence.
    """

    def __init__(
        self, *, observer: Observer, encoder: ResidualEncoder, decoder: Decoder, zdim: int, beta: float
    ) -> None:
        super().__init__(observer=observer)
        self.encoder, self.decoder, self.zdim, self.beta = encoder, decoder, zdim, beta

    def forward(self, batch: Mapping[str, Tensor]) -> ElboTerms:
        """Loss of a batch; z is drawn when training, its mean is taken in evaluation."""
        seen = self.observer(batch)
        z_mu, z_logvar = self.encoder(seen)
        z = sample_latent(z_mu, z_logvar) if self.training else z_mu
        real, imag = self.decoder.slices(z, seen.rotation, self.observer.half_disc)
        recon_loss = reconstruction_loss(
            (real * seen.ctf, imag * seen.ctf), (seen.coefficients.real, seen.coefficients.imag)
        )
        return elbo_terms(recon_loss, z_mu, z_logvar, self.beta, self.observer.num_points)

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return (z_mu, z_logvar) of a batch."""
        return self.encoder(self.observer(batch))

    def decode_volume(self, z: Float[Tensor, " Z"]) -> Float[Tensor, "D D D"]:
        """See `Model.decode_volume`."""
        return self.decoder.volume(z)
