"""A linear subspace of volumes as a model: every particle's latent is a posterior mean, and no network is needed.

Shape letters: B images, P half-disc points, D box, R shells, M components (zdim).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from drgn_ray.models.elbo import ElboTerms, Sample, elbo_terms, squared_error
from drgn_ray.models.em import LEAST_CONTRAST, Posterior, Subspace, Viewer, search_box
from drgn_ray.models.model import Model
from drgn_ray.physics.gridding import interpolate
from drgn_ray.physics.observation import Observation, Observer
from drgn_ray.physics.volume_lattice import lattice_of, resized


class LinearSubspace(Model):
    """``V(z) = V_0 + sum_m z_m U_m``, fitted by EM (`drgn_ray.models.em`, `drgn_ray.distributed.linear`).

    Parameters
    ----------
    observe
        Makes the observer for |k| up to `radius`; None: D/2.

    Attributes
    ----------
    volumes, noise, contrast_variance
        See `Subspace`.
    radius
        Largest |k| from which latents are inferred.
    """

    FOUND: tuple[str, ...] = ("volumes", "noise", "contrast_variance", "radius")
    volumes: Float[Tensor, "C D D D"]
    noise: Float[Tensor, " R"]
    contrast_variance: Float[Tensor, ""]
    radius: Int[Tensor, ""]

    def __init__(self, *, observe: Callable[..., Observer]) -> None:
        super().__init__(observer=observe(radius=None))
        size = self.observer.box_size
        self.observe = observe
        nothing = Subspace(torch.zeros(1, size, size, size), torch.ones(size // 2 + 1), 0.0)
        self.start_from(nothing, 1)

    def start_from(self, subspace: Subspace, radius: int) -> None:
        """See `Model.start_from`; it is all that there is to do."""
        self._hold(
            volumes=subspace.volumes.float(),
            noise=subspace.noise.float(),
            contrast_variance=torch.tensor(subspace.contrast_variance),
            radius=torch.tensor(radius),
        )

    @property
    def zdim(self) -> int:
        """M, which may be 0."""
        return len(self.volumes) - 1

    @property
    def subspace(self) -> Subspace:
        """What was found."""
        return Subspace(self.volumes, self.noise, float(self.contrast_variance))

    def describe(self) -> str:
        """See `Model.describe`."""
        return f"{super().describe()}, of shells 1 to {int(self.radius)}" if self.zdim else super().describe()

    def forward(self, batch: Mapping[str, Tensor], sample: Sample | None = None) -> ElboTerms:
        """Loss of a batch at the posterior means, all shells included."""
        assert sample is None, "it is not trained by steps"
        seen = self.observer(batch)
        z_mu, z_logvar = self.encode(batch)
        misfit = squared_error(self.decode_slices(z_mu, seen.rotation), seen.ctf, seen.coefficients)
        return elbo_terms(misfit / seen.ctf.numel(), z_mu, z_logvar, 1.0, self.observer.num_points)

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return (z_mu, z_logvar) of a batch; the images of one particle (tilts) have one posterior."""
        observer, viewer = self._inference
        return _of_each_dimension(viewer.posterior(observer(batch), batch.get("particle")))

    def draw(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, "B Z"], Float[Tensor, " B"]]:
        """See `Model.draw`; the dimensions of a posterior are correlated here."""
        observer, viewer = self._inference
        particle = batch.get("particle", torch.arange(len(batch["rotation"]), device=self.volumes.device))
        mean, covariance = _latent(viewer.posterior(observer(batch), particle))
        factor = torch.linalg.cholesky(covariance)
        z = mean + torch.einsum("bij,bj->bi", factor, torch.randn_like(mean))
        log_determinant = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        trace = covariance.diagonal(dim1=1, dim2=2).sum(dim=1)
        kld = (trace + (mean**2).sum(dim=1) - self.zdim - log_determinant) / 2
        _, index, num_images = particle.unique(return_inverse=True, return_counts=True)
        return z, kld / num_images[index]  # a particle's is shared out to its images

    def infer(self, seen: Observation) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return (z_mu, z_logvar) of images that are seen at all points, without a window."""
        within = torch.linalg.vector_norm(self.observer.k.float(), dim=1) <= self.radius
        looked_at = Observation(seen.coefficients[:, within], seen.ctf[:, within], seen.rotation)
        return _of_each_dimension(self._inference[1].posterior(looked_at))

    def decode_slices(
        self, z: Float[Tensor, "B Z"], rotation: Float[Tensor, "B 3 3"]
    ) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        """See `Model.decode_slices`."""
        if self._decoded is None or self._decoded.device != self.decoded.device:
            self._decoded = lattice_of(self.decoded).contiguous()
        slices = interpolate(self._decoded, self.observer.k, rotation)
        combined = torch.einsum("bpc,bc->bp", slices, self.coefficients(z).to(slices.dtype))
        return combined.real, combined.imag

    def decode_volume(self, z: Float[Tensor, " Z"]) -> Float[Tensor, "D D D"]:
        """See `Model.decode_volume`."""
        return torch.tensordot(self.coefficients(z[None].to(self.volumes))[0], self.decoded, dims=1)

    @property
    def decoded(self) -> Float[Tensor, "C D D D"]:
        """Volumes that are added up with the `coefficients` of a latent."""
        return self.volumes

    def coefficients(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B C"]:
        """Say how much of each volume there is."""
        return torch.cat([z.new_ones(len(z), 1), z], dim=1)

    def _hold(self, **found: Tensor) -> None:
        for name, value in found.items():
            self.register_buffer(name, value.detach().clone().to(self.observer.k.device))
        self._seen: tuple[Observer, Viewer] | None = None
        self._decoded: Complex[Tensor, "S S H C"] | None = None

    @property
    def _inference(self) -> tuple[Observer, Viewer]:
        """Observer and viewer of the shells that tell the latent, on the device of the volumes."""
        if self._seen is None or self._seen[1].k.device != self.volumes.device:
            observer = self.observe(radius=int(self.radius)).to(self.volumes.device)
            few = resized(self.volumes, search_box(observer.box_size, int(self.radius)))
            viewer = Viewer(Subspace(few, self.noise, float(self.contrast_variance)), observer.k)
            self._seen = observer, viewer
        return self._seen

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self._hold(**{name: state_dict[prefix + name] for name in self.FOUND})  # of as many components as there are
        super()._load_from_state_dict(state_dict, prefix, *args)


def _latent(found: Posterior) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z Z"]]:
    """Mean and covariance of z, from those of the contrast and of the contrast times z."""
    contrast = found.mean[:, :1].clamp_min(LEAST_CONTRAST)
    return found.mean[:, 1:] / contrast, found.covariance[:, 1:, 1:] / contrast[..., None] ** 2


def _of_each_dimension(found: Posterior) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
    mean, covariance = _latent(found)
    return mean, covariance.diagonal(dim1=1, dim2=2).log()
