"""The contrast transfer function of the microscope, and what radiation damage leaves."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from drgn_ray.units import ANGSTROM_PER_MM, VOLT_PER_KILOVOLT


def electron_wavelength(voltage: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Relativistic electron wavelength, Å, at an accelerating voltage in kV (cryoDRGN's constants)."""
    volts = voltage * VOLT_PER_KILOVOLT
    return 12.2639 / torch.sqrt(volts + 0.97845e-6 * volts**2)


def compute_ctf(
    freq: Float[Tensor, "P 2"],
    *,
    apix: Float[Tensor, " B"],
    defocus_u: Float[Tensor, " B"],
    defocus_v: Float[Tensor, " B"],
    defocus_angle: Float[Tensor, " B"],
    voltage: Float[Tensor, " B"],
    cs: Float[Tensor, " B"],
    amplitude_contrast: Float[Tensor, " B"],
    phase_shift: Float[Tensor, " B"],
) -> Float[Tensor, "B P"]:
    r"""Evaluate the contrast transfer function.

    .. math:: \gamma = 2\pi(-\tfrac12 \Delta z(\theta)\lambda s^2 + \tfrac14 C_s\lambda^3 s^4) - \phi, \quad
        \mathrm{CTF} = \sqrt{1-w^2}\sin\gamma - w\cos\gamma

    Parameters
    ----------
    freq
        Spatial frequency (x, y), cycles/px.
    apix
        Pixel size, Å.
    defocus_u, defocus_v
        Defocus along the two astigmatic axes, Å; positive is underfocus.
    defocus_angle
        Angle from the image x axis to the ``defocus_u`` axis, degrees (RELION ``rlnDefocusAngle``).
    voltage, cs
        Accelerating voltage, kV; spherical aberration, mm.
    amplitude_contrast, phase_shift
        Fraction in [0, 1]; phase-plate shift, degrees.

    Returns
    -------
    CTF in [-1, 1], negative at low frequency: dark protein on a light ground, as in cryoDRGN.  RELION's and
    torch-ctf's sign is the opposite.
    """
    kx, ky = freq.unbind(-1)
    wavelength = electron_wavelength(voltage) / apix  # in px, as the frequencies
    mean, half_difference = (defocus_u + defocus_v) / (2 * apix), (defocus_u - defocus_v) / (2 * apix)
    twice = 2 * torch.deg2rad(defocus_angle)
    # Defocus at an azimuth, times s², is quadratic in (kx, ky), so the phase is linear in four functions of them.
    # Sums and no matrix product, which autocast or TF32 would round to three digits.
    phase = -torch.deg2rad(phase_shift) - torch.asin(amplitude_contrast)  # sqrt(1-w²) sin a - w cos a = sin(a - asin w)
    phase = phase[:, None] - (torch.pi * wavelength * mean)[:, None] * (kx**2 + ky**2)
    astigmatism = torch.pi * wavelength * half_difference
    phase -= (astigmatism * torch.cos(twice))[:, None] * (kx**2 - ky**2)
    phase -= (astigmatism * torch.sin(twice))[:, None] * (2 * kx * ky)
    spherical = torch.pi / 2 * (cs * ANGSTROM_PER_MM / apix) * wavelength**3
    phase += spherical[:, None] * (kx**2 + ky**2) ** 2
    return torch.sin(phase)


# Grant and Grigorieff (2015), eLife 4, e06980: critical dose, e/Å², at 300 kV as a function of frequency, 1/Å, its
# scale at other voltages (kV), and the dose over the critical dose beyond which an image adds more noise than signal.
_CRITICAL_DOSE = (0.24499, -1.6649, 2.8141)
_VOLTAGES, _VOLTAGE_SCALES = (100.0, 200.0, 300.0), (0.57, 0.8, 1.0)
_OPTIMAL_DOSE = 2.51284


def dose_filter(
    freq: Float[Tensor, "P 2"], *, apix: Float[Tensor, " B"], dose: Float[Tensor, " B"], voltage: Float[Tensor, " B"]
) -> Float[Tensor, "B P"]:
    """Amplitude that radiation damage leaves at each frequency (Grant and Grigorieff 2015).

    ``exp(-dose / (2 critical dose))``, and 0 where the dose is beyond the optimal one.

    Parameters
    ----------
    freq
        Spatial frequency (x, y), cycles/px; not 0.
    apix, dose, voltage
        Å/px; accumulated dose, e/Å²; kV.
    """
    factor, exponent, floor = _CRITICAL_DOSE
    frequency = torch.linalg.vector_norm(freq, dim=-1) / apix[:, None]
    (low, middle, high), (at_low, at_middle, at_high) = _VOLTAGES, _VOLTAGE_SCALES
    below = ((voltage - low) / (middle - low)).clamp(0, 1) * (at_middle - at_low)
    above = ((voltage - middle) / (high - middle)).clamp(0, 1) * (at_high - at_middle)
    scale = at_low + below + above
    critical = scale[:, None] * (factor * frequency**exponent + floor)
    share = dose[:, None] / critical
    return torch.where(share < _OPTIMAL_DOSE, torch.exp(-share / 2), 0.0)
