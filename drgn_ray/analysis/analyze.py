"""The standard analysis of a run: ``analyze.N/`` with PCA, k-means and their volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from drgn_ray.analysis.figures import learning_curve, pca_figure
from drgn_ray.analysis.latent_space import Clusters, PrincipalComponents, cluster, principal_components
from drgn_ray.analysis.paths import along_component
from drgn_ray.training.checkpoint import Position
from drgn_ray.training.embed import Latents

VOLUMES_ALONG_PC = 10


@dataclass(frozen=True)
class Analysis:
    """What was found, and where its files are.

    Attributes
    ----------
    volumes
        Folders that are to hold volumes, and their latents.
    """

    folder: Path
    pca: PrincipalComponents
    clusters: Clusters
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
    pca, clusters = principal_components(latents.z), cluster(latents.z, ksample)
    pca_figure(pca, clusters).savefig(folder / "z_pca.png", dpi=150)
    if any("train_epoch/loss" in line for line in position.history):  # a subspace is fitted at once
        learning_curve(position.history).savefig(folder / "learning_curve.png", dpi=150)
    kmeans_folder = folder / f"kmeans{len(clusters.particles)}"
    kmeans_folder.mkdir(exist_ok=True)
    pd.DataFrame({"source_row": latents.source_row, "label": clusters.labels}).to_csv(
        kmeans_folder / "labels.csv", index=False
    )
    np.savetxt(kmeans_folder / "centers.txt", latents.z[clusters.particles])
    np.savetxt(kmeans_folder / "centers_ind.txt", latents.source_row[clusters.particles], fmt="%d")
    volumes = {kmeans_folder: latents.z[clusters.particles]}
    for component in range(num_pcs):
        along = along_component(latents.z, pca, component, VOLUMES_ALONG_PC)
        volumes[folder / f"pc{component + 1}"] = along
    return Analysis(folder, pca, clusters, kmeans_folder, volumes)
