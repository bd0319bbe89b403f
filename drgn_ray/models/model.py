"""What training, embedding and decoding need of a model, whichever it is.

Shape letters: B images, D box, Z zdim (0 where there is no latent).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from drgn_ray.models.elbo import ElboTerms, Sample, kl_divergence, sample_latent
from drgn_ray.models.em import Subspace
from drgn_ray.physics.observation import Observer


class Model(nn.Module, ABC):
    """The observation model, and what a subclass makes of what it sees.

    Its state is what ``state_dict`` holds.

    Parameters
    ----------
    observer
        Makes coefficients, CTFs and rotations of batches.

    Attributes
    ----------
    zdim
        Dimension of the latent space.
    """

    zdim: int

    def __init__(self, *, observer: Observer) -> None:
        super().__init__()
        self.observer = observer

    def describe(self) -> str:
        """Say what it is, in words."""
        return f"{self.zdim} dimensions" if self.zdim else "one volume"

    @abstractmethod
    def start_from(self, subspace: Subspace, radius: int) -> None:
        """Begin where a linear fit ended, as far as that can be.

        Parameters
        ----------
        radius
            Largest |k| from which its latents were inferred.
        """

    def late_parameters(self) -> list[nn.Parameter]:
        """Those that would unlearn what a start told, if they were trained from the first step on."""
        return []

    @abstractmethod
    def forward(self, batch: Mapping[str, Tensor], sample: Sample | None = None) -> ElboTerms:
        """Loss of a batch; z is drawn when training, its mean is taken in evaluation.

        Parameters
        ----------
        sample
            Points that the slices are compared at; None: all of the observer's.
        """

    @abstractmethod
    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return (z_mu, z_logvar) of a batch."""

    def draw(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, "B Z"], Float[Tensor, " B"]]:
        """Draw a latent from each posterior; and the KL divergence of the posteriors from the prior, nats."""
        z_mu, z_logvar = self.encode(batch)
        return sample_latent(z_mu, z_logvar), kl_divergence(z_mu, z_logvar).sum(dim=1)

    @abstractmethod
    def decode_slices(
        self, z: Float[Tensor, "B Z"], rotation: Float[Tensor, "B 3 3"]
    ) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        """Real and imaginary part of the slice of each latent's volume at the observer's points, without a CTF."""

    @abstractmethod
    def decode_volume(self, z: Float[Tensor, " Z"]) -> Float[Tensor, "D D D"]:
        """Real-space volume (z, y, x) of one latent, in units of the data's standard deviation."""
