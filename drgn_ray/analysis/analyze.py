"""The standard analysis of a run: ``analyze.N/`` with PCA, k-means, discrete states and their volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from jaxtyping import Float, Int, Shaped
from pyarrow import csv

from drgn_ray.analysis.figures import dimensions_figure, learning_curve, mixture_figure, pca_figure
from drgn_ray.analysis.latent_space import (
    Clusters,
    Mixture,
    PrincipalComponents,
    cluster,
    mixture,
    principal_components,
)
from drgn_ray.analysis.paths import along_component
from drgn_ray.models.elbo import kl_divergence
from drgn_ray.training.checkpoint import Position
from drgn_ray.training.embed import Latents
from drgn_ray.training.loop import ACTIVE_NATS

VOLUMES_ALONG_PC = 10


@dataclass(frozen=True)
class Analysis:
    """What was found, and where its files are.

    Attributes
    ----------
    source_rows
        Rows of the source table of the particles at the k-means centres.
    volumes
        Folders that are to hold volumes, and their latents.
    """

    folder: Path
    pca: PrincipalComponents
    clusters: Clusters
    mixture: Mixture
    source_rows: Int[np.ndarray, " K"]
    kmeans_folder: Path
    volumes: Mapping[Path, Float[np.ndarray, "n Z"]]


def analyze(latents: Latents, position: Position, folder: Path, *, ksample: int, num_pcs: int) -> Analysis:
    """Write the analysis of a run's latents, all but the volumes.

    Parameters
    ----------
    folder
        ``analyze.N``; its files keep cryoDRGN's names.
    ksample
        Number of k-means clusters, each with a volume.
    num_pcs
        Principal components along which there are volumes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pca, clusters, states = principal_components(latents.z), cluster(latents.z, ksample), mixture(latents.z)
    pca_figure(pca, clusters).savefig(folder / "z_pca.png", dpi=150)
    mixture_figure(pca, states).savefig(folder / "z_gmm.png", dpi=150)
    mean, logvar = (torch.from_numpy(each).double() for each in (latents.z, latents.z_logvar))
    divergence = kl_divergence(mean, logvar).mean(dim=0).numpy()
    dimensions_figure(divergence).savefig(folder / "latent_dimensions.png", dpi=150)
    pd.DataFrame(
        {
            "dimension": [f"z{axis}" for axis in range(len(divergence))],
            "kl_nats": divergence,
            "variance": latents.z.var(axis=0),
            "is_active": divergence > ACTIVE_NATS,
        }
    ).to_csv(folder / "latent_dimensions.csv", index=False, float_format="%.6g")
    if any("train_epoch/loss" in line for line in position.history):  # a subspace is fitted at once
        learning_curve(position.history).savefig(folder / "learning_curve.png", dpi=150)
    kmeans_folder = folder / f"kmeans{len(clusters.particles)}"
    _write_labels(kmeans_folder, latents, clusters.particles, {"label": clusters.labels})
    gmm_folder = folder / f"gmm{len(states.particles)}"
    _write_labels(gmm_folder, latents, states.particles, {"label": states.labels, "probability": states.probability})
    volumes = {kmeans_folder: latents.z[clusters.particles], gmm_folder: latents.z[states.particles]}
    for component in range(num_pcs):
        along = along_component(latents.z, pca, component, VOLUMES_ALONG_PC)
        volumes[folder / f"pc{component + 1}"] = along
    return Analysis(folder, pca, clusters, states, latents.source_row[clusters.particles], kmeans_folder, volumes)


def _write_labels(
    folder: Path, latents: Latents, centres: Int[np.ndarray, " K"], columns: Mapping[str, Shaped[np.ndarray, " N"]]
) -> None:
    folder.mkdir(exist_ok=True)
    table = pa.table({"source_row": latents.source_row, **columns})
    csv.write_csv(
        table, folder / "labels.csv", csv.WriteOptions(quoting_style="none")
    )  # pandas takes seconds a million
    np.savetxt(folder / "centers.txt", latents.z[centres])
    np.savetxt(folder / "centers_ind.txt", latents.source_row[centres], fmt="%d")
