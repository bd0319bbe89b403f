"""Whether trained runs of the same particles tell the same story: by their latents, and by the volumes they decode.

>>> found = compare_runs([load_run("runs/a"), load_run("runs/b")])          # doctest: +SKIP
>>> found.table(), found.volumes["a", "b"].difference_correlation           # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.linalg import orth
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score, r2_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors

from drgn_ray.analysis.agreement import FOLDS
from drgn_ray.analysis.latent_space import cluster, drawn
from drgn_ray.analysis.run import TrainedRun
from drgn_ray.analysis.support import common_mask
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.physics.fsc import HALF, fourier_shell_correlation, resolution
from drgn_ray.physics.volume import Finish
from drgn_ray.progress import Progress
from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.embed import trained_epochs, trained_zdim

MOST_PARTICLES, LEAST_PARTICLES = 20_000, 100  # whose latents are compared
NEIGHBORS, NUM_CLUSTERS, NUM_PERMUTATIONS, QUANTILE = 20, 10, 100, 0.99
CLEAR = 0.9  # canonical correlation of a dimension that agrees, and not only more than by chance
SAME, ANOTHER, DIFFERENCES = "same particle", "another particle", "differences from the mean"
_OF_COURSE = {"kind", "step", "epoch"}  # in the history, and no metrics

Volume = Float[np.ndarray, "D D D"]
Decode = Callable[[Sequence[TrainedRun], Sequence[Float[np.ndarray, "n Z"]], Finish], Sequence[Sequence[Volume]]]


class LatentView(NamedTuple):
    """What the latents of a run are compared by.

    Attributes
    ----------
    basis
        Orthonormal, of the space that the latents' dimensions span, less their means.
    near
        Rows of the nearest neighbours of each particle, itself not among them.
    labels, labels_again
        k-means cluster of each, and of a k-means with another seed.
    """

    z: Float[np.ndarray, "N Z"]
    basis: Float[np.ndarray, "N rank"]
    near: Int[np.ndarray, "N K"]
    labels: Int[np.ndarray, " N"]
    labels_again: Int[np.ndarray, " N"]


class LatentAgreement(NamedTuple):
    """How far the latents of two runs say the same of the same particles.

    Attributes
    ----------
    canonical
        Canonical correlations, falling: 1 for every dimension that is a linear function of the other run's latents.
    permuted
        The largest canonical correlation is below this in 99% of random pairings of the particles.
    second_from_first, first_from_second
        R² of one run's latents predicted linearly from the other's, weighted by variance, cross-validated.
    neighbors, neighbors_by_chance
        Share of a particle's nearest neighbours that are the same in both runs.
    rand_index, rand_index_of_itself
        Adjusted Rand index of both k-means (Hubert and Arabie 1985), 0 by chance and 1 for the same clusters; and of
        two k-means of the same latents with other seeds, mean of both runs.
    """

    canonical: Float[np.ndarray, " n"]
    permuted: float
    second_from_first: float
    first_from_second: float
    neighbors: float
    neighbors_by_chance: float
    rand_index: float
    rand_index_of_itself: float

    def count_above(self, least: float) -> int:
        """Canonical correlations above a number, and above what permuted particles give."""
        return int((self.canonical > max(least, self.permuted)).sum())


class VolumeAgreement(NamedTuple):
    """How far the volumes of two runs agree at the same particles.

    Attributes
    ----------
    curves
        FSC, means over the particles: of both runs' volumes of the `SAME` particle; of one run's with the other's of
        `ANOTHER` (what is simply the same molecule); and of their `DIFFERENCES` from each run's mean volume.
    difference_correlation, permuted
        Pearson correlation of those differences over all voxels of all particles; it is below `permuted` in 99% of
        random pairings of the particles.
    """

    curves: Mapping[str, Float[np.ndarray, " shells"]]
    difference_correlation: float
    permuted: float


@dataclass(frozen=True)
class RunAgreement:
    """What a comparison found; pairs are of the runs' names.

    Attributes
    ----------
    runs
        One row a run.
    source_rows
        Of the particles whose volumes were compared.
    num_particles, num_compared
        Of both runs, and of which latents were compared.
    apix
        Å/px of the volumes.
    """

    runs: pd.DataFrame
    latents: Mapping[tuple[str, str], LatentAgreement]
    volumes: Mapping[tuple[str, str], VolumeAgreement]
    source_rows: Int[np.ndarray, " n"]
    num_particles: int
    num_compared: int
    box_size: int
    apix: float

    def resolution(self, pair: tuple[str, str], curve: str) -> float:
        """Å at which a mean curve of a pair falls below 0.5."""
        return resolution(self.volumes[pair].curves[curve], self.box_size, self.apix, HALF)

    def table(self) -> pd.DataFrame:
        """One row a pair, the numbers that say most."""
        rows = []
        for pair, of_latents in self.latents.items():
            of_volumes = self.volumes[pair]
            rows.append(
                {
                    "first": pair[0],
                    "second": pair[1],
                    "dimensions": len(of_latents.canonical),
                    "dimensions_above_permuted": of_latents.count_above(0),
                    "dimensions_above_0.9": of_latents.count_above(CLEAR),
                    "r2_second_from_first": of_latents.second_from_first,
                    "r2_first_from_second": of_latents.first_from_second,
                    "neighbors": of_latents.neighbors,
                    "rand_index": of_latents.rand_index,
                    "rand_index_of_itself": of_latents.rand_index_of_itself,
                    "resolution_0.5": self.resolution(pair, SAME),
                    "resolution_0.5_of_another": self.resolution(pair, ANOTHER),
                    "differences_resolution_0.5": self.resolution(pair, DIFFERENCES),
                    "differences": of_volumes.difference_correlation,
                    "differences_permuted": of_volumes.permuted,
                }
            )
        return pd.DataFrame(rows)


def latent_view(z: Float[np.ndarray, "N Z"]) -> LatentView:
    """Prepare the latents of a run for comparisons."""
    z = z.astype(np.float64)
    near = NearestNeighbors(n_neighbors=NEIGHBORS).fit(z).kneighbors(return_distance=False)
    labels, again = (cluster(z, NUM_CLUSTERS, seed).labels for seed in (0, 1))
    return LatentView(z, orth(z - z.mean(axis=0)), near, labels, again)


def canonical_correlations(first: LatentView, second: LatentView) -> Float[np.ndarray, " n"]:
    """Cosines of the angles between the spaces that latents span (Björck and Golub 1973), falling."""
    return np.linalg.svd(first.basis.T @ second.basis, compute_uv=False)


def latent_agreement(first: LatentView, second: LatentView) -> LatentAgreement:
    """Compare the latents of two runs, whose rows are the same particles."""
    rng, count = np.random.default_rng(0), len(first.z)
    permuted = [
        canonical_correlations(first, second._replace(basis=rng.permutation(second.basis)))[:1].sum()
        for _ in range(NUM_PERMUTATIONS)
    ]
    of_itself = [adjusted_rand_score(each.labels, each.labels_again) for each in (first, second)]
    shared = (first.near[:, :, None] == second.near[:, None, :]).sum()
    return LatentAgreement(
        canonical=canonical_correlations(first, second),
        permuted=float(np.quantile(permuted, QUANTILE)),
        second_from_first=_predicted(first.z, second.z),
        first_from_second=_predicted(second.z, first.z),
        neighbors=float(shared / first.near.size),
        neighbors_by_chance=NEIGHBORS / (count - 1),
        rand_index=float(adjusted_rand_score(first.labels, second.labels)),
        rand_index_of_itself=float(np.mean(of_itself)),
    )


def _predicted(z: Float[np.ndarray, "N Z"], other: Float[np.ndarray, "N Y"]) -> float:
    predicted = cross_val_predict(LinearRegression(), z, other, cv=FOLDS)
    return float(r2_score(other, predicted, multioutput="variance_weighted"))


def volume_agreement(
    first: Sequence[Volume],
    second: Sequence[Volume],
    mask: Volume,
    progress: Callable[[int], None] = lambda count: None,
) -> VolumeAgreement:
    """Compare the volumes of two runs, which are of the same particles in the same order.

    Another particle is the one half the list away: the list goes along the landscape, and neighbours are alike.
    """
    count, mask = len(first), mask.astype(np.float64)
    mean_first, mean_second = _mean(first) * mask, _mean(second) * mask
    curves: dict[str, list[Float[np.ndarray, " shells"]]] = {SAME: [], ANOTHER: [], DIFFERENCES: []}
    for index in range(count):
        volume, same = first[index] * mask, second[index] * mask
        another = second[(index + count // 2) % count] * mask
        curves[SAME].append(fourier_shell_correlation(volume, same))
        curves[ANOTHER].append(fourier_shell_correlation(volume, another))
        curves[DIFFERENCES].append(fourier_shell_correlation(volume - mean_first, same - mean_second))
        progress(1)
    # Row i and column j: of particle i in the first run and j in the second.  The differences of all particles add up
    # to 0, so that their sums are Pearson's.
    changes, its_changes = _differences(first, mask), _differences(second, mask)
    norm = max(float(np.linalg.norm(changes)) * float(np.linalg.norm(its_changes)), float(np.finfo(np.float32).tiny))
    correlations = (changes @ its_changes.T).astype(np.float64) / norm
    rng = np.random.default_rng(0)
    permuted = [correlations[np.arange(count), rng.permutation(count)].sum() for _ in range(NUM_PERMUTATIONS)]
    means = {name: np.mean(rows, axis=0) for name, rows in curves.items()}
    return VolumeAgreement(means, float(np.trace(correlations)), float(np.quantile(permuted, QUANTILE)))


def _differences(volumes: Sequence[Volume], mask: Volume) -> Float[np.ndarray, "n V"]:
    """Volumes less their mean, where the mask is anything."""
    inside = mask > 0
    weighted = np.stack([(volume[inside] * mask[inside]).astype(np.float32) for volume in volumes])
    return weighted - weighted.mean(axis=0)


def _mean(volumes: Sequence[Volume]) -> Volume:
    """Add up one by one, since all of them may be more than memory holds."""
    return np.asarray(sum(volumes) / len(volumes))


def decode_here(
    runs: Sequence[TrainedRun], latents: Sequence[Float[np.ndarray, "n Z"]], finish: Finish
) -> list[list[Volume]]:
    """Decode latents of several runs in this process."""
    return [[finish(run.decode(each), run.apix) for each in z] for run, z in zip(runs, latents, strict=True)]


def compare_runs(runs: Sequence[TrainedRun], num_volumes: int = 8, decode: Decode = decode_here) -> RunAgreement:
    """Compare every pair of some runs of the same particles.

    Parameters
    ----------
    num_volumes
        Particles at whose latents volumes are compared: those nearest to the k-means centres of the first run.
    decode
        Makes the volumes of each run's latents.

    Raises
    ------
    UserError
        They cannot be compared, see `check_comparable`.
    """
    check_comparable(runs, num_volumes)
    everyone = one_image_a_particle(runs[0].particles.columns)
    source_rows = everyone[drawn(len(everyone), MOST_PARTICLES)]
    names = _names(runs)
    latents = _compare_latents(names, [run.latents.of(source_rows) for run in runs])
    chosen = source_rows[cluster(runs[0].latents.of(source_rows), num_volumes).particles]
    smallest = min((run.particles.info for run in runs), key=lambda info: info.box_size)
    decoded = decode(runs, [run.latents.of(chosen) for run in runs], Finish(box_size=smallest.box_size))
    mask = _mask_of(decoded, smallest.apix)
    return RunAgreement(
        runs=_table_of(runs, names, [_variation(volumes, mask) for volumes in decoded]),
        latents=latents,
        volumes=_compare_volumes(names, decoded, mask),
        source_rows=chosen,
        num_particles=len(everyone),
        num_compared=len(source_rows),
        box_size=smallest.box_size,
        apix=smallest.apix,
    )


def _compare_latents(
    names: Sequence[str], latents: Sequence[Float[np.ndarray, "N _"]]
) -> dict[tuple[str, str], LatentAgreement]:
    views: dict[str, LatentView] = {}
    pairs = list(combinations(names, 2))
    with Progress("latents", len(names) + len(pairs), "runs and pairs") as progress:
        for name, z in zip(names, latents, strict=True):
            views[name] = latent_view(z)
            progress.update(1)
        found = {}
        for pair in pairs:
            found[pair] = latent_agreement(views[pair[0]], views[pair[1]])
            progress.update(1)
    return found


def _compare_volumes(
    names: Sequence[str], decoded: Sequence[Sequence[Volume]], mask: Volume
) -> dict[tuple[str, str], VolumeAgreement]:
    of_run, pairs = dict(zip(names, decoded, strict=True)), list(combinations(names, 2))
    with Progress("volumes", len(pairs) * len(decoded[0]), "volumes") as progress:
        return {
            (first, second): volume_agreement(of_run[first], of_run[second], mask, progress.update)
            for first, second in pairs
        }


def _mask_of(decoded: Sequence[Sequence[Volume]], apix: float) -> Volume:
    """Make one mask for all runs, whose grey values depend on the box size of their images."""
    means = [_mean(volumes) for volumes in decoded]
    scales = [float(np.std(mean)) for mean in means]
    scaled = (volume / scale for scale, volumes in zip(scales, decoded, strict=True) for volume in volumes)
    return common_mask(scaled, means[0] / scales[0], apix)


def check_comparable(runs: Sequence[TrainedRun], num_volumes: int) -> None:
    """Refuse runs of different particles, without latents, or of too few particles; and a wrong number of volumes."""
    assert len(runs) > 1
    first, *others = runs
    for run in others:
        mine, its = first.particles.info, run.particles.info
        both = f"{first.directory.path} and {run.directory.path}"
        if mine.table_sha256 != its.table_sha256:
            raise RunError(
                both,
                f"they are of different particles ({first.particles.path} and {run.particles.path})",
                "pass runs of the same table and selection",
            )
        extents = [info.box_size * info.apix for info in (mine, its)]
        if not np.isclose(*extents, rtol=0.01):
            found = f"their boxes are {extents[0]:.4g} and {extents[1]:.4g} Å wide"
            raise RunError(both, found, "train them on stores that were converted from images of the same size")
    for run in runs:
        if not trained_zdim(run.directory, run.config, run.particles):
            found = "it has one volume and no latents"
            raise RunError(str(run.directory.path), found, "compare such maps by `drgn-ray fsc`")
    particles = one_image_a_particle(first.particles.columns)
    count = len(particles)
    if count < LEAST_PARTICLES:
        found = f"it has {count} particles"
        raise RunError(str(first.directory.path), found, f"pass runs of {LEAST_PARTICLES} particles or more")
    most = min(count, MOST_PARTICLES)
    if not 2 <= num_volumes <= most:
        found = f"latents of {most:,} particles are compared"
        raise ConfigError(f"--num-volumes {num_volumes}", found, "pass a number from 2 up to that")
    for run in runs:
        run.latents.of(particles)  # are they there, and of the newest checkpoint?


def one_image_a_particle(columns: Mapping[str, np.ndarray]) -> Int[np.ndarray, " n"]:
    """Source rows in order, of tilt series one a particle: their images would be neighbours in any latent space."""
    return np.sort(columns["source_row"][np.unique(columns["particle"], return_index=True)[1]])


def _names(runs: Sequence[TrainedRun]) -> list[str]:
    """Names of the directories, numbered where they are not different."""
    names = [run.directory.path.name for run in runs]
    if len(set(names)) == len(names):
        return names
    return [f"{name}_{number}" for number, name in enumerate(names, start=1)]


def _variation(volumes: Sequence[Volume], mask: Volume) -> float:
    """Divide the standard deviation of the particles' volumes by the root mean square of their mean."""
    mean = _mean(volumes) * mask
    squares = [np.square(volume * mask - mean).mean(dtype=np.float64) for volume in volumes]
    return float(np.sqrt(np.mean(squares) / np.square(mean).mean(dtype=np.float64)))


def _table_of(runs: Sequence[TrainedRun], names: Sequence[str], variation: Sequence[float]) -> pd.DataFrame:
    """Make one row a run: what it is, and the metrics that all runs have."""
    about, metrics = [], []
    for run, name, varies in zip(runs, names, variation, strict=True):
        history = load_position(run.directory.checkpoints).history
        last = history[-1] if history else {}
        about.append(
            {
                "run": name,
                "path": str(run.directory.path),
                "model": run.config.model.model,
                "zdim": run.latents.z.shape[1],
                "epochs": trained_epochs(run.directory, run.config, run.particles),
                "particles": len(run.particles),
                "seconds": last.get("perf/total_seconds", np.nan),
                "variation": varies,
            }
        )
        metrics.append({key: value for key, value in last.items() if key not in _OF_COURSE and "perf/" not in key})
    table = pd.DataFrame(metrics)
    everywhere = [name for name in table if name == "val/loss" or not np.isnan(table[name]).any()]
    return pd.concat([pd.DataFrame(about), table[everywhere]], axis=1)
