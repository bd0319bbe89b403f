"""PCA, k-means, Gaussian mixtures and the use of every dimension of the latents.

All cost about the same for any number of particles above 100,000: centres and mixtures are fitted to as many of them,
drawn at random, and every particle is assigned.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_argmin
from sklearn.mixture import GaussianMixture

MOST_FITTED = 100_000  # particles that k-means is fitted to
MOST_IN_MIXTURE, MOST_STATES = 20_000, 8


class PrincipalComponents(NamedTuple):
    """Latents in the axes of their largest variance; the largest entry of every axis is positive."""

    scores: Float[np.ndarray, "N Z"]
    axes: Float[np.ndarray, "Z Z"]
    variance_share: Float[np.ndarray, " Z"]
    mean: Float[np.ndarray, " Z"]

    def projected(self, z: Float[np.ndarray, "n Z"]) -> Float[np.ndarray, "n Z"]:
        """Other latents in the same axes."""
        return (z - self.mean) @ self.axes.T


class Clusters(NamedTuple):
    """k-means of the latents, numbered along the first principal component.

    Attributes
    ----------
    labels
        Cluster of every particle.
    particles
        For every cluster the particle nearest to its centre (a row of the latents).
    """

    labels: Int[np.ndarray, " N"]
    particles: Int[np.ndarray, " K"]


class Mixture(NamedTuple):
    """A mixture of Gaussians, of the number that the Bayesian information criterion likes best.

    Attributes
    ----------
    labels
        The likeliest component of every particle; components are numbered along the first principal component.
    probability
        Of that component, given the particle's latent.
    particles
        For every component the particle nearest to its mean (a row of the latents).
    share
        Of the particles that each component has.
    bic
        For 1, 2, ... components (Schwarz 1978), per fitted particle: lower is better.
    num_fitted
        Particles that it was fitted to.
    """

    labels: Int[np.ndarray, " N"]
    probability: Float[np.ndarray, " N"]
    particles: Int[np.ndarray, " K"]
    share: Float[np.ndarray, " K"]
    bic: Float[np.ndarray, " states"]
    num_fitted: int


def principal_components(z: Float[np.ndarray, "N Z"]) -> PrincipalComponents:
    """PCA of the latents."""
    pca = PCA().fit(z)
    axes = pca.components_
    assert axes is not None
    # The sign, which a selection made in these axes has to find again, must not be a library's choice.
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    found = PrincipalComponents(z, axes, pca.explained_variance_ratio_, pca.mean_)
    return found._replace(scores=found.projected(z))


def cluster(z: Float[np.ndarray, "N Z"], num_clusters: int, seed: int = 0) -> Clusters:
    """k-means; centres snap to the nearest particle, as in cryoDRGN, so that their volumes are of seen latents."""
    assert num_clusters <= len(z), (num_clusters, len(z))
    fitted = KMeans(num_clusters, n_init="auto", random_state=seed).fit(z[drawn(len(z), MOST_FITTED)])
    nearest = pairwise_distances_argmin(fitted.cluster_centers_, z)
    order = np.argsort(principal_components(z).scores[nearest, 0])
    return Clusters(np.argsort(order)[fitted.predict(z)], nearest[order])


def mixture(z: Float[np.ndarray, "N Z"], most_states: int = MOST_STATES, seed: int = 0) -> Mixture:
    """Fit mixtures of 1, 2, ... Gaussians, and keep the best."""
    few = z[drawn(len(z), MOST_IN_MIXTURE)]
    # Twice as many particles a component as its covariance has numbers, so that it is no matter of a few of them.
    most = max(1, min(most_states, len(few) // (z.shape[1] * (z.shape[1] + 1) + 10)))
    fits = [GaussianMixture(count, random_state=seed).fit(few) for count in range(1, most + 1)]
    bic = np.array([fit.bic(few) for fit in fits]) / len(few)
    best = fits[int(bic.argmin())]
    probability = best.predict_proba(z)
    nearest = pairwise_distances_argmin(best.means_, z)
    order = np.argsort(principal_components(z).scores[nearest, 0])
    labels = np.argsort(order)[probability.argmax(axis=1)]
    share = np.bincount(labels, minlength=len(nearest)) / len(z)
    return Mixture(labels, probability.max(axis=1), nearest[order], share, bic, len(few))


def drawn(count: int, most: int) -> Int[np.ndarray, " n"]:
    """Return at most so many of `count` rows, at random but always the same, in order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))
