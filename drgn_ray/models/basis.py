"""A decoder without a coordinate network: a learned basis of volumes, and a small network that combines them.

Shape letters: B images, P half-disc points, M volumes of the basis, C of all, D box, Z zdim.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drgn_ray.config import ModelConfig
from drgn_ray.models.decoder import Decoder
from drgn_ray.models.mlp import ResidualMLP
from drgn_ray.models.voxels import combined_slices
from drgn_ray.physics.fourier import multiply_spectrum, rfft_radius
from drgn_ray.physics.lattice import HalfDisc
from drgn_ray.physics.volume_lattice import lattice_of, volumes_of

START = 0.1  # of the `usual_amplitude`, which the basis is at random if it is not started from volumes
STEP = 8.0  # usual amplitudes to a unit of the parameters, which Adam changes by some ten thousandths a step
WIDTH = 64  # of the small network


def usual_amplitude(radius: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Amplitude that a molecule's coefficients often have at |k| cycles per box, in units of the images' noise.

    A smooth function, since only by one can slices be multiplied after the interpolation as well as before.
    """
    return 32 / (1 + (radius / 2) ** 2)


class BasisDecoder(Decoder):
    """``V(z) = V_0 + sum_m c_m(z) V_m``: c is linear in z, at first z itself, plus a network that starts at zero.

    The volumes are kept as their lattice (`drgn_ray.physics.volume_lattice`) divided by the `usual_amplitude`, by which
    slices are multiplied: Adam's steps are as large for every number, so the numbers are to be alike at all shells.

    Parameters
    ----------
    box_size
        D, px.
    zdim, num_basis
        Latent dimension, and M, which is no smaller.
    """

    starts_with_latents = True

    def __init__(self, *, box_size: int, zdim: int, num_basis: int) -> None:
        super().__init__()
        lattice = lattice_of(torch.randn(num_basis + 1, box_size, box_size, box_size)) / box_size**1.5
        lattice[..., 0] = 0
        self.lattice = nn.Parameter(torch.view_as_real(lattice * (START / STEP)))
        self.mixture = _Mixture(zdim, num_basis) if zdim else None

    @classmethod
    def of(cls, model: ModelConfig, *, box_size: int, zdim: int) -> BasisDecoder:
        """See `Decoder.of`."""
        return cls(box_size=box_size, zdim=zdim, num_basis=model.num_basis if zdim else 0)

    @torch.no_grad()
    def start_from(self, volumes: Float[Tensor, "C D D D"]) -> None:
        """Start from V_0 and as many of the others as there are."""
        divided = multiply_spectrum(volumes, 1 / (STEP * usual_amplitude(rfft_radius(volumes))))
        self.lattice[..., : len(volumes), :] = torch.view_as_real(lattice_of(divided))

    def slices(
        self, z: Float[Tensor, "B Z"], rotation: Float[Tensor, "B 3 3"], points: HalfDisc
    ) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        """See `Decoder.slices`."""
        with torch.autocast(z.device.type, enabled=False):
            slices = combined_slices(torch.view_as_complex(self.lattice), self._coefficients(z), points.k, rotation)
            slices = slices * (STEP * usual_amplitude(points.radius))
        return slices.real, slices.imag

    @torch.inference_mode()
    def volume(self, z: Float[Tensor, " Z"]) -> Float[Tensor, "D D D"]:
        """See `Decoder.volume`."""
        lattice = torch.einsum("zyxcr,bc->zyxbr", self.lattice, self._coefficients(z[None]))
        divided = volumes_of(torch.view_as_complex(lattice.contiguous()))
        return multiply_spectrum(divided, STEP * usual_amplitude(rfft_radius(divided)))[0]

    def _coefficients(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B C"]:
        one = z.new_ones(len(z), 1)
        return one if self.mixture is None else torch.cat([one, self.mixture(z)], dim=1)


class _Mixture(nn.Module):
    def __init__(self, zdim: int, num_basis: int) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.eye(zdim, num_basis))
        self.curved = ResidualMLP(zdim, 0, WIDTH, num_basis)
        nn.init.zeros_(self.curved.last.weight)
        nn.init.zeros_(self.curved.last.bias)

    def forward(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B M"]:
        return z @ self.linear + self.curved(z)
