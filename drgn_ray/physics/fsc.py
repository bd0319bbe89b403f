"""Fourier shell correlation, the resolution it says, and its correction for what a mask adds.

Shells come in two conventions.  RELION's, which is ours: shell i has i - 1/2 <= |k| < i + 1/2.  cryoDRGN's: shell i has
i - 1 <= |k| < i, so that frequency i/D names what lies below it, which is up to one shell better than it is.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

ShellConvention = Literal["relion", "cryodrgn"]
GOLD_STANDARD, HALF = 0.143, 0.5  # of half maps (Rosenthal and Henderson 2003), and against a map without noise
RANDOMISE_BELOW = 0.8  # FSC without mask at which phases begin to be randomised (RELION's choice)
_TINY = np.finfo(np.float64).tiny


def fourier_shell_correlation(
    first: Float[np.ndarray, "D D D"], second: Float[np.ndarray, "D D D"], convention: ShellConvention = "relion"
) -> Float[np.ndarray, " shells"]:
    """Correlate two volumes shell by shell, 0 to Nyquist.

    Returns
    -------
    Shells 0 to D/2, shell = round(|k|); with cryoDRGN's convention shells 0 (always 1) to D/2 - 1.
    """
    assert first.shape == second.shape, (first.shape, second.shape)
    size = first.shape[0]
    shell, num_shells = _shells(size, convention)
    a, b = np.fft.rfftn(first).ravel(), np.fft.rfftn(second).ravel()
    multiplicity = _multiplicity(size)

    def shell_sum(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " shells"]:
        return np.bincount(shell, values * multiplicity, minlength=num_shells)[:num_shells]

    power = shell_sum(np.abs(a) ** 2) * shell_sum(np.abs(b) ** 2)
    curve = shell_sum((a * b.conj()).real) / np.sqrt(np.maximum(power, _TINY))
    if convention == "cryodrgn":
        curve[0] = 1.0
    return curve


def resolution(
    curve: Float[np.ndarray, " shells"], box_size: int, apix: float, threshold: float, *, last: bool = False
) -> float:
    """Resolution, Å, at which a curve first falls below a threshold, interpolated between two shells.

    A curve that never does is resolved to Nyquist, 2 Å/px.

    Parameters
    ----------
    last
        Take the last shell that reaches the threshold instead, as cryoDRGN does; noise at high frequencies makes
        that better than it is.
    """
    if last:
        reached = np.flatnonzero(curve >= threshold)
        return box_size * apix / reached[-1] if len(reached) and reached[-1] else np.inf
    below = np.flatnonzero(curve[1:] < threshold) + 1
    if not len(below):
        return 2 * apix
    first = int(below[0])
    if first == 1:
        return box_size * apix  # not even the first shell
    above, under = curve[first - 1], curve[first]
    crossing = first - 1 + (above - threshold) / (above - under)
    return box_size * apix / crossing


def randomise_phases(
    volume: Float[np.ndarray, "D D D"],
    first_shell: int,
    rng: np.random.Generator,
    convention: ShellConvention = "relion",
) -> Float[np.ndarray, "D D D"]:
    """Replace all phases from a shell on by random ones; amplitudes stay."""
    size = len(volume)
    spectrum = np.fft.rfftn(volume)
    noise = np.fft.rfftn(rng.standard_normal(volume.shape))  # its phases are random and those of a real volume
    shell = _shells(size, convention)[0].reshape(spectrum.shape)
    random = np.abs(spectrum) * noise / np.maximum(np.abs(noise), _TINY)
    return np.fft.irfftn(np.where(shell >= first_shell, random, spectrum), s=volume.shape, axes=(0, 1, 2))


def corrected_curve(
    first: Float[np.ndarray, "D D D"],
    second: Float[np.ndarray, "D D D"],
    mask: Float[np.ndarray, "D D D"],
    first_random_shell: int,
    *,
    seed: int = 0,
    convention: ShellConvention = "relion",
) -> Float[np.ndarray, " shells"]:
    """FSC inside a mask without the correlation that the mask brings (Chen et al. 2013, Ultramicroscopy 135, 24).

    Beyond the shell from which phases are randomised it is ``(masked - random) / (1 - random)``, where `random` is the
    FSC of the phase-randomised half maps inside the same mask.
    """
    masked = fourier_shell_correlation(first * mask, second * mask, convention)
    rng = np.random.default_rng(seed)
    a, b = (randomise_phases(volume, first_random_shell, rng, convention) for volume in (first, second))
    random = fourier_shell_correlation(a * mask, b * mask, convention)
    # The shell at the border mixes with its neighbours that keep their phases, so correction begins two further out.
    beyond = np.arange(len(masked)) >= first_random_shell + 2
    corrected = (masked - random) / np.maximum(1 - random, 1e-6)
    return np.where(beyond, np.clip(corrected, -1, 1), masked)


def first_shell_below(curve: Float[np.ndarray, " shells"], threshold: float) -> int:
    """First shell, from 1 on, that is below a threshold; the last if none is."""
    below = np.flatnonzero(curve[1:] < threshold) + 1
    return int(below[0]) if len(below) else len(curve) - 1


def _shells(size: int, convention: ShellConvention) -> tuple[Int[np.ndarray, " n"], int]:
    """Shell of every coefficient of ``rfftn``, and how many shells there are up to Nyquist."""
    axis = np.fft.fftfreq(size) * size
    half = np.arange(size // 2 + 1)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + half[None, None, :] ** 2).ravel()
    if convention == "relion":
        return np.rint(radius).astype(np.int64), size // 2 + 1
    return np.floor(radius).astype(np.int64) + 1, size // 2


def _multiplicity(size: int) -> Float[np.ndarray, " n"]:
    """How many coefficients of the full transform each of ``rfftn`` stands for."""
    row = np.full(size // 2 + 1, 2.0)
    row[0] = 1.0
    if size % 2 == 0:
        row[-1] = 1.0
    return np.broadcast_to(row, (size, size, size // 2 + 1)).ravel()
