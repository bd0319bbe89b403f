"""Real-space masks of volumes: a sphere, or a threshold that is dilated and given a soft edge."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

THRESHOLD_PERCENTILE = 99.99


def default_threshold(volume: Float[np.ndarray, "Z Y X"]) -> float:
    """Half of the 99.99th percentile, cryoDRGN's choice where the user names none."""
    return float(np.percentile(volume, THRESHOLD_PERCENTILE)) / 2


def threshold_mask(
    volume: Float[np.ndarray, "Z Y X"],
    *,
    apix: float,
    threshold: float | None = None,
    dilate: float = 25.0,
    soft_edge: float = 15.0,
) -> Float[np.ndarray, "Z Y X"]:
    """Mask of what reaches a threshold, as ``cryodrgn_utils gen_mask`` makes it (section 2.11 of the method notes).

    Parameters
    ----------
    apix
        Å/px.
    threshold
        Density from which the mask begins; None: `default_threshold`.
    dilate
        Å by which the mask grows (along the axes, in whole voxels).
    soft_edge
        Å over which it falls from 1 to 0, as a quarter of a cosine.
    """
    core = volume >= (default_threshold(volume) if threshold is None else threshold)
    steps = int(dilate // apix)
    mask = np.zeros(volume.shape, np.float32)
    if core.any():
        box = _bounding_box(core, margin=steps + math.ceil(soft_edge / apix) + 1)  # elsewhere it is 0
        # All within so many steps along the axes: what repeated dilation gives, in one pass.
        grown = np.asarray(ndimage.distance_transform_cdt(~core[box], metric="taxicab")) <= steps
        mask[box] = soften(grown, soft_edge / apix)
    return mask


def _bounding_box(core: Bool[np.ndarray, "Z Y X"], margin: int) -> tuple[slice, ...]:
    slices = []
    for axis in range(core.ndim):
        others = tuple(other for other in range(core.ndim) if other != axis)
        there = np.flatnonzero(core.any(axis=others))
        slices.append(slice(max(int(there[0]) - margin, 0), int(there[-1]) + margin + 1))
    return tuple(slices)


def soften(core: Bool[np.ndarray, "Z Y X"], width: float) -> Float[np.ndarray, "Z Y X"]:
    """1 in the core, falling as ``cos(pi/2 distance/width)`` over `width` voxels outside of it."""
    if width <= 0 or not core.any():
        return core.astype(np.float32)
    distance = np.asarray(ndimage.distance_transform_edt(~core))
    return np.cos(np.pi / 2 * np.minimum(distance, width) / width).round(6).astype(np.float32)


def sphere_mask(size: int, radius: float, width: float = 0.0) -> Float[np.ndarray, "D D D"]:
    """Ball of a radius (voxels) about voxel D/2, with an edge of `width` voxels outside of it."""
    axis = np.arange(size) - size // 2
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2) - radius
    if width <= 0:
        return (distance <= 0).astype(np.float32)
    return np.cos(np.pi / 2 * np.clip(distance, 0, width) / width).astype(np.float32)


def disc_mask(size: int) -> Float[np.ndarray, "D D"]:
    """Disc of radius D/2 about pixel D/2, which cryoDRGN's "spherical" FSC repeats along z: a cylinder."""
    return sphere_mask(size, size / 2)[size // 2]
