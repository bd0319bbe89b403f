"""The standard analysis of a run: ``analyze.N/`` with PCA, k-means and their volumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from drgn_ray.analysis.figures import learning_curve, pca_figure
from drgn_ray.analysis.latent_space import Clusters, PrincipalComponents, cluster, principal_components
from drgn_ray.analysis.volumes import decode_to_folder
from drgn_ray.models.model import Model
from drgn_ray.particles.store import StoreInfo
from drgn_ray.training.checkpoint import Position
from drgn_ray.training.embed import Latents

VOLUMES_ALONG_PC = 10


@dataclass(frozen=True)
class Analysis:
    """What was found, and where its files are."""

    folder: Path
    pca: PrincipalComponents
    clusters: Clusters
    kmeans_folder: Path


def analyze(
    latents: Latents, model: Model, info: StoreInfo, position: Position, folder: Path, *, ksample: int, num_pcs: int
) -> Analysis:
    """Write the analysis of a run's latents.

    Parameters
    ----------
    folder
        ``analyze.N``; its files keep cryoDRGN's names.
    ksample
        Number of k-means clusters, each with a volume.
    num_pcs
        Principal components along which volumes are decoded, 5th to 95th percentile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pca, clusters = principal_components(latents.z), cluster(latents.z, ksample)
    pca_figure(pca, clusters).savefig(folder / "z_pca.png", dpi=150)
    if any("train_epoch/loss" in line for line in position.history):  # a subspace is fitted at once
        learning_curve(position.history).savefig(folder / "learning_curve.png", dpi=150)
    kmeans_folder = folder / f"kmeans{len(clusters.particles)}"
    decode_to_folder(model, latents.z[clusters.particles], info, kmeans_folder)
    pd.DataFrame({"source_row": latents.source_row, "label": clusters.labels}).to_csv(
        kmeans_folder / "labels.csv", index=False
    )
    np.savetxt(kmeans_folder / "centers.txt", latents.z[clusters.particles])
    np.savetxt(kmeans_folder / "centers_ind.txt", latents.source_row[clusters.particles], fmt="%d")
    for component in range(num_pcs):
        decode_to_folder(model, _along(latents.z, pca, component), info, folder / f"pc{component + 1}")
    return Analysis(folder, pca, clusters, kmeans_folder)


def _along(z: np.ndarray, pca: PrincipalComponents, component: int) -> np.ndarray:
    """Latents on a straight line along a component through the mean."""
    low, high = np.percentile(pca.scores[:, component], (5, 95))
    return z.mean(axis=0) + np.linspace(low, high, VOLUMES_ALONG_PC)[:, None] * pca.axes[component]
