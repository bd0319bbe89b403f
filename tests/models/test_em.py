"""EM's formulas against dense linear algebra and against volumes that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import multivariate_normal
from torch import Tensor

from drgn_ray.models.em import (
    LEAST_POWER,
    Evidence,
    Posterior,
    Subspace,
    Viewer,
    maximise,
    pairs,
    posterior,
    residual_power,
    whiten,
)
from drgn_ray.physics.backproject import balance
from drgn_ray.physics.fourier import in_solvent
from drgn_ray.physics.gridding import empty_moment_sums, insert_moments
from drgn_ray.physics.lattice import half_disc
from drgn_ray.physics.observation import Observation

SIZE, NUM_VOLUMES, CONTRAST_VARIANCE = 16, 3, 0.04
POINTS = half_disc(SIZE)


def smooth_volumes(seed: int = 0) -> Tensor:
    """Volumes of low frequencies within the sphere."""
    noise = torch.randn(NUM_VOLUMES, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    axis = torch.fft.fftfreq(SIZE)
    radius2 = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2
    spectrum = torch.fft.fftn(noise, dim=(1, 2, 3)) * torch.exp(-40 * radius2)
    return in_solvent(torch.fft.ifftn(spectrum, dim=(1, 2, 3)).real)


def views(count: int, seed: int = 0) -> Tensor:
    return torch.tensor(Rotation.random(count, rng=np.random.default_rng(seed)).as_matrix(), dtype=torch.float32)


def images(subspace: Subspace, count: int, noise_power: float) -> tuple[Observation, Tensor]:
    """Images of random contrasts and latents with white noise, and their c."""
    generator = torch.Generator().manual_seed(1)
    contrast = 1 + subspace.contrast_variance**0.5 * torch.randn(count, 1, generator=generator)
    c = torch.cat([contrast, torch.randn(count, NUM_VOLUMES - 1, generator=generator) * contrast], dim=1)
    ctf = 0.3 + torch.rand(count, POINTS.num_points, generator=generator)
    blank = Observation(torch.zeros(count, POINTS.num_points, dtype=torch.complex64), ctf, views(count))
    clean = torch.einsum("bpc,bc->bp", Viewer(subspace, POINTS.k).slices(blank), c.to(torch.complex64))
    noise = torch.randn(clean.shape, dtype=torch.complex64, generator=generator) * noise_power**0.5
    return Observation(clean + noise, ctf, blank.rotation), c


@pytest.fixture(scope="module")
def subspace() -> Subspace:
    return Subspace(smooth_volumes(), torch.full((SIZE // 2 + 1,), 0.7), CONTRAST_VARIANCE)


def test_likelihood_and_posterior_are_those_of_the_joint_gaussian(subspace: Subspace) -> None:
    """An image is N(A m, A S A' + noise), if c is N(m, S): numbers of length 2 P, real and imaginary."""
    seen, _ = images(subspace, 2, noise_power=0.7)
    viewer = Viewer(subspace, POINTS.k)
    slices = viewer.slices(seen)
    found = posterior(viewer.evidence(slices, seen), CONTRAST_VARIANCE)
    prior_mean, prior = np.array([1.0, 0, 0]), np.diag([CONTRAST_VARIANCE, 1, 1])
    alone = []
    for image in range(2):
        matrix = torch.view_as_real(slices[image]).permute(0, 2, 1).flatten(0, 1).double().numpy()
        data = torch.view_as_real(seen.coefficients[image]).flatten().double().numpy()
        noise = np.eye(len(data)) * 0.35  # half of the power in each of the two parts
        covariance = matrix @ prior @ matrix.T + noise
        alone.append(
            multivariate_normal.logpdf(data, matrix @ prior_mean, covariance)
            - multivariate_normal.logpdf(np.zeros_like(data), np.zeros_like(data), noise)
        )
        gain = prior @ matrix.T @ np.linalg.inv(covariance)
        assert np.allclose(found.mean[image], prior_mean + gain @ (data - matrix @ prior_mean), atol=1e-3)
        assert np.allclose(found.covariance[image], prior - gain @ matrix @ prior, atol=1e-4)
    assert np.allclose(found.log_likelihood, alone, rtol=1e-3)


def test_the_likelihood_of_leading_volumes_is_that_of_a_smaller_subspace(subspace: Subspace) -> None:
    seen, _ = images(subspace, 5, noise_power=0.7)
    whole, smaller = Viewer(subspace, POINTS.k), Viewer(subspace.leading(1), POINTS.k)
    leading = posterior(whole.evidence(whole.slices(seen), seen).leading(2), CONTRAST_VARIANCE)
    alone = smaller.posterior(seen)
    assert torch.allclose(leading.log_likelihood, alone.log_likelihood, rtol=1e-4)
    assert torch.allclose(leading.mean, alone.mean, atol=1e-4)


def test_noise_is_told_by_what_posteriors_leave(subspace: Subspace) -> None:
    seen, _ = images(subspace, 400, noise_power=0.7)
    viewer = Viewer(subspace, POINTS.k)
    slices = viewer.slices(seen)
    left = residual_power(slices, seen.coefficients, posterior(viewer.evidence(slices, seen), CONTRAST_VARIANCE))
    assert (left / 400).mean().item() == pytest.approx(0.7, rel=0.02)


def test_the_volumes_come_back_from_images_whose_latents_are_known(subspace: Subspace) -> None:
    seen, c = images(subspace, 3000, noise_power=1e-4)
    sums = empty_moment_sums(SIZE, NUM_VOLUMES)
    second = pairs(c[:, :, None] * c[:, None, :])
    weighted = seen.ctf * balance(torch.linalg.vector_norm(POINTS.k.float(), dim=1), None)
    insert_moments(sums, seen.coefficients * weighted, seen.ctf * weighted, c, second, POINTS.k, seen.rotation)
    found = maximise(sums, torch.full((SIZE // 2 + 1,), 1e4), NUM_VOLUMES)
    for ours, truth in zip(found, subspace.volumes, strict=True):
        assert torch.cosine_similarity(ours.flatten(), truth.flatten(), dim=0) > 0.985
        assert (ours.norm() / truth.norm()).item() == pytest.approx(1, abs=0.07)  # of interpolation in a full box


def test_components_of_noise_alone_shrink_and_a_strong_consensus_does_not() -> None:
    """The prior's powers are told by the data, but for the share that is kept for what is not yet found."""
    generator = torch.Generator().manual_seed(3)
    count, flat = 2000, torch.ones(SIZE // 2 + 1)
    c = torch.cat([torch.ones(count, 1), torch.randn(count, NUM_VOLUMES - 1, generator=generator)], dim=1)
    ctf = torch.ones(count, POINTS.num_points)
    blank = Observation(torch.zeros(ctf.shape, dtype=torch.complex64), ctf, views(count))
    clean = Viewer(Subspace(smooth_volumes(), flat, 1e-4).leading(0), POINTS.k).slices(blank)[..., 0]
    noisy = clean + torch.randn(clean.shape, dtype=torch.complex64, generator=generator)
    sums = empty_moment_sums(SIZE, NUM_VOLUMES)
    insert_moments(sums, noisy, ctf, c, pairs(c[:, :, None] * c[:, None, :]), POINTS.k, blank.rotation)
    shrunk, kept = (maximise(sums, flat, NUM_VOLUMES, least) for least in (0.0, LEAST_POWER))
    as_they_are = maximise(sums, 1e6 * flat, NUM_VOLUMES)
    assert shrunk[1:].norm() < 0.8 * as_they_are[1:].norm()
    assert kept[1:].norm() > 0.9 * as_they_are[1:].norm()
    assert shrunk[0].norm() > 0.99 * as_they_are[0].norm()


def test_whitening_describes_the_same_images_by_latents_of_mean_0_and_covariance_1(subspace: Subspace) -> None:
    generator = torch.Generator().manual_seed(2)
    contrast = 1.3 + 0.2 * torch.randn(2000, 1, generator=generator)
    mixed = torch.randn(2000, 2, generator=generator) @ torch.tensor([[2.0, 0.5], [0.0, 0.3]])
    c = torch.cat([contrast, (mixed + torch.tensor([0.4, -1.0])) * contrast], dim=1).double()
    volumes, variance = whiten(subspace.volumes, c.mean(dim=0), c.T @ c / len(c))
    pictures = c @ subspace.volumes.flatten(1).double()
    described = torch.linalg.lstsq(volumes.flatten(1).T.double(), pictures.T).solution.T
    assert torch.allclose(described @ volumes.flatten(1).double(), pictures, atol=1e-4 * float(pictures.abs().max()))
    assert described[:, 0].mean().item() == pytest.approx(1, abs=1e-5)
    assert variance == pytest.approx(float(described[:, 0].var(correction=0)), abs=1e-3)
    uncorrelated = described[:, 1:].T @ described / len(described)
    assert torch.allclose(uncorrelated, torch.tensor([[0, 1, 0], [0, 0, 1]]).double(), atol=1e-5)
    flat = volumes[1:].flatten(1)
    assert abs(torch.cosine_similarity(flat[0], flat[1], dim=0)) < 1e-3
    assert flat[0].norm() > flat[1].norm()


def test_points_that_are_left_out_tell_nothing(subspace: Subspace) -> None:
    seen, _ = images(subspace, 4, noise_power=0.7)
    viewer = Viewer(subspace, POINTS.k)
    none = viewer.evidence(viewer.slices(seen), seen, torch.zeros(POINTS.num_points, dtype=torch.bool))
    assert isinstance(none, Evidence)
    found = posterior(none, CONTRAST_VARIANCE)
    assert isinstance(found, Posterior)
    assert torch.allclose(found.mean, torch.tensor([1.0, 0, 0]).expand(4, 3))
    assert torch.allclose(found.covariance, torch.diag(torch.tensor([CONTRAST_VARIANCE, 1, 1])).expand(4, 3, 3))
