"""What is measured on a sample of the images before they are written: scale, spread, contrast."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from drgn_ray.physics.backproject import BackProjector, cryodrgn_volume
from drgn_ray.physics.fourier import fourier_crop, hartley
from drgn_ray.physics.observation import Observer
from drgn_ray.units import sign_of_white_protein

NUM_SAMPLES = 1000
CONTRAST_BOX = 32
UNDECIDED_SKEWNESS = 0.2  # about twice what noise alone gives at this box


def sample_rows(num_particles: int) -> Int[np.ndarray, " n"]:
    """Rows spread evenly over the particles, 1,000 to 2,000 or all (cryoDRGN's choice for its normalisation)."""
    return np.arange(0, num_particles, num_particles // min(NUM_SAMPLES, num_particles))


class Measured(NamedTuple):
    """What a sample of images says.

    Attributes
    ----------
    pixel_mean, pixel_std
        Mean and standard deviation of the pixels.
    hartley_std
        Standard deviation of the Hartley values on the (D+1)-lattice, without window, DC included (as cryoDRGN).
    small
        The images at no more than `CONTRAST_BOX` px.
    """

    pixel_mean: float
    pixel_std: float
    hartley_std: float
    small: Float[Tensor, "n d d"]


class Spread:
    """Standard deviation (unbiased) of values that come in parts, summed in float64."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        """Count more values in."""
        values = values.double()
        self.count += values.numel()
        self.total += float(values.sum())
        self.squares += float((values**2).sum())

    @property
    def mean(self) -> float:
        """Mean of all values so far."""
        return self.total / self.count

    @property
    def std(self) -> float:
        """Standard deviation of all values so far."""
        variance = (self.squares - self.total**2 / self.count) / max(self.count - 1, 1)
        return math.sqrt(max(variance, 0.0))


def measure(batches: Iterable[tuple[Int[np.ndarray, " b"], Float[Tensor, "b D D"]]], count: int) -> Measured:
    """Measure a sample that comes in batches (rows of the sample, their images), of which one is in memory."""
    pixels, transforms = Spread(), Spread()
    small = torch.empty(0)
    for rows, images in batches:
        pixels.add(images)
        transforms.add(_on_lattice(hartley(images)))
        cropped = fourier_crop(images, min(CONTRAST_BOX, images.shape[-1]))
        if not len(small):
            small = torch.empty(count, *cropped.shape[1:])
        small[torch.from_numpy(rows)] = cropped
    return Measured(pixels.mean, pixels.std, transforms.std, small)


def _on_lattice(transform: Float[Tensor, "n D D"]) -> Float[Tensor, "n D+1 D+1"]:
    """Repeat Nyquist's row and column at the other end."""
    row = torch.cat([transform, transform[..., :1, :]], dim=-2)
    return torch.cat([row, row[..., :1]], dim=-1)


def power_of_two_scale(spread: float) -> float:
    """Find the power of two nearest to the pixels' standard deviation: dividing by it is exact and fits float16."""
    return 2.0 ** round(math.log2(spread)) if spread > 0 else 1.0


class Contrast(NamedTuple):
    """Sign that makes density positive, and the evidence for it."""

    data_sign: int
    evidence: str


def decide_contrast(
    small: Float[Tensor, "n d d"],
    columns: Mapping[str, Tensor],
    *,
    has_ctf: bool,
    protein_is_white: bool | None = None,
) -> Contrast:
    """Decide from a consensus volume whether protein is white or dark.

    Density is compact and bright on a flat ground, so the CTF-weighted consensus has a positive third moment when the
    sign is right.

    Parameters
    ----------
    small
        A sample of the source, Fourier-cropped (`Measured.small`).
    columns
        Its columns; `apix` is that of the small images.
    protein_is_white
        What the source says, if it does; taken where the data do not tell.
    """
    batch = {**columns, "images": small}
    observer = Observer(box_size=small.shape[-1], data_sign=1, hartley_std=1.0, window=True, ctf=has_ctf)
    projector = BackProjector(observer.half_disc, kernel="cryodrgn")
    seen = observer(batch)
    projector.insert(seen.coefficients, seen.ctf, seen.rotation)
    skewness = skewness_in_sphere(cryodrgn_volume(projector.sums))
    white = sign_of_white_protein(has_ctf)
    evidence = f"skewness of the consensus of {len(small)} particles is {skewness:+.2f} uninverted"
    if not abs(skewness) >= UNDECIDED_SKEWNESS:  # also where images are blank and it is no number
        taken = "dark" if protein_is_white is False else "white"
        why = "" if protein_is_white is None else " as the file says"
        return Contrast(
            -white if taken == "dark" else white,
            f"protein is taken as {taken}{why}, but the data do not tell ({evidence}); --no-invert or --invert decides",
        )
    sign = 1 if skewness > 0 else -1
    against = " (the file says otherwise)" if protein_is_white not in (None, sign == white) else ""
    return Contrast(sign, f"protein is {'white' if sign == white else 'dark'}: {evidence}{against}")


def skewness_in_sphere(volume: Float[Tensor, "D D D"]) -> float:
    """Third standardised moment inside 0.45 D: positive where density is brighter than the ground."""
    size = volume.shape[0]
    axis = torch.arange(size) - size // 2
    radius2 = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2
    values = volume[radius2 < (0.45 * size) ** 2]
    centred = values - values.mean()
    return float((centred**3).mean() / (centred**2).mean() ** 1.5)
