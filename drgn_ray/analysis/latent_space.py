"""PCA and k-means of the latents."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA


class PrincipalComponents(NamedTuple):
    """Latents in the axes of their largest variance."""

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


def principal_components(z: Float[np.ndarray, "N Z"]) -> PrincipalComponents:
    """PCA of the latents."""
    pca = PCA().fit(z)
    assert pca.components_ is not None
    return PrincipalComponents(pca.transform(z), pca.components_, pca.explained_variance_ratio_, pca.mean_)


def cluster(z: Float[np.ndarray, "N Z"], num_clusters: int, seed: int = 0) -> Clusters:
    """k-means; centres snap to the nearest particle, as in cryoDRGN, so that their volumes are of seen latents."""
    assert num_clusters <= len(z), (num_clusters, len(z))
    fitted = KMeans(num_clusters, n_init="auto", random_state=seed).fit(z)
    nearest = np.array([np.argmin(((z - centre) ** 2).sum(axis=1)) for centre in fitted.cluster_centers_])
    order = np.argsort(principal_components(z).scores[nearest, 0])
    return Clusters(np.argsort(order)[fitted.labels_], nearest[order])
