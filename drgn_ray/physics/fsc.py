"""Fourier shell correlation."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def fourier_shell_correlation(
    first: Float[np.ndarray, "D D D"], second: Float[np.ndarray, "D D D"]
) -> Float[np.ndarray, " shells"]:
    """Correlate two volumes shell by shell, 0 to Nyquist; shell = round(|k|), RELION's definition."""
    assert first.shape == second.shape, (first.shape, second.shape)
    size = first.shape[0]
    num_shells = size // 2 + 1
    axis = np.fft.fftfreq(size) * size
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    shell = np.rint(radius).astype(np.int64).ravel()
    a, b = np.fft.fftn(first).ravel(), np.fft.fftn(second).ravel()

    def shell_sum(values: np.ndarray) -> np.ndarray:
        return np.bincount(shell, values, minlength=num_shells)[:num_shells]

    power = shell_sum(np.abs(a) ** 2) * shell_sum(np.abs(b) ** 2)
    return shell_sum((a * b.conj()).real) / np.sqrt(np.maximum(power, np.finfo(np.float64).tiny))
