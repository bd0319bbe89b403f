"""Passes over particles that fit and judge a linear subspace; what they give adds up, whoever made it.

The search looks at few shells, whose coefficients `prepare` puts into memory once; `accumulate` reads the images and
takes all shells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Complex64, Float32, Float64, Int
from torch import Tensor

from drgn_ray.models.curved import bent
from drgn_ray.models.em import (
    LEAST_POWER,
    Posterior,
    Subspace,
    Viewer,
    maximise,
    pairs,
    posterior,
    residual_power,
    search_box,
    shells_of,
    whiten,
)
from drgn_ray.particles.loader import refuse_not_finite, stream_rows
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.backproject import balance
from drgn_ray.physics.gridding import empty_moment_sums, insert_moments, lattice_side
from drgn_ray.physics.observation import Observation, Observer

BATCH_SIZE = 256
RESIDUAL_SAMPLE = 4  # every fourth image tells the noise
HELD_OUT = 5  # every fifth particle judges what is fitted to the others


class Prepared(NamedTuple):
    """Coefficients of some images at the points k.

    Attributes
    ----------
    number
        Of this part among all.
    """

    number: int
    k: Int[np.ndarray, "P 2"]
    coefficients: Complex64[np.ndarray, "n P"]
    ctf: Float32[np.ndarray, "n P"]
    rotation: Float32[np.ndarray, "n 3 3"]
    particle: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Pass:
    """What one expectation of the search looks at, and what it inserts.

    Attributes
    ----------
    subspace
        What the posteriors are under; None: latents are drawn at random, which is how a search starts.
    num_components
        M.
    radius
        Largest |k| of what the posteriors look at.
    insert_radius
        Largest |k| of what is inserted.
    mean_squared_ctf
        Of all images, at the radii 0 to D/2.
    everything
        Take all images, not only those that are fitted while the model is chosen.
    seed
        Of the latents that are drawn.
    degrees
        Insert polynomials of the latents (`drgn_ray.models.curved`), not the latents themselves.
    """

    subspace: Subspace | None
    num_components: int
    radius: int
    insert_radius: int
    mean_squared_ctf: Tensor
    everything: bool = False
    seed: int = 0
    degrees: Tensor | None = None

    @property
    def num_volumes(self) -> int:
        """Volumes that the sums are of."""
        return 1 + (self.num_components if self.degrees is None else len(self.degrees))


class Sums(NamedTuple):
    """What a maximisation needs of some images.

    Attributes
    ----------
    moments
        See `gridding.insert_moments`; or a slab of them.
    first, second
        The posteriors' means and second moments.
    noise, points
        Expected |residual|² and number of coefficients by shell.
    """

    num_images: int
    moments: Float32[np.ndarray, "S S H K"]
    first: Float64[np.ndarray, " C"]
    second: Float64[np.ndarray, "C C"]
    noise: Float64[np.ndarray, " R"]
    points: Float64[np.ndarray, " R"]

    def leading(self, count: int) -> Sums:
        """Keep the first volumes, as if the others had not been there."""
        num_volumes = len(self.first)
        row, column = np.triu_indices(num_volumes)
        pairs_kept = 2 * num_volumes + np.flatnonzero(column < count)
        kept = np.concatenate([np.arange(count), num_volumes + np.arange(count), pairs_kept])
        first, second = self.first[:count], self.second[:count, :count]
        return self._replace(moments=self.moments[..., kept], first=first, second=second)


def added(parts: Iterable[Sums]) -> Sums:
    """Add up what several passes give; the first part's moments become the sum's, where they can be written to."""
    parts = iter(parts)
    total = next(parts)
    if not total.moments.flags.writeable:  # what comes from Ray is not
        total = total._replace(moments=total.moments.copy())
    for part in parts:
        np.add(total.moments, part.moments, out=total.moments)
        others = (mine + its for mine, its in zip(total[2:], part[2:], strict=True))
        total = Sums(total.num_images + part.num_images, total.moments, *others)
    return total


def stacked(slabs: Iterable[Sums], side: int) -> Sums:
    """Put slabs of the same images' sums together, which are `side` planes."""
    slabs = iter(slabs)
    whole = next(slabs)
    if len(whole.moments) == side:
        return whole
    moments = np.empty((side, *whole.moments.shape[1:]), whole.moments.dtype)
    filled = 0
    for slab in chain([whole], slabs):
        moments[filled : filled + len(slab.moments)] = slab.moments
        filled += len(slab.moments)
    assert filled == side, "slabs of a lattice are all its planes"
    return whole._replace(moments=moments)


