"""Decoders, and the first of them: a network from (frequency, z) to the volume's Fourier coefficient.

Shape letters: B images, P half-disc points, D box, K frequencies of the encoding, W width, Z zdim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from drgn_ray.config import ModelConfig
from drgn_ray.models import one_pass
from drgn_ray.models.elbo import Sample, squared_error
from drgn_ray.models.encoding import encoding_frequencies
from drgn_ray.models.mlp import ResidualMLP
from drgn_ray.physics.fourier import volume_from_hartley
from drgn_ray.physics.lattice import HalfDisc
from drgn_ray.physics.observation import Observation


class Decoder(nn.Module, ABC):
    """From a latent to the volume, in units of the data's standard deviation: its slices, and the whole of it.

    Attributes
    ----------
    starts_with_latents
        Whether `start_from` tells it what z means.
    """

    starts_with_latents = False

    @classmethod
    @abstractmethod
    def of(cls, model: ModelConfig, *, box_size: int, zdim: int) -> Decoder:
        """Make one as the settings say, for boxes of `box_size` px."""

    def start_from(self, volumes: Float[Tensor, "C D D D"]) -> None:
        """Start from V_0 and what differs from it; a coordinate network starts from nothing."""

    @abstractmethod
    def slices(
        self, z: Float[Tensor, "B Z"], rotation: Float[Tensor, "B 3 3"], points: HalfDisc
    ) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        """Real and imaginary part of the central slices ``(k_x, k_y, 0) @ rotation``, one latent and rotation each."""

    def misfit(
        self,
        z: Float[Tensor, "B Z"],
        rotation: Float[Tensor, "B 3 3"],
        points: HalfDisc,
        scale: Float[Tensor, "B P"],
        target: Complex[Tensor, "B P"],
    ) -> Float[Tensor, ""]:
        """Sum of ``|scale * slices - target|²``, for decoders that find it and its gradients faster than both apart."""
        return squared_error(self.slices(z, rotation, points), scale, target)

    @abstractmethod
    def volume(self, z: Float[Tensor, " Z"]) -> Float[Tensor, "D D D"]:
        """Real-space volume (z, y, x) of one latent."""


def reconstruction_loss(
    decoder: Decoder, z: Float[Tensor, "B Z"], seen: Observation, points: HalfDisc, sample: Sample | None
) -> Float[Tensor, ""]:
    """Mean squared error over the half-disc, or its estimate from some of its points (see `Model.forward`)."""
    scale, target = seen.ctf, seen.coefficients
    if sample is not None:
        points = HalfDisc(points.box_size, points.k[sample.rows])
        scale, target = scale[:, sample.rows], target[:, sample.rows]
    return decoder.misfit(z, seen.rotation, points, scale, target) / scale.numel()


class CoordinateDecoder(Decoder):
    """Fourier coefficients of the volume of latent z at points of the half-space k_z <= 0, mirrored elsewhere.

    The volume is real, so F(-k) = conj F(k): points with k_z > 0 are evaluated at -k and conjugated (section 2.7 of
    the method notes).

    Parameters
    ----------
    box_size
        D, px; sets the encoding's frequencies.
    zdim, dec_dim, dec_layers
        Latent dimension, width, number of residual layers.
    pe_type, pe_dim, feat_sigma
        Positional encoding, see `encoding_frequencies`; `pe_dim` None is half of `downsample`.
    downsample
        Box size, px, that images are cropped to: volumes have nothing beyond; None: D.
    """

    frequencies: Float[Tensor, "K 3"]

    def __init__(
        self,
        *,
        box_size: int,
        zdim: int,
        dec_dim: int,
        dec_layers: int,
        pe_type: str,
        pe_dim: int | None,
        feat_sigma: float,
        downsample: int | None = None,
    ) -> None:
        super().__init__()
        self.box_size, self.radius = box_size, (downsample or box_size) // 2
        pe_dim = self.radius if pe_dim is None else pe_dim
        self.register_buffer("frequencies", encoding_frequencies(pe_type, box_size, pe_dim, feat_sigma))
        self.num_features = 2 * len(self.frequencies)
        self.mlp = ResidualMLP(self.num_features + zdim, dec_layers, dec_dim, out_features=2)

    @classmethod
    def of(cls, model: ModelConfig, *, box_size: int, zdim: int) -> CoordinateDecoder:
        """See `Decoder.of`."""
        return cls(
            box_size=box_size,
            zdim=zdim,
            dec_dim=model.dec_dim,
            dec_layers=model.dec_layers,
            pe_type=model.pe_type,
            pe_dim=model.pe_dim,
            feat_sigma=model.feat_sigma,
            downsample=model.downsample,
        )

    def slices(
        self, z: Float[Tensor, "B Z"], rotation: Float[Tensor, "B 3 3"], points: HalfDisc
    ) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        """See `Decoder.slices`."""
        with torch.autocast(rotation.device.type, enabled=False):  # phases of tens of radians need float32
            frequencies, sign = self._in_plane(rotation, points)
            angle = points.freq @ frequencies
        return self._evaluate(z, angle, sign)

    def misfit(
        self,
        z: Float[Tensor, "B Z"],
        rotation: Float[Tensor, "B 3 3"],
        points: HalfDisc,
        scale: Float[Tensor, "B P"],
        target: Complex[Tensor, "B P"],
    ) -> Float[Tensor, ""]:
        """See `Decoder.misfit`."""
        if z.device.type != "cpu" or not torch.is_grad_enabled():
            return super().misfit(z, rotation, points, scale, target)
        with torch.autocast("cpu", enabled=False):
            frequencies, sign = self._in_plane(rotation, points)
        bias = self._bias(z).float()
        return one_pass.squared_error(self.mlp, bias, points.freq, frequencies, sign[..., 0], scale, target)

    def _in_plane(
        self, rotation: Float[Tensor, "B 3 3"], points: HalfDisc
    ) -> tuple[Float[Tensor, "B 2 K"], Float[Tensor, "B P 1"]]:
        """Frequencies turned into the planes of slices, and -1 for points that are evaluated at -k."""
        in_plane = rotation[:, :2, :]
        return in_plane @ self.frequencies.T, torch.where(points.freq @ in_plane[:, :, 2:] > 0, -1.0, 1.0)

    @torch.inference_mode()
    def volume(self, z: Float[Tensor, " Z"], radius: int | None = None) -> Float[Tensor, "D D D"]:
        """See `Decoder.volume`.

        Evaluates the half-space k_z <= 0 plane by plane inside the sphere |k| <= radius (None: all) and mirrors it.  In
        the plane k_z = 0 the two halves meet, and the volume gets the mean of the value at k and the conjugate of that
        at -k.
        """
        size = self.box_size
        half, device = size // 2, z.device
        radius = self.radius if radius is None else min(radius, self.radius)
        axis = torch.arange(-half, half, device=device)
        ky, kx = torch.meshgrid(axis, axis, indexing="ij")
        hartley = torch.zeros(size, size, size, device=device)
        for kz in range(-radius, 1):
            inside = kx**2 + ky**2 + kz**2 <= radius**2
            k = torch.stack([kx[inside], ky[inside], torch.full_like(kx[inside], kz)], dim=-1)
            real, imag = (part[0] for part in self.points(z[None], k / size))
            here = tuple((k.flip(-1) + half).unbind(-1))
            there = tuple(((-k.flip(-1) + half) % size).unbind(-1))  # -(-D/2) is +D/2, the same sample of a period D
            hartley.index_put_(here, real - imag, accumulate=True)
            hartley.index_put_(there, real + imag, accumulate=True)
        hartley[half] /= 2  # the plane k_z = 0 was met twice,
        hartley[0, half, half] /= 2  # and so was Nyquist on the z axis
        return volume_from_hartley(hartley)

    def points(
        self, z: Float[Tensor, "B Z"], k: Float[Tensor, "P 3"]
    ) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        """Real and imaginary part at 3-D frequencies, cycles/px."""
        with torch.autocast(k.device.type, enabled=False):
            angle = (k @ self.frequencies.T).expand(len(z), -1, -1)
            sign = torch.where(k[:, 2:] > 0, -1.0, 1.0).expand(len(z), -1, -1)
        return self._evaluate(z, angle, sign)

    def _evaluate(
        self, z: Float[Tensor, "B Z"], angle: Float[Tensor, "B P K"], sign: Float[Tensor, "B P 1"]
    ) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        features = torch.cat([torch.sin(angle) * sign, torch.cos(angle)], dim=-1)
        hidden = nn.functional.linear(features, self.mlp.first.weight[:, : self.num_features])
        real, imag = self.mlp.after_first(hidden + self._bias(z)[:, None]).float().unbind(-1)
        return real, imag * sign[..., 0]

    def _bias(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B W"]:
        """Add up what the first layer adds to all points of an image: its bias, and z's share, computed once."""
        return nn.functional.linear(z, self.mlp.first.weight[:, self.num_features :], self.mlp.first.bias)
