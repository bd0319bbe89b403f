"""Laws that a Fourier crop obeys for any image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drgn_ray.physics.fourier import fourier_crop

sizes = st.sampled_from([4, 6, 10, 16, 22])
seeds = st.integers(0, 2**31)
numbers = st.floats(-10, 10, allow_nan=False, width=32)


def image(seed: int, size: int = 24) -> Tensor:
    return torch.randn(1, size, size, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(seeds, seeds, numbers, numbers, sizes)
def test_the_crop_of_a_sum_is_the_sum_of_the_crops(one: int, other: int, a: float, b: float, size: int) -> None:
    together = fourier_crop(a * image(one) + b * image(other), size)
    apart = a * fourier_crop(image(one), size) + b * fourier_crop(image(other), size)
    assert torch.allclose(together, apart, atol=1e-5 * (1 + abs(a) + abs(b)) * (24 / size) ** 2)


@settings(max_examples=25, deadline=None)
@given(seeds, sizes)
def test_a_crop_in_two_steps_is_a_crop_in_one(seed: int, size: int) -> None:
    in_two = fourier_crop(fourier_crop(image(seed, 32), 24), size)
    assert torch.allclose(in_two, fourier_crop(image(seed, 32), size), atol=1e-4 * (32 / size) ** 2)


@settings(max_examples=25, deadline=None)
@given(seeds, sizes)
def test_the_sum_of_the_pixels_stays(seed: int, size: int) -> None:
    """As in cryoDRGN's own test: the coefficient at zero frequency is not touched."""
    assert fourier_crop(image(seed), size).sum().item() == pytest.approx(image(seed).sum().item(), abs=1e-3)


def test_a_flat_image_stays_flat_and_grows_by_the_ratio_of_the_areas() -> None:
    assert torch.allclose(fourier_crop(torch.ones(1, 24, 24), 8), torch.full((1, 8, 8), 9.0), atol=1e-5)


def test_images_are_cropped_each_for_itself() -> None:
    many = torch.cat([image(seed) for seed in range(3)])
    for row in range(3):
        assert torch.allclose(fourier_crop(many, 10)[row], fourier_crop(image(row), 10)[0], atol=1e-5)