def fitted(total: Sums, mean_squared_ctf: Tensor, least_power: float = LEAST_POWER) -> Subspace:
    """Subspace that explains the summed images best, its latents white."""
    subspace = solved(total, mean_squared_ctf, least_power)
    mean, second = (torch.from_numpy(each / total.num_images) for each in (total.first, total.second))
    volumes, contrast_variance = whiten(subspace.volumes, mean, second)
    return Subspace(volumes, subspace.noise, contrast_variance)


def solved(total: Sums, mean_squared_ctf: Tensor, least_power: float) -> Subspace:
    """Volumes that explain the summed images best."""
    num_volumes = len(total.first)
    noise = torch.from_numpy(total.noise / np.maximum(total.points, 1))
    noise[0] = noise[1]  # slices do not go through the origin
    weight = balance(torch.arange(len(noise)).float().clamp_min(0.5), mean_squared_ctf).double()
    volumes = maximise(torch.from_numpy(total.moments), 1 / (weight * noise), num_volumes, least_power)
    return Subspace(volumes, noise, 0.0)


def prepare(store_path: str, chunks: Sequence[int], radius: int, number: int) -> Prepared:
    """Look at |k| <= radius of the images of some chunks."""
    store, device = ParticleStore(store_path), _device()
    observer = observer_of(store, radius).to(device)
    seen = [(*observer(batch), batch["particle"]) for batch in _batches(store, chunks, device)]
    arrays = (torch.cat(parts).cpu().numpy() for parts in zip(*seen, strict=True))
    return Prepared(number, observer.k.cpu().numpy(), *arrays)


def observer_of(store: ParticleStore, radius: int | None = None) -> Observer:
    """Look at images of a store as the linear model does: without a window, which would make neighbours alike."""
    info = store.info
    return Observer(
        box_size=info.box_size,
        data_sign=info.data_sign,
        hartley_std=info.hartley_std,
        window=False,
        ctf=info.has_ctf,
        damping=store.has_damping,
        radius=radius,
    )


def expect(images: Prepared, work: Pass, box_size: int) -> Sums:
    """Posteriors of prepared images, and the sums of what they insert."""
    device = _device()
    mine = np.arange(len(images.rotation))
    held_out = _held_out(images)
    if not work.everything:
        mine = mine[~held_out]
    k = torch.from_numpy(images.k.copy())
    size = search_box(box_size, work.insert_radius)
    summing = _Summing(k, work, size, range(lattice_side(size)), device, images.number)
    for rows in _in_batches(mine, images.particle):
        summing.add(_observation(images, rows), torch.from_numpy(images.particle[rows]).to(device))
    return summing.sums()


def accumulate(store_path: str, chunks: Sequence[int], work: Pass, slab: range) -> Sums:
    """Posteriors of the images of some chunks, and sums over all shells in a slab (planes of the lattice along z)."""
    store, device = ParticleStore(store_path), _device()
    observer = observer_of(store).to(device)
    summing = _Summing(observer.k, work, store.info.box_size, slab, device, chunks[0])
    for batch in _batches(store, chunks, device):
        summing.add(observer(batch), batch["particle"])
    return summing.sums()


