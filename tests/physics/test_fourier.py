"""Transforms of images whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drgn_ray.physics.fourier import fourier_crop, hartley, images_to_half_disc, soft_window, translate
from drgn_ray.physics.fsc import fourier_shell_correlation
from drgn_ray.physics.lattice import half_disc, half_from_hartley, hartley_from_half


@pytest.mark.parametrize(
    ("box_size", "points"), [(32, 796), (64, 3208), (96, 7212), (128, 12852), (192, 28916), (256, 51432)]
)
def test_the_disc_has_cryodrgns_number_of_points(box_size: int, points: int) -> None:
    assert 2 * half_disc(box_size).num_points == points


def test_the_half_disc_and_its_mirror_are_the_disc_without_its_centre() -> None:
    k = half_disc(16, radius=5).k
    both = {tuple(point) for point in torch.cat([k, -k]).tolist()}
    assert len(both) == 2 * len(k)
    assert both == {(x, y) for x in range(-5, 6) for y in range(-5, 6) if 0 < x * x + y * y <= 25}


def test_hartley_values_and_coefficients_are_the_same_thing() -> None:
    coefficients = images_to_half_disc(torch.randn(3, 16, 16), half_disc(16))
    assert torch.allclose(half_from_hartley(hartley_from_half(coefficients)), coefficients, atol=1e-5)


def test_the_hartley_transform_undoes_itself() -> None:
    volume = torch.randn(8, 8, 8)
    assert torch.allclose(hartley(hartley(volume, 3), 3) / 8**3, volume, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(-7, 7), st.integers(-7, 7))
def test_a_shift_by_whole_pixels_rolls_the_image_to_larger_x_and_y(x: int, y: int) -> None:
    points = half_disc(16)
    image = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    shifted = translate(images_to_half_disc(image, points), torch.tensor([[float(x), float(y)]]), points.freq)
    rolled = images_to_half_disc(torch.roll(image, (y, x), dims=(-2, -1)), points)
    inside = points.k.abs().amax(dim=-1) < 8  # at Nyquist itself a roll is ambiguous
    assert torch.allclose(shifted[:, inside], rolled[:, inside], atol=1e-4)


def test_the_centre_pixel_is_the_origin() -> None:
    image = torch.zeros(1, 16, 16)
    image[0, 8, 8] = 1
    assert torch.allclose(images_to_half_disc(image, half_disc(16)), torch.ones(1, dtype=torch.complex64), atol=1e-6)


def test_a_crop_to_the_same_size_changes_nothing() -> None:
    images = torch.randn(2, 16, 16)
    assert torch.equal(fourier_crop(images, 16), images)


def test_a_slow_wave_survives_the_crop_and_a_fast_one_is_gone() -> None:
    x = torch.arange(32) - 16
    slow, fast = (torch.cos(2 * torch.pi * cycles * x / 32).expand(32, 32) for cycles in (3, 13))
    expected = torch.cos(2 * torch.pi * 3 * (torch.arange(16) - 8) / 16).expand(16, 16) * (32 / 16) ** 2
    assert torch.allclose(fourier_crop(slow + fast, 16), expected, atol=1e-4)


def test_a_crop_keeps_the_coefficients_inside_nyquist() -> None:
    images, points = torch.randn(3, 32, 32), half_disc(20, radius=9)
    small = images_to_half_disc(fourier_crop(images, 20), points)
    large_points = half_disc(32, radius=9)
    assert torch.equal(points.k, large_points.k)
    assert torch.allclose(small, images_to_half_disc(images, large_points), atol=1e-3)


def test_the_window_is_one_inside_and_zero_outside_and_never_rises() -> None:
    row = soft_window(64)[32, 32:]
    assert (row[:27] == 1).all()
    assert row[-1] < 0.2
    assert (row.diff() <= 0).all()
    assert soft_window(64)[0, 0] == 0


def test_shells_of_equal_volumes_correlate_and_those_of_noise_do_not() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 24, 24, 24))
    assert np.allclose(fourier_shell_correlation(a, 3 * a), 1)
    assert np.allclose(fourier_shell_correlation(a, -a), -1)
    assert np.abs(fourier_shell_correlation(a, b)[4:]).max() < 0.2


def test_volumes_that_share_only_low_frequencies_correlate_only_there() -> None:
    rng = np.random.default_rng(0)
    a, noise = rng.normal(size=(2, 24, 24, 24))
    axis = np.fft.fftfreq(24) * 24
    low = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2) <= 5.5
    b = np.fft.ifftn(np.where(low, np.fft.fftn(a), np.fft.fftn(noise))).real
    curve = fourier_shell_correlation(a, b)
    assert curve[:6].min() > 0.99
    assert np.abs(curve[6:]).max() < 0.25
