"""PCA, k-means and agreement on latents whose structure is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from drgn_ray.analysis.agreement import continuous_agreement, discrete_agreement, volume_correlation
from drgn_ray.analysis.latent_space import cluster, mixture, principal_components


def blobs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four groups of latents on a line, and their numbers."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(4, size=400)
    return np.stack([10.0 * truth, np.zeros(400), np.zeros(400)], axis=1) + rng.normal(size=(400, 3)), truth


def test_the_first_component_is_the_direction_of_largest_spread() -> None:
    z, _ = blobs()
    pca = principal_components(z)
    assert abs(pca.axes[0, 0]) == pytest.approx(1, abs=0.01)
    assert pca.variance_share[0] > 0.95
    assert np.allclose(pca.scores @ pca.axes + z.mean(axis=0), z)


def test_clusters_find_the_groups_and_are_numbered_along_the_first_component() -> None:
    z, truth = blobs()
    clusters = cluster(z, 4)
    assert adjusted_rand_score(truth, clusters.labels) > 0.95
    along = principal_components(z).scores[clusters.particles, 0]
    assert (np.diff(along) > 0).all()


def test_a_centre_is_a_particle_of_its_own_cluster() -> None:
    clusters = cluster(blobs()[0], 4)
    assert (clusters.labels[clusters.particles] == np.arange(4)).all()


def test_as_many_clusters_as_particles_give_each_its_own() -> None:
    assert sorted(cluster(np.eye(3), 3).particles) == [0, 1, 2]


def test_agreement_is_high_where_there_is_signal_and_chance_where_there_is_none() -> None:
    rng = np.random.default_rng(1)
    z, value = rng.normal(size=(500, 4)), rng.uniform(size=500)
    assert abs(continuous_agreement(z, value)) < 0.15
    assert continuous_agreement(np.column_stack([z, value]), value) > 0.99
    label = rng.random(500) < 0.5
    assert discrete_agreement(z, label) < 0.6
    assert discrete_agreement(np.column_stack([z, 20 * label]), label) > 0.99


def test_correlation_of_a_volume_with_its_negative_is_minus_one() -> None:
    volume = np.random.default_rng(0).normal(size=(4, 4, 4))
    assert volume_correlation(volume, 3 - 2 * volume) == pytest.approx(-1)


def test_the_axes_have_signs_of_their_own_whatever_the_order_of_the_particles() -> None:
    z, _ = blobs()
    axes = principal_components(z).axes
    assert (axes[np.arange(3), np.abs(axes).argmax(axis=1)] > 0).all()
    assert np.allclose(axes, principal_components(z[::-1]).axes)


def test_a_mixture_finds_how_many_groups_there_are_and_whose_each_particle_is() -> None:
    z, truth = blobs()
    found = mixture(z)
    assert len(found.particles) == found.bic.argmin() + 1 == 4
    assert adjusted_rand_score(truth, found.labels) > 0.95
    assert np.allclose(found.share, np.bincount(truth) / len(truth), atol=0.02)
    assert (np.diff(principal_components(z).scores[found.particles, 0]) > 0).all()


def test_a_mixture_of_one_group_is_one() -> None:
    assert len(mixture(np.random.default_rng(0).normal(size=(500, 3))).particles) == 1


def test_few_particles_are_told_by_as_few_gaussians_as_they_can_determine() -> None:
    assert len(mixture(np.random.default_rng(0).normal(size=(5, 8))).particles) == 1


def test_many_particles_are_assigned_to_centres_found_with_some_of_them() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=150_000)
    z = np.stack([20.0 * truth, np.zeros(len(truth))], axis=1) + rng.normal(size=(len(truth), 2))
    assert (cluster(z, 3).labels == truth).all()
    assert (mixture(z, most_states=3).labels == truth).all()