def noise_beside(store: ParticleStore, chunks: Sequence[int], subspace: Subspace, radius: int) -> Float64[Tensor, " R"]:
    """Mean |residual|² of some images at all shells, with the latents that shells up to a radius tell."""
    device = _device()
    observer = observer_of(store).to(device)
    viewer, shells = Viewer(subspace, observer.k), shells_of(observer.k)
    within = torch.linalg.vector_norm(observer.k.float(), dim=1) <= radius
    power, num_images = torch.zeros(int(shells.max()) + 1, dtype=torch.float64, device=device), 0
    for batch in _batches(store, chunks, device):
        seen = observer(batch)
        slices = viewer.slices(seen)
        found = posterior(viewer.evidence(slices, seen, within), subspace.contrast_variance)
        power.index_add_(0, shells, residual_power(slices, seen.coefficients, found).double())
        num_images += len(seen.rotation)
    noise = power / (torch.bincount(shells, minlength=len(power)) * num_images).clamp_min(1)
    noise[0] = noise[1]
    return noise.cpu()


def _batches(store: ParticleStore, chunks: Sequence[int], device: torch.device) -> Iterator[dict[str, Tensor]]:
    for batch in stream_rows(store, chunks, BATCH_SIZE):
        refuse_not_finite(store, batch)
        yield {name: values.to(device) for name, values in batch.items()}


def log_likelihoods(images: Prepared, subspace: Subspace, radius: int) -> Float64[np.ndarray, "n C"]:
    """Log-likelihood of each held-out particle under the first 0, 1, ..., M components."""
    viewer, batches = _held_out_batches(images, subspace, radius)
    parts = []
    for seen, particle in batches:
        told, _ = viewer.evidence(viewer.slices(seen), seen).pooled(particle)
        of_leading = [
            posterior(told.leading(count), viewer.contrast_variance).log_likelihood
            for count in range(1, subspace.num_components + 2)
        ]
        parts.append(torch.stack(of_leading, dim=-1))
    return torch.cat(parts).double().cpu().numpy()


def predictions(images: Prepared, subspace: Subspace, radii: Sequence[int]) -> Float64[np.ndarray, "n radii"]:
    """Log-likelihood of half of each held-out image's points, given the latent that the other half tells within radii.

    Neighbouring points go to different halves.  More shells tell more of the latent, and more noise; a radius of 0
    tells nothing.
    """
    viewer, batches = _held_out_batches(images, subspace, max(radii))
    telling, radius = viewer.k.sum(dim=1) % 2 == 0, torch.linalg.vector_norm(viewer.k.float(), dim=1)
    parts = []
    for seen, particle in batches:
        slices = viewer.slices(seen)
        judge, _ = viewer.evidence(slices, seen, ~telling).pooled(particle)
        told = [viewer.evidence(slices, seen, telling & (radius <= within)).pooled(particle)[0] for within in radii]
        latents = [posterior(each, viewer.contrast_variance).mean for each in told]
        parts.append(torch.stack([judge.log_likelihood(c) for c in latents], dim=-1))
    return torch.cat(parts).double().cpu().numpy()


def _held_out_batches(
    images: Prepared, subspace: Subspace, radius: int
) -> tuple[Viewer, Iterator[tuple[Observation, Tensor]]]:
    k = torch.from_numpy(images.k.copy())
    within = _within(k, radius)
    viewer = Viewer(subspace, k[within].to(_device()))
    rows = np.flatnonzero(_held_out(images))
    return viewer, (
        (_observation(images, some, within), torch.from_numpy(images.particle[some]).to(_device()))
        for some in _in_batches(rows, images.particle)
    )


