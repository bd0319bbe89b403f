"""What a batch of the store becomes on the training device: coefficients, CTF and pose.

Shape letters: B images, D box, P half-disc points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from drgn_ray.physics.ctf import compute_ctf, dose_filter
from drgn_ray.physics.fourier import images_to_half_disc, soft_window, translate
from drgn_ray.physics.lattice import HalfDisc, half_disc

CTF_COLUMNS = (
    "apix",
    "defocus_u",
    "defocus_v",
    "defocus_angle",
    "voltage",
    "cs",
    "amplitude_contrast",
    "phase_shift",
)
OBSERVED_COLUMNS = ("images", "rotation", "translation", *CTF_COLUMNS)
DAMPING_COLUMNS = ("ctf_scalefactor", "dose")


class Observation(NamedTuple):
    """Centred images in Fourier space, in units of the data's standard deviation, and how they were seen."""

    coefficients: Complex[Tensor, "B P"]
    ctf: Float[Tensor, "B P"]
    rotation: Float[Tensor, "B 3 3"]


class Observer(nn.Module):
    """Window, FFT, scale, centring and CTF of a batch.

    Parameters
    ----------
    box_size
        D, px.
    data_sign
        -1 for white protein, +1 for dark (`drgn_ray.units`).
    hartley_std
        Standard deviation of the data's Hartley values, which becomes 1.
    window
        Apply the circular soft window.
    ctf
        False where the images carry no CTF: it is then 1 everywhere.
    damping
        Multiply the CTF by each image's scale factor and by what its dose leaves, as tilt series want.
    radius
        Largest |k| that is looked at; None: D/2.
    """

    window: Float[Tensor, "D D"]
    k: Int[Tensor, "P 2"]
    freq: Float[Tensor, "P 2"]

    def __init__(
        self,
        *,
        box_size: int,
        data_sign: int,
        hartley_std: float,
        window: bool,
        ctf: bool,
        damping: bool = False,
        radius: int | None = None,
    ) -> None:
        super().__init__()
        points = half_disc(box_size, radius)
        self.box_size = box_size
        self.scale = data_sign / hartley_std
        self.has_ctf, self.has_damping = ctf, damping
        mask = soft_window(box_size) if window else torch.ones(box_size, box_size)
        self.register_buffer("window", mask, persistent=False)
        self.register_buffer("k", points.k, persistent=False)  # buffers, so that they move to the device
        self.register_buffer("freq", points.freq, persistent=False)

    @property
    def half_disc(self) -> HalfDisc:
        """The points, on the device of the module."""
        return HalfDisc(self.box_size, self.k)

    @property
    def num_points(self) -> int:
        """P."""
        return len(self.k)

    def forward(self, batch: Mapping[str, Tensor]) -> Observation:
        """Prepare a batch with the columns of the store (`drgn_ray.particles.schema`)."""
        images = batch["images"].float() * (self.window * self.scale)
        coefficients = images_to_half_disc(images, self.half_disc)
        shift_px = batch["translation"] / batch["apix"][:, None]
        if self.has_ctf:
            ctf = compute_ctf(self.freq, **{name: batch[name] for name in CTF_COLUMNS})
        else:
            ctf = torch.ones_like(coefficients.real)
        if self.has_damping:
            damping = dose_filter(self.freq, apix=batch["apix"], dose=batch["dose"], voltage=batch["voltage"])
            ctf = ctf * damping * batch["ctf_scalefactor"][:, None]
        return Observation(translate(coefficients, shift_px, self.freq), ctf, batch["rotation"])


Observe = Callable[..., Observer]
"""Makes the observer of a set of images, given what depends on the model: `window` and `radius`."""
