"""Which particles support a state: all of them, those of a k-means cluster, or the neighbours of a latent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int

from drgn_ray.analysis.selection import in_clusters, newest_labels
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.training.embed import Latents, latents_of
from drgn_ray.training.run_directory import RunDirectory

LEAST_NEIGHBORS = 200
NEIGHBOR_SHARE = 0.05


class State(NamedTuple):
    """A state and the particles that support it.

    Attributes
    ----------
    name
        Names its folder; empty for the consensus.
    weight
        How much each image of the store counts.
    z
        Latent at which the network decodes the state; None for the consensus.
    """

    name: str
    weight: Float32[np.ndarray, " N"]
    z: Float[np.ndarray, " Z"] | None = None


def all_particles(num_images: int) -> State:
    """Make the state that every image supports."""
    return State("", np.ones(num_images, np.float32))


def states_of_clusters(
    run: RunDirectory, source_row: Int[np.ndarray, " N"], clusters: str, ksample: int | None
) -> list[State]:
    """States of k-means clusters of the newest analysis, decoded at their centres' particles.

    Parameters
    ----------
    clusters
        Numbers as 3,7; or "all".
    """
    labels_file = newest_labels(run, ksample)
    centres = np.loadtxt(labels_file.with_name("centers_ind.txt"), dtype=np.int64, ndmin=1)
    if clusters == "all":
        clusters = ",".join(map(str, np.unique(pd.read_csv(labels_file)["label"])))
    in_clusters(labels_file, clusters)  # are they clusters?
    z = latents_of(run).of(centres)
    return [
        State(
            f"cluster_{number:02d}",
            np.isin(source_row, in_clusters(labels_file, str(number))).astype(np.float32),
            z[number],
        )
        for number in dict.fromkeys(map(int, clusters.split(",")))  # each once
    ]


def usual_neighbors(count: int) -> int:
    """How many of so many latents support a state, if it is not said."""
    return min(max(round(NEIGHBOR_SHARE * count), LEAST_NEIGHBORS), count)


def states_near_particles(
    latents: Latents, source_row: Int[np.ndarray, " N"], particles: Int[np.ndarray, " n"], neighbors: int | None
) -> list[State]:
    """States of the neighbours of particles, named by their rows of the source table, in the latent space."""
    particles = np.unique(particles)
    return [
        State(f"particle_{row}", _neighborhood(latents, source_row, z, neighbors), z)
        for row, z in zip(particles, latents.of(particles), strict=True)
    ]


def state_near_latent(
    latents: Latents, source_row: Int[np.ndarray, " N"], z: Float[np.ndarray, " Z"], neighbors: int | None
) -> State:
    """Make the state of the neighbours of a latent."""
    if len(z) != latents.z.shape[1]:
        raise ConfigError("-z", f"it has {len(z)} numbers", f"pass {latents.z.shape[1]}, as the run has dimensions")
    return State("latent", _neighborhood(latents, source_row, z, neighbors), z)


def _neighborhood(
    latents: Latents, source_row: Int[np.ndarray, " N"], z: Float[np.ndarray, " Z"], neighbors: int | None
) -> Float32[np.ndarray, " N"]:
    """Weights that fall as 1 - (distance / distance of the next one beyond)², Epanechnikov's kernel."""
    count = len(latents.z)
    if neighbors is None:
        neighbors = usual_neighbors(count)
    if not 1 < neighbors <= count:
        raise ConfigError(f"--neighbors {neighbors}", f"the run has {count:,} latents", f"pass 2 to {count}")
    distance = np.linalg.norm(latents.z - z, axis=1)
    farthest = np.partition(distance, min(neighbors, count - 1))[min(neighbors, count - 1)]  # the first that has none
    weight = np.maximum(1 - (distance / max(farthest, 1e-12)) ** 2, 0)
    found = np.searchsorted(latents.source_row, source_row)
    if not np.array_equal(latents.source_row[np.minimum(found, count - 1)], source_row):
        raise RunError(
            "latents.npz", "it is of other particles than the run's store", "type `drgn-ray embed` on the run"
        )
    return weight[found].astype(np.float32)
