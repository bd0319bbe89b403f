"""The landscape of volumes: a sketch of it, its principal components, and discrete states.

Latents are coordinates of a network's own choosing; volumes are what one looks at.  So a few hundred volumes are
decoded where particles lie (a sketch) and compared voxel by voxel; `drgn_ray.analysis.prediction` then tells of every
particle where it is among them.  It is the idea of ``cryodrgn analyze_landscape`` and ``analyze_landscape_full``
(Kinman et al., Nat. Protoc. 2023), on small boxes that fit in memory.

Shape letters: N particles, Z latent dimensions, n volumes of a sketch, d their box, V voxels in a mask, P components.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Int
from sklearn.cluster import AgglomerativeClustering
from sklearn.decomposition import PCA

from drgn_ray.analysis.consensus import density_sign, make_masks
from drgn_ray.analysis.latent_space import PrincipalComponents, cluster
from drgn_ray.analysis.paths import along_component
from drgn_ray.errors import RunError

LEAST_SKETCH = 20  # volumes, below which there is nothing to cross-validate
LEAST_SHARE = 1e-6  # of the variance; what is below is rounding
VOLUMES_ALONG_COMPONENT = 10
Linkage = Literal["average", "complete", "single", "ward"]


class Overlay(NamedTuple):
    """All volumes of a sketch, laid over one another.

    Attributes
    ----------
    sign
        1 where density is positive, as it should be, or -1.
    densest
        `sign` times the density of the volume that has most, voxel by voxel.
    """

    mean: Float[np.ndarray, "d d d"]
    deviation: Float[np.ndarray, "d d d"]
    sign: int
    densest: Float[np.ndarray, "d d d"]


class Landscape(NamedTuple):
    """What the volumes of a sketch have in common, and how they differ.

    Attributes
    ----------
    molecule
        See `molecule_mask`.
    inside
        Voxels that were compared.
    pca
        Of the voxels inside; scores are of the sketch.
    states
        Of the volumes of the sketch, numbered along the first component.
    """

    overlaid: Overlay
    molecule: Bool[np.ndarray, "d d d"]
    inside: Bool[np.ndarray, "d d d"]
    pca: PrincipalComponents
    states: Int[np.ndarray, " n"]

    def traversal(self, component: int) -> Iterator[Float[np.ndarray, "d d d"]]:
        """Volumes along a component, from the 5th to the 95th percentile of the sketch; the mean outside the mask."""
        for voxels in along_component(self.pca.mean[None], self.pca, component, VOLUMES_ALONG_COMPONENT):
            volume = self.overlaid.mean.copy()
            volume[self.inside] = voxels
            yield volume


def sketch(z: Float[np.ndarray, "N Z"], size: int) -> Int[np.ndarray, " n"]:
    """Choose particles (rows of the latents) that cover the latents: those nearest to the centres of a k-means.

    There are fewer than `size` where centres share a particle, or where latents are the same, as those of a particle's
    tilts.

    Raises
    ------
    RunError
        There are next to no different latents.
    """
    distinct = len(pd.DataFrame(z).drop_duplicates())
    if distinct < LEAST_SKETCH:
        raise RunError(
            "latents", f"{distinct} of them differ, and a sketch takes {LEAST_SKETCH}", "pass a run with more particles"
        )
    return np.unique(cluster(z, min(size, distinct)).particles)


def overlay(volumes: Float32[np.ndarray, "n d d d"]) -> Overlay:
    """Mean, standard deviation and largest density of every voxel."""
    mean = volumes.mean(axis=0)
    variance = np.zeros_like(mean)
    for volume in volumes:  # one at a time: all differences together are as large as the sketch
        variance += (volume - mean) ** 2 / len(volumes)
    sign = density_sign(mean)[0] or 1
    densest = volumes.max(axis=0) if sign > 0 else -volumes.min(axis=0)
    return Overlay(mean, np.sqrt(variance), sign, densest)


def molecule_mask(overlaid: Overlay, apix: float) -> Bool[np.ndarray, "d d d"]:
    """Voxels that have density in any volume, so that no part that moves or comes and goes is cut.

    It is the tight mask of `drgn_ray.analysis.consensus.make_masks` of the union of all volumes (half of the 99.99th
    percentile, grown by 6 Å and by 3 voxels at least), up to the middle of its soft edge.

    Parameters
    ----------
    apix
        Å/px.
    """
    return make_masks(overlaid.densest, apix)["tight"] > 0.5


def volume_components(voxels: Float32[np.ndarray, "n V"], most: int) -> PrincipalComponents:
    """PCA of volumes inside a mask; `voxels` are overwritten, since a copy is as large.

    Parameters
    ----------
    most
        Components, if so many have more than a millionth of the variance.

    Raises
    ------
    RunError
        The volumes are all the same.
    """
    if not np.ptp(voxels, axis=0).any():
        raise RunError("volumes of the sketch", "inside the mask they are all the same", "pass another --mask or run")
    pca = PCA(min(most, *voxels.shape), copy=False, random_state=0)
    scores = pca.fit_transform(voxels)
    assert pca.components_ is not None
    kept = pca.explained_variance_ratio_ > LEAST_SHARE
    return PrincipalComponents(scores[:, kept], pca.components_[kept], pca.explained_variance_ratio_[kept], pca.mean_)


def discrete_states(scores: Float[np.ndarray, "n P"], count: int, linkage: Linkage) -> Int[np.ndarray, " n"]:
    """Agglomerative clustering of the sketch; states are numbered along the first component."""
    found = AgglomerativeClustering(count, linkage=linkage).fit_predict(scores)
    first = [scores[found == state, 0].mean() for state in range(count)]
    return np.argsort(np.argsort(first))[found]


def find_landscape(
    volumes: Float32[np.ndarray, "n d d d"],
    apix: float,
    mask: Bool[np.ndarray, "d d d"] | None,
    *,
    most_components: int,
    num_states: int,
    linkage: Linkage,
) -> Landscape:
    """Compare the volumes of a sketch.

    Parameters
    ----------
    apix
        Å/px.
    mask
        Where; None: in the `molecule_mask`.
    """
    overlaid = overlay(volumes)
    molecule = molecule_mask(overlaid, apix)
    inside = molecule if mask is None else mask
    pca = volume_components(volumes[:, inside], most_components)
    return Landscape(overlaid, molecule, inside, pca, discrete_states(pca.scores, num_states, linkage))
