"""Choosing particles: by k-means cluster, or by a box or a lasso in the latent space; results are source rows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int
from matplotlib.path import Path as Polygon

from drgn_ray.analysis.latent_space import principal_components
from drgn_ray.analysis.umap import UMAP_FILE
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.training.embed import Latents, latents_of
from drgn_ray.training.run_directory import RunDirectory

_RANGE = re.compile(r"z(\d+):([^:]*):([^:]*)")


def newest_labels(run: RunDirectory, ksample: int | None) -> Path:
    """Find the k-means labels of a run's newest analysis (with so many clusters, where there are several)."""
    newest = run.newest(f"kmeans{ksample or '*'}/labels.csv")
    if not newest:
        wanted = "" if ksample is None else f" --ksample {ksample}"
        raise RunError(str(run.path), "it has no k-means labels", f"type `drgn-ray analyze {run.path}{wanted}` first")
    if len(newest) > 1:
        numbers = ", ".join(sorted(path.parent.name.removeprefix("kmeans") for path in newest))
        raise ConfigError("--clusters", f"the analysis has k-means of {numbers} clusters", "pass --ksample with one")
    return newest[0]


def in_clusters(labels_file: Path, clusters: str) -> Int[np.ndarray, " n"]:
    """Source rows of the particles in some clusters, written as 3,7."""
    try:
        wanted = [int(word) for word in clusters.split(",")]
    except ValueError as error:
        raise ConfigError(f"--clusters {clusters}", "these are no numbers", "pass them as 3,7") from error
    try:
        table = pd.read_csv(labels_file)
        labels, source_row = table["label"].to_numpy(np.int64), table["source_row"].to_numpy(np.int64)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            str(labels_file),
            f"this is no table with source_row and label ({error})",
            "pass the labels.csv of a k-means",
        ) from error
    unknown = sorted(set(wanted) - set(labels.tolist()))
    if unknown:
        raise ConfigError(
            f"--clusters {clusters}",
            f"{labels_file} has no cluster {unknown[0]}",
            f"pass numbers from {labels.min()} to {labels.max()}",
        )
    return source_row[np.isin(labels, wanted)]


def in_box(latents: Latents, box: str) -> Int[np.ndarray, " n"]:
    """Source rows of the particles in a box of the latent space, written as z0:-1:0.5,z2::3 (an end may be open)."""
    inside = np.ones(len(latents.z), bool)
    for word in box.split(","):
        match = _RANGE.fullmatch(word.strip())
        try:
            if match is None:
                raise ValueError(f"{word!r} is no range")
            low, high = (float(end) if end else None for end in match.groups()[1:])
        except ValueError as error:
            raise ConfigError(f"--latent-box {box}", str(error), "pass ranges as z0:-1:0.5,z2::3") from error
        axis = int(match.group(1))
        if axis >= latents.z.shape[1]:
            raise ConfigError(
                f"--latent-box {box}", f"z has {latents.z.shape[1]} dimensions", f"pass z0 to z{latents.z.shape[1] - 1}"
            )
        inside &= (latents.z[:, axis] >= (-np.inf if low is None else low)) & (
            latents.z[:, axis] <= (np.inf if high is None else high)
        )
    return latents.source_row[inside]


def in_lasso(run: RunDirectory, lasso: str) -> Int[np.ndarray, " n"]:
    """Source rows of the particles in a polygon, written as the explorer does: pc1,pc2@5000:0.1,0.2:0.3,0.2:0.2,0.5.

    The number after @, which may be left out, says after how many images of training the polygon was drawn: around
    other latents it is refused.  Coordinates are of the latent (z0), of its principal components (pc1), or UMAP's
    (umap1), which a run has after ``analyze --umap`` for as many particles as UMAP embedded.
    """
    axes, *corners = lasso.split(":")
    axes, _, drawn_after = axes.partition("@")
    names = axes.split(",")
    try:
        polygon = np.array([[float(number) for number in corner.split(",")] for corner in corners])
        if len(names) != 2 or len(polygon) < 3 or polygon.shape[1] != 2:
            raise ValueError(f"{len(names)} axes, {len(polygon)} corners")
    except ValueError as error:
        raise ConfigError(
            "--lasso", f"{lasso[:40]!r} is no polygon ({error})", "pass it as pc1,pc2:0,0:2,0:1,3"
        ) from error
    latents = latents_of(run)
    if drawn_after not in ("", str(latents.images_seen)):
        found = f"it was drawn after {drawn_after} images of training, and the latents are of {latents.images_seen}"
        raise ConfigError("--lasso", found, "draw it again in the explorer of the newest analysis")
    table = _coordinates(run, latents)
    for name in names:
        if name not in table:
            raise ConfigError("--lasso", f"{run.path} has no {name}", f"pass two of {', '.join(table.columns[1:])}")
    inside = Polygon(polygon).contains_points(table[names])
    return table["source_row"].to_numpy()[inside]


def _coordinates(run: RunDirectory, latents: Latents) -> pd.DataFrame:
    pca = principal_components(latents.z)
    columns = {f"z{axis}": values for axis, values in enumerate(latents.z.T)}
    columns |= {f"pc{axis + 1}": values for axis, values in enumerate(pca.scores.T)}
    table = pd.DataFrame({"source_row": latents.source_row, **columns})
    embedded = run.newest(UMAP_FILE)
    return table.merge(pd.read_csv(embedded[-1]), how="left") if embedded else table


def row_numbers(particles: str, flag: str) -> Int[np.ndarray, " n"]:
    """Rows of the source table, written as 0,17,1204 after a flag."""
    try:
        return np.array([int(word) for word in particles.split(",")])
    except ValueError as error:
        raise ConfigError(f"{flag} {particles}", "these are no row numbers", "pass them as 0,17,1204") from error
