"""What is done to a finished volume (z, y, x): filters in Fourier space, resampling, cropping, the other hand.

The origin is voxel D/2 of each axis and stays there.  Frequencies are in 1/Å, B-factors in Å².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Volume = Float[np.ndarray, "Z Y X"]
LOW_PASS_EDGE = 2  # Fourier voxels over which a low-pass filter falls (RELION's width)
GUINIER_FROM = 10.0  # Å; lower frequencies tell of the shape, not of the decay (Rosenthal and Henderson 2003)


def filter_radially(
    volume: Volume, apix: float, factor: Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]]
) -> Volume:
    """Multiply the transform by a function of spatial frequency (1/Å)."""
    spectrum = np.fft.rfftn(volume)
    filtered = np.fft.irfftn(spectrum * factor(_frequency(volume.shape, apix)), s=volume.shape, axes=(0, 1, 2))
    return filtered.astype(np.float32)


def low_pass(volume: Volume, apix: float, cutoff: float) -> Volume:
    """Remove what is finer than `cutoff` (Å), with a raised-cosine edge about it."""
    width = LOW_PASS_EDGE / (max(volume.shape) * apix)

    def factor(frequency: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        across = np.clip((frequency - 1 / cutoff) / width + 0.5, 0, 1)
        return (1 + np.cos(np.pi * across)) / 2

    return filter_radially(volume, apix, factor)


def sharpen(volume: Volume, apix: float, bfactor: float) -> Volume:
    """Multiply the transform by ``exp(-B s²/4)``: a negative B sharpens, as RELION's ``--adhoc_bfac``."""
    return filter_radially(volume, apix, lambda frequency: np.exp(-bfactor / 4 * frequency**2))


def guinier_bfactor(volume: Volume, apix: float, finest: float) -> float:
    """B-factor that flattens the fall of the amplitudes between 10 Å and `finest` (Å), to pass to `sharpen`.

    The slope of ln(amplitude) over s² is -B/4 of the volume (Rosenthal and Henderson 2003); what undoes it is -B.

    Raises
    ------
    ValueError
        Fewer than three shells lie between the two, or one of them is empty.
    """
    frequency = _frequency(volume.shape, apix)
    inside = (frequency >= 1 / GUINIER_FROM) & (frequency <= 1 / finest)
    bins = np.rint(frequency[inside] * max(volume.shape) * apix).astype(int)
    power = np.abs(np.fft.rfftn(volume)[inside]) ** 2
    count = np.bincount(bins)
    there = np.flatnonzero(count)
    if len(there) < 3:
        raise ValueError(f"there are {len(there)} shells between {GUINIER_FROM:g} and {finest:.3g} Å")
    squared_frequency, power = (
        np.bincount(bins, each)[there] / count[there] for each in (frequency[inside] ** 2, power)
    )
    if power.min() <= 0:
        raise ValueError(f"the map holds nothing in some shells between {GUINIER_FROM:g} and {finest:.3g} Å")
    slope, _ = np.polyfit(squared_frequency, np.log(power) / 2, 1)
    return float(4 * slope)


def flip_hand(volume: Volume) -> Volume:
    """Mirror along z about the origin, which stays at voxel D/2 (plain reversal would move it by one)."""
    return np.roll(volume[::-1], 1 - volume.shape[0] % 2, axis=0)


def crop(volume: Volume, box_size: int) -> Float[np.ndarray, "d d d"]:
    """Cut out, or pad with zeros to, a cube of `box_size` about the origin; the volume need not be one."""
    for axis, size in enumerate(volume.shape):
        start = size // 2 - box_size // 2
        if start >= 0:
            volume = np.take(volume, range(start, start + box_size), axis=axis)
        else:
            widths = [(0, 0)] * volume.ndim
            widths[axis] = (-start, box_size - size + start)
            volume = np.pad(volume, widths)
    return volume


def resample(volume: Float[np.ndarray, "D D D"], box_size: int) -> Float[np.ndarray, "d d d"]:
    """Fourier-crop or -pad a cube to another even size of the same extent; grey values are kept."""
    size = volume.shape[0]
    assert volume.shape == (size,) * 3, volume.shape
    assert size % 2 == box_size % 2 == 0, (size, box_size)
    if box_size == size:
        return volume  # with its Nyquist frequencies
    half = min(size, box_size) // 2
    spectrum = np.fft.rfftn(volume)
    kept = np.arange(-half + 1, half)  # without Nyquist, whose two signs are one sample
    new = np.zeros((box_size, box_size, box_size // 2 + 1), spectrum.dtype)
    new[np.ix_(kept, kept, kept[half - 1 :])] = spectrum[np.ix_(kept, kept, kept[half - 1 :])]
    # The origin is voxel D/2 in both, which is the phase (-1)^(kx+ky+kz) whatever the size.
    return (np.fft.irfftn(new, (box_size,) * 3, (0, 1, 2)) * (box_size / size) ** 3).astype(np.float32)


@dataclass(frozen=True)
class Finish:
    """What is done to volumes as they are written, in this order.

    Attributes
    ----------
    crop
        Cut out, or pad to, a cube of so many voxels.
    box_size
        Resample to so many voxels of the same extent.
    flip_hand
        Mirror along z.
    low_pass
        Remove what is finer, Å.
    mask
        Multiply by this, on the grid that the operations above lead to.
    """

    crop: int | None = None
    box_size: int | None = None
    flip_hand: bool = False
    low_pass: float | None = None
    mask: Volume | None = None

    def side(self, box_size: int) -> int:
        """Voxels of the result's side."""
        return self.box_size or self.crop or box_size

    def apix(self, box_size: int, apix: float) -> float:
        """Voxel size of the result, Å."""
        return apix * (self.crop or box_size) / self.side(box_size)

    def __call__(self, volume: Float[np.ndarray, "D D D"], apix: float) -> Float[np.ndarray, "d d d"]:
        """Finish a volume of this voxel size."""
        new_apix = self.apix(len(volume), apix)
        if self.crop is not None:
            volume = crop(volume, self.crop)
        if self.box_size is not None:
            volume = resample(volume, self.box_size)
        if self.flip_hand:
            volume = flip_hand(volume)
        if self.low_pass is not None:
            volume = low_pass(volume, new_apix, self.low_pass)
        return volume if self.mask is None else volume * self.mask


def _frequency(shape: tuple[int, ...], apix: float) -> Float[np.ndarray, "Z Y H"]:
    z, y = np.fft.fftfreq(shape[0], apix), np.fft.fftfreq(shape[1], apix)
    x = np.fft.rfftfreq(shape[2], apix)
    return np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2)
