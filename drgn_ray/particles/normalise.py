"""What is measured on a sample of the images before they are written: scale, spread, contrast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from drgn_ray.physics.backproject import BackProjector
from drgn_ray.physics.fourier import fourier_crop, hartley
from drgn_ray.physics.observation import Observer

NUM_SAMPLES = 1000
CONTRAST_BOX = 32
UNDECIDED_SKEWNESS = 0.2  # about twice what noise alone gives at this box


def sample_rows(num_particles: int) -> Int[np.ndarray, " n"]:
    """Rows spread evenly over the particles, about 1,000 (cryoDRGN's choice for its normalisation)."""
    return np.arange(0, num_particles, num_particles // min(NUM_SAMPLES, num_particles))


def power_of_two_scale(images: Float[Tensor, "n D D"]) -> float:
    """Find the power of two nearest to the images' standard deviation: dividing by it is exact and fits float16."""
    spread = float(images.std())
    return 2.0 ** round(math.log2(spread)) if spread > 0 else 1.0


def hartley_std(images: Float[Tensor, "n D D"]) -> float:
    """Measure the spread of the Hartley values on the (D+1)-lattice, without window, DC included (as cryoDRGN)."""
    transform = hartley(images)
    row = torch.cat([transform, transform[..., :1, :]], dim=-2)
    return float(torch.cat([row, row[..., :1]], dim=-1).std())


class Contrast(NamedTuple):
    """Sign that makes density positive, and the evidence for it."""

    data_sign: int
    evidence: str


def decide_contrast(
    images: Float[Tensor, "n D D"], columns: Mapping[str, Tensor], *, box_size: int, has_ctf: bool
) -> Contrast:
    """Decide from a consensus volume whether protein is white or dark.

    Density is compact and bright on a flat ground, so the CTF-weighted consensus has a positive third moment when the
    sign is right.

    Parameters
    ----------
    images, columns
        A sample of the source, at `box_size`.
    """
    small = min(CONTRAST_BOX, box_size)
    batch = {name: value for name, value in columns.items()}
    batch["images"] = fourier_crop(images, small)
    batch["apix"] = columns["apix"] * box_size / small
    observer = Observer(box_size=small, data_sign=1, hartley_std=1.0, window=True, ctf=has_ctf)
    projector = BackProjector(observer.half_disc)
    seen = observer(batch)
    projector.insert(seen.coefficients, seen.ctf, seen.rotation)
    skewness = _skewness_in_sphere(projector.volume())
    white = -1 if has_ctf else 1  # our CTF is negative at low frequency, so it turns white protein dark
    evidence = f"skewness of the consensus of {len(images)} particles is {skewness:+.2f} uninverted"
    if not abs(skewness) >= UNDECIDED_SKEWNESS:  # also where images are blank and it is no number
        return Contrast(
            white, f"protein is taken as white, but the data do not tell ({evidence}); --no-invert or --invert decides"
        )
    sign = 1 if skewness > 0 else -1
    return Contrast(sign, f"protein is {'white' if sign == white else 'dark'}: {evidence}")


def _skewness_in_sphere(volume: Float[Tensor, "D D D"]) -> float:
    size = volume.shape[0]
    axis = torch.arange(size) - size // 2
    radius2 = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2
    values = volume[radius2 < (0.45 * size) ** 2]
    centred = values - values.mean()
    return float((centred**3).mean() / (centred**2).mean() ** 1.5)
