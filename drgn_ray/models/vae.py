"""cryoDRGN's variational autoencoder with known poses (Zhong et al., Nature Methods 2021).

Shape letters: B images, P half-disc points, Z zdim.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from drgn_ray.models.decoder import Decoder, reconstruction_loss
from drgn_ray.models.elbo import ElboTerms, Sample, elbo_terms, sample_latent
from drgn_ray.models.em import Subspace
from drgn_ray.models.encoder import Encoder
from drgn_ray.models.model import Model
from drgn_ray.physics.observation import Observer


class VAE(Model):
    """Encoder, decoder and the observation model between them.

    Parameters
    ----------
    observer, encoder, decoder
        The parts.
    zdim
        Dimension of the latent space.
    beta
        Weight of the KL divergence; None: the encoder's usual one.
    """

    def __init__(
        self, *, observer: Observer, encoder: Encoder, decoder: Decoder, zdim: int, beta: float | None
    ) -> None:
        super().__init__(observer=observer)
        self.encoder, self.decoder, self.zdim, self.given_beta = encoder, decoder, zdim, beta

    @property
    def beta(self) -> float:
        """Weight of the KL divergence."""
        return self.encoder.usual_beta if self.given_beta is None else self.given_beta

    def forward(self, batch: Mapping[str, Tensor], sample: Sample | None = None) -> ElboTerms:
        """See `Model.forward`; the encoder looks at all points."""
        seen = self.observer(batch)
        z_mu, z_logvar = self.encoder(seen)
        z = sample_latent(z_mu, z_logvar) if self.training else z_mu
        recon_loss = reconstruction_loss(self.decoder, z, seen, self.observer.half_disc, sample)
        num_points = self.observer.num_points if sample is None else sample.num_points
        return elbo_terms(recon_loss, z_mu, z_logvar, self.beta, num_points)

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return (z_mu, z_logvar) of a batch."""
        return self.encoder(self.observer(batch))

    def start_from(self, subspace: Subspace, radius: int) -> None:
        """See `Model.start_from`."""
        self.encoder.start_from(subspace, radius)
        self.decoder.start_from(subspace.volumes)

    def late_parameters(self) -> list[nn.Parameter]:
        """See `Model.late_parameters`.

        A decoder that does not know yet what z means leaves latents to the KL divergence, which takes them away.
        """
        return [] if self.decoder.starts_with_latents else self.encoder.late_parameters()

    def decode_slices(
        self, z: Float[Tensor, "B Z"], rotation: Float[Tensor, "B 3 3"]
    ) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        """See `Model.decode_slices`."""
        return self.decoder.slices(z, rotation, self.observer.half_disc)

    def decode_volume(self, z: Float[Tensor, " Z"]) -> Float[Tensor, "D D D"]:
        """See `Model.decode_volume`."""
        return self.decoder.volume(z)
