"""What training, embedding and decoding need of a network, whichever it is.

Shape letters: B images, D box, Z zdim (0 where there is no latent).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drgn_ray.models.decoder import CoordinateDecoder
from drgn_ray.models.elbo import ElboTerms
from drgn_ray.physics.fourier import volume_from_hartley
from drgn_ray.physics.observation import Observer


class Network(nn.Module, ABC):
    """The observation model and a decoder, and what a subclass makes of them.

    Parameters
    ----------
    observer, decoder
        The parts; any decoder with `slices` and `points` will do.
    zdim
        Dimension of the latent space.
    """

    def __init__(self, *, observer: Observer, decoder: CoordinateDecoder, zdim: int) -> None:
        super().__init__()
        self.observer, self.decoder, self.zdim = observer, decoder, zdim

    @abstractmethod
    def forward(self, batch: Mapping[str, Tensor]) -> ElboTerms:
        """Loss of a batch; z is drawn when training, its mean is taken in evaluation."""

    @abstractmethod
    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return (z_mu, z_logvar) of a batch."""

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
