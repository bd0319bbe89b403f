"""One volume for all particles: the decoder without a latent (cryoDRGN's ``train_nn``)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from drgn_ray.models.decoder import Decoder, reconstruction_loss
from drgn_ray.models.elbo import ElboTerms, Sample
from drgn_ray.models.em import Subspace
from drgn_ray.models.model import Model
from drgn_ray.physics.observation import Observer


class Homogeneous(Model):
    """A decoder whose latent has no dimension, and the observation model.

    Parameters
    ----------
    observer, decoder
        The parts; the decoder's zdim is 0.
    """

    zdim = 0

    def __init__(self, *, observer: Observer, decoder: Decoder) -> None:
        super().__init__(observer=observer)
        self.decoder = decoder

    def forward(self, batch: Mapping[str, Tensor], sample: Sample | None = None) -> ElboTerms:
        """See `Model.forward`; the reconstruction loss is all of the loss."""
        seen = self.observer(batch)
        no_latent = seen.ctf.new_zeros(len(seen.ctf), 0)
        loss = reconstruction_loss(self.decoder, no_latent, seen, self.observer.half_disc, sample)
        return ElboTerms(loss, loss.detach(), torch.zeros_like(loss.detach()))

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return latents of no dimension."""
        nothing = batch["rotation"].new_zeros(len(batch["rotation"]), 0)
        return nothing, nothing

    def start_from(self, subspace: Subspace, radius: int) -> None:
        """See `Model.start_from`."""
        del radius
        self.decoder.start_from(subspace.volumes[:1])

    def decode_slices(
        self, z: Float[Tensor, "B Z"], rotation: Float[Tensor, "B 3 3"]
    ) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        """See `Model.decode_slices`."""
        return self.decoder.slices(z, rotation, self.observer.half_disc)

    def decode_volume(self, z: Float[Tensor, " Z"]) -> Float[Tensor, "D D D"]:
        """See `Model.decode_volume`."""
        return self.decoder.volume(z)
