"""Images and volumes to and from Fourier space.

The transform is ``fftshift(fft(fftshift(x)))`` without normalisation: the origin is pixel D/2, and H = Re F - Im F is
the Hartley transform, its own inverse up to the number of pixels.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from drgn_ray.physics.lattice import HalfDisc


def hartley(x: Float[Tensor, "*batch D D"], num_dims: int = 2) -> Float[Tensor, "*batch D D"]:
    """Centred Hartley transform over the last `num_dims` axes."""
    axes = tuple(range(-num_dims, 0))
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.fftshift(x, dim=axes), dim=axes), dim=axes)
    return spectrum.real - spectrum.imag


def soft_window(box_size: int, inner: float = 0.85, outer: float = 0.99) -> Float[Tensor, "D D"]:
    """Circular real-space window: 1 inside `inner`, 0 beyond `outer` (shares of D/2), linear between."""
    axis = torch.linspace(-1, 1, box_size + 1)[:-1]
    radius = torch.hypot(axis[:, None], axis[None, :])
    return ((outer - radius) / (outer - inner)).clamp(0, 1)


def soft_sphere(box_size: int, inner: float = 0.85, outer: float = 0.99) -> Float[Tensor, "D D D"]:
    """Do what `soft_window` does in three dimensions."""
    axis = torch.linspace(-1, 1, box_size + 1)[:-1]
    radius = torch.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    return ((outer - radius) / (outer - inner)).clamp(0, 1)


def in_solvent(volumes: Float[Tensor, "*C D D D"]) -> Float[Tensor, "*C D D D"]:
    """Mask the corners, with solvent at 0: slices do not tell the mean of a volume."""
    mask = soft_sphere(volumes.shape[-1]).to(volumes)
    edge = mask * (1 - mask)
    at_edge = (volumes * edge).sum(dim=(-3, -2, -1), keepdim=True) / edge.sum()
    return (volumes - at_edge) * mask


def images_to_half_disc(images: Float[Tensor, "B D D"], points: HalfDisc) -> Complex[Tensor, "B P"]:
    """Fourier coefficients of centred images at the points of a half-disc."""
    spectrum = torch.fft.rfft2(images).flatten(-2)[:, points.rfft_index]
    signed = spectrum * points.centring_sign
    return torch.where(points.mirrored, signed.conj(), signed)


def translate(
    coefficients: Complex[Tensor, "B P"], shift_px: Float[Tensor, "B 2"], freq: Float[Tensor, "P 2"]
) -> Complex[Tensor, "B P"]:
    """Move the image content by `shift_px` (x, y), px: F'(k) = F(k) exp(-2πi k·t)."""
    # No matrix product, which autocast would take to bfloat16.
    angle = -2 * torch.pi * (shift_px[:, :1] * freq[:, 0] + shift_px[:, 1:] * freq[:, 1])
    return coefficients * torch.polar(torch.ones_like(angle), angle)


def fourier_crop(images: Float[Tensor, "*B D D"], box_size: int) -> Float[Tensor, "*B d d"]:
    """Downsample images by keeping the central `box_size` frequencies of their Hartley transform.

    Values grow by (D/d)^2, since the transform is not normalised: cryoDRGN's ``downsample`` convention.  Its Hartley
    crop keeps the -d/2 row and column and drops the +d/2 ones; the two corrections below do the same on ``rfft2``.
    """
    full, half = images.shape[-1], box_size // 2
    assert full % 2 == box_size % 2 == 0, (full, box_size)
    assert box_size <= full, (full, box_size)
    if box_size == full:
        return images
    spectrum = torch.fft.rfft2(images)
    rows = torch.cat([spectrum[..., :half, : half + 1], spectrum[..., full - half :, : half + 1]], dim=-2)
    upper = spectrum[..., half, : half + 1]  # the +d/2 row, which the crop drops
    rows[..., half, :] = _hermitian(rows[..., half, :], upper)
    mirror = -torch.arange(box_size) % box_size
    column = rows[..., half].clone()
    column[..., half] = spectrum[..., half, half]  # the corner (+d/2, +d/2), whose mirror is (-d/2, -d/2)
    rows[..., half] = _hermitian(column[..., mirror].conj(), column)
    rows[..., half, half] = (spectrum[..., half, half].real + spectrum[..., half, half].imag).to(rows.dtype)
    return torch.fft.irfft2(rows, s=(box_size, box_size))


