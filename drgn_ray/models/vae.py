"""cryoDRGN's variational autoencoder with known poses (Zhong et al., Nature Methods 2021).

Shape letters: B images, P half-disc points, D box, Z zdim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drgn_ray.models.decoder import CoordinateDecoder
from drgn_ray.models.elbo import ElboTerms, elbo_terms, reconstruction_loss, sample_latent
from drgn_ray.models.mlp import ResidualMLP
from drgn_ray.physics.fourier import volume_from_hartley
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


class VAE(nn.Module):
    """Encoder, decoder and the observation model between them.

    Parameters
    ----------
    observer, encoder, decoder
        The parts; any decoder with `slices` and `points` will do.
    beta
        Weight of the KL divergence.
    """

    def __init__(
        self, *, observer: Observer, encoder: ResidualEncoder, decoder: CoordinateDecoder, beta: float
    ) -> None:
        super().__init__()
        self.observer, self.encoder, self.decoder, self.beta = observer, encoder, decoder, beta

    def forward(self, batch: Mapping[str, Tensor]) -> ElboTerms:
        """Loss of a batch; z is drawn when training, its mean is taken in evaluation."""
        seen = self.observer(batch)
        z_mu, z_logvar = self.encoder(seen)
        z = sample_latent(z_mu, z_logvar) if self.training else z_mu
        real, imag = self.decoder.slices(z, seen.rotation, self.observer.freq)
        recon_loss = reconstruction_loss(
            (real * seen.ctf, imag * seen.ctf), (seen.coefficients.real, seen.coefficients.imag)
        )
        return elbo_terms(recon_loss, z_mu, z_logvar, self.beta, self.observer.num_points)

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return (z_mu, z_logvar) of a batch."""
        return self.encoder(self.observer(batch))

    @torch.inference_mode()
    def decode_volume(self, z: Float[Tensor, " Z"]) -> Float[Tensor, "D D D"]:
        """Real-space volume (z, y, x) of one latent, in units of the data's standard deviation.

        Evaluates the half-space k_z <= 0 plane by plane inside the sphere |k| <= D/2 and mirrors it.  In the plane
        k_z = 0 the two halves meet, and the volume gets the mean of the value at k and the conjugate of that at -k.
        """
        size = self.observer.box_size
        half, device = size // 2, self.observer.freq.device
        axis = torch.arange(-half, half, device=device)
        ky, kx = torch.meshgrid(axis, axis, indexing="ij")
        hartley = torch.zeros(size, size, size, device=device)
        for kz in range(-half, 1):
            inside = kx**2 + ky**2 + kz**2 <= half**2
            k = torch.stack([kx[inside], ky[inside], torch.full_like(kx[inside], kz)], dim=-1)
            real, imag = (part[0] for part in self.decoder.points(z[None], k / size))
            here = tuple((k.flip(-1) + half).unbind(-1))
            there = tuple(((-k.flip(-1) + half) % size).unbind(-1))  # -(-D/2) is +D/2, the same sample of a period D
            hartley.index_put_(here, real - imag, accumulate=True)
            hartley.index_put_(there, real + imag, accumulate=True)
        hartley[half] /= 2  # the plane k_z = 0 was met twice,
        hartley[0, half, half] /= 2  # and so was Nyquist on the z axis
        return volume_from_hartley(hartley)
