"""Pictures: each function returns a matplotlib figure or an array of grey values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from drgn_ray.analysis.latent_space import Clusters, PrincipalComponents


def slice_montage(volume: Float[np.ndarray, "D D D"], num_slices: int = 8) -> UInt8[np.ndarray, "h w"]:
    """Evenly spaced z slices in two rows, grey from 0 (and below) to the 99.95th percentile."""
    size = volume.shape[0]
    positions = np.linspace(0.2 * size, 0.8 * size, num_slices).astype(int)
    rows = np.array_split(volume[positions], 2)
    tiled = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    grey = np.clip(tiled / max(float(np.percentile(volume, 99.95)), 1e-12), 0, 1)
    enlarge = max(1, 128 // size)
    return np.kron((255 * grey).astype(np.uint8), np.ones((enlarge, enlarge), np.uint8))


def pca_figure(pca: PrincipalComponents, clusters: Clusters) -> Figure:
    """Density of the particles in the first two principal components, with the numbered k-means centres."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    x = pca.scores[:, 0]
    y = pca.scores[:, 1] if pca.scores.shape[1] > 1 else np.zeros_like(x)
    shown = axes.hexbin(x, y, gridsize=60, bins="log", cmap="Blues", linewidths=0.1)
    figure.colorbar(shown, ax=axes, label="particles")
    axes.scatter(x[clusters.particles], y[clusters.particles], s=22, color="crimson", edgecolor="white", linewidth=0.6)
    for number, particle in enumerate(clusters.particles):
        axes.annotate(str(number), (x[particle], y[particle]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel(f"PC1 ({pca.variance_share[0]:.0%} of the variance)")
    axes.set_ylabel(f"PC2 ({pca.variance_share[1]:.0%})" if len(pca.variance_share) > 1 else "")
    axes.set_title(f"{len(x):,} particles; numbers are k-means volumes")
    return figure


def learning_curve(history: Sequence[dict[str, float]]) -> Figure:
    """Loss of training and validation, and the KL divergence, by epoch."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in history]
    for name, label in (("train_epoch", "training"), ("val", "held out")):
        if history and f"{name}/loss" in history[0]:
            left.plot(epochs, [line[f"{name}/loss"] for line in history], marker=".", label=label)
            right.plot(epochs, [line[f"{name}/kld"] for line in history], marker=".", label=label)
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="KL divergence, nats")
    left.legend()
    return figure