def _hermitian(minus: Complex[Tensor, "*N"], plus: Complex[Tensor, "*N"]) -> Complex[Tensor, "*N"]:
    """Coefficient at k whose Hartley values are H(k) = Re-Im of `minus` and H(-k) = Re+Im of `plus`."""
    forward, backward = minus.real - minus.imag, plus.real + plus.imag
    return torch.complex((forward + backward) / 2, (backward - forward) / 2)


def fourier_resample(
    images: Float[Tensor, "B D D"], apix: float, box_size: int, new_apix: float
) -> Float[Tensor, "B d d"]:
    """Resample images onto a coarser, not wider grid of any pixel size about the same origin; values are kept.

    Trigonometric interpolation (the periodic images' Fourier series, evaluated at the new points), without the
    frequencies from the new grid's Nyquist on; separable, so two products with one small matrix.
    """
    full = images.shape[-1]
    assert box_size * new_apix <= full * apix * (1 + 1e-6), (box_size, new_apix, full, apix)
    assert new_apix >= apix * (1 - 1e-6), (new_apix, apix)
    highest = min(math.ceil(full * apix / (2 * new_apix)), full // 2) - 1
    source = torch.arange(-full // 2, full // 2, dtype=torch.float64)
    target = torch.arange(-box_size // 2, box_size // 2, dtype=torch.float64) * (new_apix / apix)
    half_angle = torch.pi / full * (target[:, None] - source[None, :])
    # The sum of exp(2i k half_angle) over |k| <= highest is Dirichlet's kernel.
    denominator = torch.sin(half_angle)
    at_zero = denominator.abs() < 1e-12
    kernel = torch.sin((2 * highest + 1) * half_angle) / torch.where(at_zero, 1.0, denominator)
    matrix = torch.where(at_zero, 2.0 * highest + 1, kernel) / full
    matrix = matrix.to(images.dtype)
    return matrix @ images @ matrix.T


def volume_from_hartley(hartley_volume: Float[Tensor, "D D D"]) -> Float[Tensor, "D D D"]:
    """Real-space volume (z, y, x) from its centred 3-D Hartley transform."""
    return hartley(hartley_volume, num_dims=3) / hartley_volume.numel()


def at_radii(values: Float[Tensor, " R"], radius: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Interpolate between values of the radii 0, 1, 2, ...; beyond the last it goes on."""
    last = len(values) - 1
    below = radius.to(torch.int64).clamp_max(last)
    return torch.lerp(values[below], values[(below + 1).clamp_max(last)], radius - below)


def shell_amplitudes(volume: Float[Tensor, "D D D"]) -> Float[Tensor, " R"]:
    """Root mean square of the coefficients of the shells round(|k|) from 0 to D/2."""
    power = torch.fft.rfftn(volume).abs().square().flatten()
    shell = rfft_radius(volume).round().to(torch.int64).flatten()
    return (torch.bincount(shell, power) / torch.bincount(shell)).sqrt()[: len(volume) // 2 + 1].to(volume)


def multiply_spectrum(volumes: Float[Tensor, "C D D D"], factor: Float[Tensor, "D D h"]) -> Float[Tensor, "C D D D"]:
    """Multiply the coefficients of volumes as ``rfftn`` holds them."""
    return torch.fft.irfftn(torch.fft.rfftn(volumes, dim=(1, 2, 3)) * factor, s=volumes.shape[1:], dim=(1, 2, 3))


def rfft_radius(volumes: Float[Tensor, "*C D D D"]) -> Float[Tensor, "D D h"]:
    """|k| of the coefficients of volumes as ``rfftn`` holds them, cycles per box."""
    size, device = volumes.shape[-1], volumes.device
    axis = torch.fft.fftfreq(size, 1 / size, device=device)
    half = torch.fft.rfftfreq(size, 1 / size, device=device)
    return torch.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + half[None, None, :] ** 2)