class _Summing:
    """Sums of a pass, image by image."""

    def __init__(self, k: Tensor, work: Pass, box_size: int, slab: range, device: torch.device, number: int) -> None:
        self.work, self.device = work, device
        self.points = _within(k, work.insert_radius).to(device)
        self.k = k.to(device)[self.points]
        radius = torch.linalg.vector_norm(self.k.float(), dim=1)
        self.looked_at = torch.nonzero(radius <= work.radius)[:, 0]
        self.balance = balance(radius, work.mean_squared_ctf.to(device))
        self.shells = shells_of(self.k)
        num_volumes = work.num_volumes
        self.slab = slab
        self.moments = empty_moment_sums(box_size, num_volumes, device, len(slab))
        self.first = torch.zeros(num_volumes, dtype=torch.float64, device=device)
        self.second = torch.zeros(num_volumes, num_volumes, dtype=torch.float64, device=device)
        self.noise = torch.zeros(work.insert_radius + 1, dtype=torch.float64, device=device)
        self.num_images = 0
        self.random = torch.Generator(device).manual_seed(work.seed * 1_000_003 + number)
        if work.subspace is not None:
            self.viewer = Viewer(work.subspace, self.k[self.looked_at])

    def add(self, seen: Observation, particle: Tensor) -> None:
        """Take in a batch."""
        seen = Observation(seen.coefficients[:, self.points], seen.ctf[:, self.points], seen.rotation)
        residual = (seen.coefficients.abs() ** 2).sum(dim=0)
        if self.work.subspace is None:
            found = self._drawn(len(seen.rotation))
        else:
            found, left = self._found(seen, particle)
            residual[self.looked_at] = left
            if self.work.degrees is not None:
                found = bent(found, self.work.degrees.to(self.device), self.random)
        self.noise.index_add_(0, self.shells, residual.double())
        second = found.covariance + found.mean[:, :, None] * found.mean[:, None, :]
        self.first += found.mean.sum(dim=0).double()
        self.second += second.sum(dim=0).double()
        self.num_images += len(seen.rotation)
        weighted = seen.ctf * self.balance
        insert_moments(
            self.moments,
            seen.coefficients * weighted,
            seen.ctf * weighted,
            found.mean,
            pairs(second),
            self.k,
            seen.rotation,
            self.slab.start,
        )

    def _drawn(self, num_images: int) -> Posterior:
        num_volumes = self.work.num_components + 1
        mean = torch.randn(num_images, num_volumes, generator=self.random, device=self.device)
        mean[:, 0] = 1.0
        nothing = torch.zeros(num_images, num_volumes, num_volumes, device=self.device)
        return Posterior(mean, nothing, nothing[:, 0, 0])

    def _found(self, seen: Observation, particle: Tensor) -> tuple[Posterior, Tensor]:
        looked_at = Observation(seen.coefficients[:, self.looked_at], seen.ctf[:, self.looked_at], seen.rotation)
        slices = self.viewer.slices(looked_at)
        told, index = self.viewer.evidence(slices, looked_at).pooled(particle)
        found = posterior(told, self.viewer.contrast_variance).of(index)
        sample = slice(None, None, RESIDUAL_SAMPLE)
        few = Posterior(*(each[sample] for each in found))
        return found, residual_power(slices[sample], looked_at.coefficients[sample], few) * len(slices) / len(few.mean)

    def sums(self) -> Sums:
        """Hand over what is summed up so far."""
        points = torch.bincount(self.shells, minlength=len(self.noise)).double() * self.num_images
        return Sums(
            self.num_images,
            *(each.cpu().numpy() for each in (self.moments, self.first, self.second, self.noise, points)),
        )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _within(k: Tensor, radius: int) -> Tensor:
    return torch.nonzero((k**2).sum(dim=1) <= radius**2)[:, 0]


def _held_out(images: Prepared) -> Bool[np.ndarray, " n"]:
    """Images of the particles that are not fitted while the model is chosen."""
    return np.unique(images.particle, return_inverse=True)[1] % HELD_OUT == HELD_OUT - 1


def _in_batches(rows: Int[np.ndarray, " n"], particle: Int[np.ndarray, " N"]) -> Iterator[Int[np.ndarray, " b"]]:
    """Cut rows into batches, between particles."""
    begins = np.flatnonzero(np.diff(particle[rows], prepend=-1))
    cuts = begins[np.searchsorted(begins, np.arange(BATCH_SIZE, len(rows), BATCH_SIZE)).clip(max=len(begins) - 1)]
    return (part for part in np.split(rows, np.unique(cuts)) if len(part))


def _observation(images: Prepared, rows: Int[np.ndarray, " b"], points: Tensor | None = None) -> Observation:
    arrays = (images.coefficients[rows], images.ctf[rows], images.rotation[rows])
    coefficients, ctf, rotation = (torch.from_numpy(array).to(_device()) for array in arrays)
    if points is not None:
        coefficients, ctf = coefficients[:, points.to(_device())], ctf[:, points.to(_device())]
    return Observation(coefficients, ctf, rotation)
