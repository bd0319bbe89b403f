"""What is measured on a sample: scale, spread and contrast."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drgn_ray.particles import normalise


def measured(images: torch.Tensor) -> normalise.Measured:
    """Measure images that come in three batches, the rows of each mixed."""
    batches = np.array_split(np.random.default_rng(0).permutation(len(images)), 3)
    return normalise.measure(((rows, images[torch.from_numpy(rows)]) for rows in batches), len(images))


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_the_scale_divides_and_multiplies_without_loss(seed: int, spread: float) -> None:
    images = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) * spread
    scale = normalise.power_of_two_scale(float(images.std()))
    assert torch.equal(images / scale * scale, images)


@given(st.floats(1e-6, 1e6))
def test_scaled_images_have_a_spread_near_one(spread: float) -> None:
    images = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0)) * spread
    scaled = float((images / normalise.power_of_two_scale(float(images.std()))).std())
    assert 2**-0.5 - 1e-3 <= scaled <= 2**0.5 + 1e-3


@given(st.floats(1e-6, 1e6))
def test_the_scale_is_a_power_of_two(spread: float) -> None:
    images = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0)) * spread
    mantissa, _ = np.frexp(normalise.power_of_two_scale(float(images.std())))
    assert mantissa == 0.5


def test_blank_images_are_left_as_they_are() -> None:
    assert normalise.power_of_two_scale(0.0) == 1.0


def test_the_hartley_spread_is_that_of_cryodrgn(reference_data: Path) -> None:
    images = mrcfile.read(reference_data / "fixtures/hand.mrcs")
    rows = normalise.sample_rows(len(images))
    assert measured(torch.from_numpy(images[rows])).hartley_std == pytest.approx(94.4595, abs=5e-5)


def test_white_noise_has_a_hartley_spread_of_the_box_size() -> None:
    noise = torch.randn(200, 32, 32, generator=torch.Generator().manual_seed(0))
    assert measured(noise).hartley_std == pytest.approx(32, rel=0.01)


@given(st.integers(1, 1_000_000))
def test_a_sample_is_spread_over_the_particles(num_particles: int) -> None:
    rows = normalise.sample_rows(num_particles)
    assert min(num_particles, 1000) <= len(rows) < 2000
    assert rows[0] == 0
    assert num_particles - num_particles // min(1000, num_particles) <= rows[-1] < num_particles
    assert len(set(np.diff(rows))) <= 1


@pytest.mark.parametrize(("has_ctf", "white"), [(True, -1), (False, 1)])
@pytest.mark.parametrize("level", [0.0, 1.0], ids=["blank", "noise"])
def test_images_that_tell_nothing_are_taken_as_white_protein(level: float, has_ctf: bool, white: int) -> None:
    generator = torch.Generator().manual_seed(0)
    count = 50
    values = {
        "voltage": 300.0,
        "cs": 2.7,
        "amplitude_contrast": 0.1,
        "phase_shift": 0.0,
        "defocus_u": 1.5e4,
        "defocus_v": 1.5e4,
        "defocus_angle": 0.0,
        "apix": 3.0,
    }
    columns = {name: torch.full((count,), value) for name, value in values.items()}
    columns["rotation"] = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator)).Q
    columns["translation"] = torch.zeros(count, 2)
    images = level * torch.randn(count, 32, 32, generator=generator)
    contrast = normalise.decide_contrast(images, columns, has_ctf=has_ctf)
    assert contrast.data_sign == white
    assert "the data do not tell" in contrast.evidence
    assert contrast.evidence.endswith("--no-invert or --invert decides")


def test_small_images_come_in_the_order_of_the_sample() -> None:
    images = torch.arange(7.0)[:, None, None].expand(7, 64, 64)
    small = measured(images).small
    assert small.shape == (7, 32, 32)
    torch.testing.assert_close(small[:, 3, 5], 4 * torch.arange(7.0))  # Fourier-cropped values grow by (D/d)²


def test_the_spread_is_that_of_all_pixels_together() -> None:
    images = 5 + 3 * torch.randn(40, 16, 16, generator=torch.Generator().manual_seed(0))
    assert measured(images).pixel_std == pytest.approx(float(images.double().std()), rel=1e-9)
