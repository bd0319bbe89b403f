"""Local resolution: where in a map its two halves agree, and how finely.

The correlation of both halves is taken band by band of spatial frequency under a Gaussian that is moved over the map,
as the windowed FSC of Cardone, Heymann and Steven (2013), J. Struct. Biol. 184, 226, but with two Fourier transforms a
band instead of two a voxel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from drgn_ray.physics.fsc import HALF
from drgn_ray.physics.volume import filter_radially

NUM_BANDS = 30
WINDOW_SIGMA = 6.0  # Å
SIGMAS_OF_BAND = 2.0  # the window holds so many waves of a band at least, lest it correlates a handful of numbers


def local_resolution(
    half1: Float[np.ndarray, "D D D"],
    half2: Float[np.ndarray, "D D D"],
    apix: float,
    *,
    threshold: float = HALF,
    progress: Callable[[int], None] = lambda count: None,
) -> Float[np.ndarray, "D D D"]:
    """Resolution (Å) at every voxel: the wavelength at which the local correlation first falls below a threshold.

    Parameters
    ----------
    half1, half2
        Unfiltered half maps.
    apix
        Å/px.
    threshold
        Correlation of half maps; 0.5, since under a small window 0.143 is within the noise.
    progress
        Called with 1 after each of the `NUM_BANDS` bands.

    Returns
    -------
    From 2 Å/px (Nyquist: agreement everywhere) to the size of the box (no agreement at all).
    """
    size = len(half1)
    scale = 1 / max(float(np.std(half1)), float(np.std(half2)), 1e-30)  # so that squares neither vanish nor overflow
    half1, half2 = half1 * scale, half2 * scale
    edges = np.linspace(1 / (size * apix), 1 / (2 * apix), NUM_BANDS + 1)
    resolved = np.full(half1.shape, np.inf)  # frequency of the first crossing, 1/Å
    before, above = edges[0], np.ones(half1.shape, np.float32)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        centre, width = (low + high) / 2, high - low
        correlation = _band_correlation(half1, half2, apix, centre, width)
        crossing = np.isinf(resolved) & (correlation < threshold)
        share = (above - threshold) / np.maximum(above - correlation, 1e-6)
        resolved = np.where(crossing, before + np.clip(share, 0, 1) * (centre - before), resolved)
        before, above = centre, correlation
        progress(1)
    return np.clip(1 / np.minimum(resolved, edges[-1]), 2 * apix, size * apix).astype(np.float32)


def _band_correlation(
    half1: Float[np.ndarray, "D D D"], half2: Float[np.ndarray, "D D D"], apix: float, centre: float, width: float
) -> Float[np.ndarray, "D D D"]:
    """Correlation of what both halves hold about a frequency (1/Å), under a moving Gaussian."""
    sigma = max(WINDOW_SIGMA, SIGMAS_OF_BAND / (2 * np.pi * centre)) / apix

    def band(frequency: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return np.exp(-(((frequency - centre) / width) ** 2) / 2)

    a, b = (filter_radially(half, apix, band) for half in (half1, half2))
    both, first, second = (ndimage.gaussian_filter(product, sigma, mode="wrap") for product in (a * b, a * a, b * b))
    return both / np.maximum(np.sqrt(first) * np.sqrt(second), np.finfo(np.float32).tiny)
