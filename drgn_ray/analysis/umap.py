"""UMAP of the latents (McInnes et al. 2018), by the optional package ``umap-learn``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from drgn_ray.analysis.latent_space import drawn
from drgn_ray.errors import ResourceError

UMAP_FILE = "umap.csv"
MOST_EMBEDDED = 100_000


def check_umap() -> None:
    """Refuse where the package is not installed."""
    if find_spec("umap") is None:
        raise ResourceError("--umap", "umap-learn is not installed", "type `pip install umap-learn`, or leave it out")


def write_umap(folder: Path, source_row: Int[np.ndarray, " N"], coordinates: Float[np.ndarray, "N 2"]) -> None:
    """Write ``umap.csv``: source_row, umap1, umap2 of the particles that have coordinates."""
    there = ~np.isnan(coordinates[:, 0])
    columns = {"source_row": source_row[there], "umap1": coordinates[there, 0], "umap2": coordinates[there, 1]}
    pd.DataFrame(columns).to_csv(folder / UMAP_FILE, index=False, float_format="%.6g")


def umap(z: Float[np.ndarray, "N Z"], seed: int = 0) -> Float[np.ndarray, "N 2"]:
    """Coordinates of at most 100,000 particles, drawn at random; those of the others are NaN."""
    from umap import UMAP

    rows = drawn(len(z), MOST_EMBEDDED)
    coordinates = np.full((len(z), 2), np.nan, np.float32)
    coordinates[rows] = UMAP(n_neighbors=min(15, len(rows) - 1), random_state=seed).fit_transform(z[rows])
    return coordinates
