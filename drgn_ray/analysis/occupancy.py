"""How much of a region is there, in every volume of a sketch: the question of MAVEn (Kinman et al., Nat. Protoc. 2023).

The mean density of a region is set between two levels of the same volume, so that neither an offset nor the contrast of
a volume counts: 0 is the mean of the solvent (what is outside of the molecule, and in the sphere of the box), 1 is the
mean of the core, which is always there (voxels whose mean less two standard deviations over the sketch reaches half of
the 99.99th percentile of that).  This *relative density* also depends on how tight the region's mask is, and on what it
holds.  So it is divided by its 95th percentile over the sketch:

    occupancy = (region - solvent) / (core - solvent), divided by the 95th percentile of that

is 0 where the region is as empty as the solvent, and 1 where it is as dense as in the volumes that have most of it.  It
is not cut at 0 and 1.  What it cannot tell:

- whether a region is ever all there: 1 is as much as a twentieth of the sketch has at least.  The relative density at
  that level is said; where it is low, occupancy is that of noise.  A region that is always there has about 1 in all.
- absence from motion: a part that swings out of its mask is not there, and another that swings in is.
- density of neighbours that reaches into the mask, which lifts the lowest occupancy above 0; and volumes of noisy
  latents, which lie between the states: look for two peaks of the histogram, not for 0 and 1.

Shape letters: n volumes of a sketch, d their box, R regions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32

from drgn_ray.analysis.landscape import Overlay
from drgn_ray.errors import RunError
from drgn_ray.physics.mask import default_threshold, sphere_mask

CORE_DEVIATIONS = 2.0  # standard deviations, which few volumes are below the mean by
LEAST_CORE = 0.1  # of the density of the mean volume, below which nothing is always there
FULL_PERCENTILE = 95.0
LEAST_FULL = 0.2  # relative density of a region in the volumes that have most of it, below which it is hardly there


class Levels(NamedTuple):
    """Voxels that say what nothing and what density is."""

    solvent: Bool[np.ndarray, "d d d"]
    core: Bool[np.ndarray, "d d d"]


class Occupancy(NamedTuple):
    """Of every region.

    Attributes
    ----------
    volumes
        A row for each volume, a column for each region.
    full
        Relative density of a region at occupancy 1.
    """

    volumes: pd.DataFrame
    full: pd.Series


def levels(overlaid: Overlay, molecule: Bool[np.ndarray, "d d d"]) -> Levels:
    """Find the solvent, and the core of a molecule.

    Raises
    ------
    RunError
        There is none of either.
    """
    surely = overlaid.sign * overlaid.mean - CORE_DEVIATIONS * overlaid.deviation
    threshold = default_threshold(surely)
    solvent = (sphere_mask(len(molecule), len(molecule) / 2) > 0) & ~molecule
    has_core = threshold > LEAST_CORE * default_threshold(overlaid.sign * overlaid.mean)
    if not (has_core and solvent.any()):
        found = "the molecule fills the box" if has_core else "no part of the molecule is there in all volumes"
        raise RunError("--regions", f"{found}, so that occupancy has no scale", "leave them out")
    return Levels(solvent, surely >= threshold)


def occupancy(
    volumes: Float32[np.ndarray, "n d d d"], regions: Mapping[str, Bool[np.ndarray, "d d d"]], between: Levels
) -> Occupancy:
    """Occupancy of each region in each volume, as defined above.

    Raises
    ------
    RunError
        A region has no density in any volume.
    """
    solvent, core = _means(volumes, between._asdict()).to_numpy().T
    relative = _means(volumes, regions).sub(solvent, axis=0).div(core - solvent, axis=0)
    full = relative.quantile(FULL_PERCENTILE / 100)
    if not (full > 0).all():
        name = full.idxmin()
        raise RunError(f"region {name}", "no volume of the sketch has density there", "pass another mask")
    return Occupancy(relative / full, full)


def _means(volumes: Float32[np.ndarray, "n d d d"], masks: Mapping[str, Bool[np.ndarray, "d d d"]]) -> pd.DataFrame:
    """Mean of every volume in every mask, in one product, which copies no volumes."""
    weights = np.stack([mask.ravel() / mask.sum() for mask in masks.values()], axis=1, dtype=np.float32)
    return pd.DataFrame(volumes.reshape(len(volumes), -1) @ weights, columns=[*masks])
