"""An image that cryoDRGN shifted by (5, 10) px in Hartley space and turned back (its test data, im_shifted.npy)."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from torch import Tensor

from drgn_ray.physics.fourier import images_to_half_disc, translate
from drgn_ray.physics.lattice import half_disc

POINTS = half_disc(64)


@pytest.fixture(scope="module")
def original(reference_data: Path) -> Tensor:
    return torch.tensor(np.array(mrcfile.read(reference_data / "fixtures" / "hand.mrcs")[:1], np.float32))


@pytest.fixture(scope="module")
def shifted(reference_data: Path) -> Tensor:
    return torch.tensor(np.load(reference_data / "fixtures" / "im_shifted.npy"), dtype=torch.float32)[None]


def test_five_and_ten_pixels_are_a_shift_to_larger_x_and_y(original: Tensor, shifted: Tensor) -> None:
    assert torch.allclose(torch.roll(original, (10, 5), dims=(-2, -1)), shifted, atol=1e-4)


def test_our_shift_of_its_coefficients_is_cryodrgns(original: Tensor, shifted: Tensor) -> None:
    ours = translate(images_to_half_disc(original, POINTS), torch.tensor([[5.0, 10.0]]), POINTS.freq)
    expected = images_to_half_disc(shifted, POINTS)
    inside = (POINTS.k**2).sum(dim=-1) < 32**2  # at Nyquist itself a real image cannot hold the phase
    assert (ours - expected)[:, inside].abs().max() < 1e-6 * expected.abs().max()


def test_x_and_y_are_not_exchanged(original: Tensor, shifted: Tensor) -> None:
    exchanged = translate(images_to_half_disc(original, POINTS), torch.tensor([[10.0, 5.0]]), POINTS.freq)
    expected = images_to_half_disc(shifted, POINTS)
    assert (exchanged - expected).abs().max() > 0.1 * expected.abs().max()
