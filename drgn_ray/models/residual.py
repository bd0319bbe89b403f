"""A fixed consensus, and a coordinate network for what differs from it, up to a radius.

Shape letters: B images, P half-disc points, C volumes, D box, S and H points of the lattice, R shells, Z zdim.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from drgn_ray.config import ModelConfig
from drgn_ray.models.decoder import CoordinateDecoder, Decoder
from drgn_ray.physics.fourier import at_radii, multiply_spectrum, rfft_radius, shell_amplitudes
from drgn_ray.physics.gridding import interpolate
from drgn_ray.physics.lattice import HalfDisc
from drgn_ray.physics.volume_lattice import lattice_of, volumes_of


class ResidualDecoder(Decoder):
    """Consensus plus, for |k| <= radius, the network's output times the consensus's amplitude there.

    The work falls with the square of the radius.

    Parameters
    ----------
    network
        For the difference.
    radius
        Largest |k| that the network is asked for, cycles per box.
    """

    consensus: Float[Tensor, "S S H 1 2"]
    amplitudes: Float[Tensor, " R"]

    def __init__(self, network: CoordinateDecoder, radius: int) -> None:
        super().__init__()
        self.network, self.radius = network, radius
        nothing = lattice_of(torch.zeros(1, *[network.box_size] * 3))
        self.register_buffer("consensus", torch.view_as_real(nothing))
        self.register_buffer("amplitudes", torch.ones(network.box_size // 2 + 1))

    @classmethod
    def of(cls, model: ModelConfig, *, box_size: int, zdim: int) -> ResidualDecoder:
        """See `Decoder.of`."""
        network = CoordinateDecoder.of(model, box_size=box_size, zdim=zdim)
        return cls(network, box_size // 4 if model.dec_radius is None else model.dec_radius)

    def start_from(self, volumes: Float[Tensor, "C D D D"]) -> None:
        """Take the first volume for consensus."""
        self.consensus.copy_(torch.view_as_real(lattice_of(volumes[:1])))
        self.amplitudes.copy_(shell_amplitudes(volumes[0]))

    def slices(
        self, z: Float[Tensor, "B Z"], rotation: Float[Tensor, "B 3 3"], points: HalfDisc
    ) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        """See `Decoder.slices`."""
        slices = interpolate(torch.view_as_complex(self.consensus), points.k, rotation)[..., 0]
        within = points.radius <= self.radius
        real, imag = self.network.slices(z, rotation, HalfDisc(points.box_size, points.k[within]))
        slices[:, within] += torch.complex(real, imag) * at_radii(self.amplitudes, points.radius[within])
        return slices.real, slices.imag

    def misfit(
        self,
        z: Float[Tensor, "B Z"],
        rotation: Float[Tensor, "B 3 3"],
        points: HalfDisc,
        scale: Float[Tensor, "B P"],
        target: Complex[Tensor, "B P"],
    ) -> Float[Tensor, ""]:
        """See `Decoder.misfit`; the network is asked for what the consensus leaves."""
        left = target - scale * interpolate(torch.view_as_complex(self.consensus), points.k, rotation)[..., 0]
        within = points.radius <= self.radius
        inner = HalfDisc(points.box_size, points.k[within])
        scale = scale[:, within] * at_radii(self.amplitudes, inner.radius)
        return self.network.misfit(z, rotation, inner, scale, left[:, within]) + (left[:, ~within].abs() ** 2).sum()

    @torch.inference_mode()
    def volume(self, z: Float[Tensor, " Z"]) -> Float[Tensor, "D D D"]:
        """See `Decoder.volume`."""
        difference = self.network.volume(z, self.radius)[None]
        scaled = multiply_spectrum(difference, at_radii(self.amplitudes, rfft_radius(difference)))
        return (volumes_of(torch.view_as_complex(self.consensus)) + scaled)[0]
