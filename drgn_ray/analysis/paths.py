"""Paths through the latents: straight lines, principal components, and ways along which particles lie.

A path is decoded into a movie; where it goes through regions without particles, its volumes are a network's guesses.

Shape letters: N particles, Z latent dimensions, A anchors, n points of the path.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from sklearn.neighbors import NearestNeighbors

from drgn_ray.analysis.latent_space import PrincipalComponents, drawn
from drgn_ray.errors import ConfigError

PERCENTILES = 5.0, 95.0  # of the scores, between which a path along a component goes
MOST_IN_GRAPH = 50_000  # particles, whose neighbours are found in seconds


class Neighbors(NamedTuple):
    """Directed graph of the particles, each with an edge to those near it.

    Attributes
    ----------
    edges
        Distance from row to column; none is as long as `longest`.
    """

    edges: csr_matrix
    longest: float


def line(anchors: Float[np.ndarray, "A Z"], num_points: int) -> Float[np.ndarray, "n Z"]:
    """Straight from anchor to anchor, with `num_points` from each to the next, both ends counted."""
    assert min(len(anchors), num_points) > 1, (len(anchors), num_points)
    share = np.linspace(0, 1, num_points)[:, None]
    legs = [(1 - share) * start + share * end for start, end in itertools.pairwise(anchors)]
    return np.concatenate([legs[0], *(leg[1:] for leg in legs[1:])])


def along_component(
    z: Float[np.ndarray, "N Z"],
    pca: PrincipalComponents,
    component: int,
    num_points: int,
    percentiles: tuple[float, float] = PERCENTILES,
) -> Float[np.ndarray, "n Z"]:
    """Straight along a principal component through the mean, between two percentiles of the particles' scores."""
    low, high = np.percentile(pca.scores[:, component], percentiles)
    return z.mean(axis=0) + np.linspace(low, high, num_points)[:, None] * pca.axes[component]


def neighbor_graph(z: Float[np.ndarray, "N Z"], max_neighbors: int, avg_neighbors: float) -> Neighbors:
    """Join every particle to its nearest ones, by edges so short that there are `avg_neighbors` a particle.

    A particle counts itself among its neighbours, as cryoDRGN's ``graph_traversal`` does, whose graph this is.

    Parameters
    ----------
    max_neighbors
        Of a particle.
    avg_neighbors
        Mean over the particles, up to `max_neighbors`.
    """
    z = z.astype(np.float64)
    distance, index = NearestNeighbors(n_neighbors=min(max_neighbors, len(z)), n_jobs=-1).fit(z).kneighbors(z)
    rank = min(int(len(z) * avg_neighbors), distance.size - 1)
    longest = float(np.partition(distance.ravel(), rank)[rank])
    kept = distance < longest
    row = np.repeat(np.arange(len(z)), kept.sum(axis=1))
    return Neighbors(csr_matrix((distance[kept], (row, index[kept])), shape=(len(z), len(z))), longest)


def shortest_path(graph: Neighbors, anchors: Sequence[int]) -> Int[np.ndarray, " n"]:
    """Rows of the shortest way along edges through the anchors, in their order.

    Raises
    ------
    ConfigError
        There is no way between two of them.
    """
    legs = []
    for number, (start, end) in enumerate(itertools.pairwise(anchors), start=1):
        distance, before = dijkstra(graph.edges, indices=start, return_predecessors=True)
        if not np.isfinite(distance[end]):
            raise ConfigError(
                f"particles {number} and {number + 1} of the path",
                f"between them particles are further apart than {graph.longest:.3g}",
                "pass larger --max-neighbors and --avg-neighbors, or --through line",
            )
        leg = [end]
        while leg[-1] != start:
            leg.append(int(before[leg[-1]]))
        legs.append(leg[::-1])
    return np.array([*legs[0], *(row for leg in legs[1:] for row in leg[1:])])


def spaced(way: Float[np.ndarray, "n Z"], num_points: int) -> Float[np.ndarray, "m Z"]:
    """Keep `num_points` of a way, or all where it has no more: both ends, and what lies nearest to equal distances."""
    assert num_points > 1, num_points
    distance = np.linalg.norm(np.diff(way, axis=0, prepend=way[:1]), axis=1).cumsum()
    wanted = np.linspace(0, distance[-1], num_points)
    return way[np.unique(np.abs(distance[:, None] - wanted).argmin(axis=0))]


def thinned(z: Float[np.ndarray, "N Z"], anchors: Sequence[int], most: int) -> Int[np.ndarray, " m"]:
    """Rows of at most so many particles, drawn at random, and of the anchors: what a graph can be made of soon."""
    return np.union1d(drawn(len(z), most), np.array(anchors, np.int64))


def log_density(z: Float[np.ndarray, "N Z"], at: Float[np.ndarray, "n Z"]) -> Float[np.ndarray, " n"]:
    """Log of the density of particles at points, up to a constant: from the distance to the k-th nearest, k = √N.

    Minus it would be a free energy in kT, were the latent space a space of conformations with the right metric.
    """
    k = max(round(len(z) ** 0.5), 1)
    distance, _ = NearestNeighbors(n_neighbors=k, n_jobs=-1).fit(z).kneighbors(at)
    return -z.shape[1] * np.log(np.maximum(distance[:, -1], np.finfo(np.float32).tiny))


def described(
    path: Float[np.ndarray, "n Z"], z: Float[np.ndarray, "N Z"], source_row: Int[np.ndarray, " N"]
) -> pd.DataFrame:
    """Tell of every point of a path how far along it is, how dense particles are, and which is the nearest.

    Columns ``volume``, ``distance`` (units of z), ``log_density`` (0 where it is largest), ``nearest_source_row``,
    ``z0``, ``z1``, ...
    """
    density = log_density(z, path)
    nearest = NearestNeighbors(n_neighbors=1).fit(z).kneighbors(path, return_distance=False)[:, 0]
    columns = {
        "volume": np.arange(len(path)),
        "distance": np.linalg.norm(np.diff(path, axis=0, prepend=path[:1]), axis=1).cumsum(),
        "log_density": density - density.max(),
        "nearest_source_row": source_row[nearest],
    }
    return pd.DataFrame(columns | {f"z{axis}": values for axis, values in enumerate(path.T)})


def length(z: Float[np.ndarray, "n Z"]) -> float:
    """Sum of the steps of a path."""
    return float(np.linalg.norm(np.diff(z, axis=0), axis=1).sum())
