"""Frequencies of the positional encodings, from the table of the method notes (section 2.6) written out anew."""

from __future__ import annotations

import math

import pytest
import torch

from drgn_ray.models.encoding import ENCODINGS, encoding_frequencies

ENDS = {  # (highest, lowest) of a box of D px
    "geom_ft": lambda size: (math.pi * size, 2 * math.pi),
    "geom_full": lambda size: (math.pi * size, 1.0),
    "geom_lowf": lambda size: (size / 2, 1.0),
    "geom_nohighf": lambda size: (size / 2, 2 * math.pi),
}


def test_every_encoding_is_told_of_here() -> None:
    assert set(ENCODINGS) == {*ENDS, "gaussian"}


@pytest.mark.parametrize("pe_dim", [2, 15])
@pytest.mark.parametrize("size", [30, 128])
@pytest.mark.parametrize("pe_type", ENDS)
def test_axis_frequencies_fall_geometrically_on_x_then_y_then_z(pe_type: str, size: int, pe_dim: int) -> None:
    high, low = ENDS[pe_type](size)
    expected = torch.zeros(3 * pe_dim, 3)
    for axis in range(3):
        for step in range(pe_dim):
            expected[axis * pe_dim + step, axis] = high ** (1 - step / (pe_dim - 1)) * low ** (step / (pe_dim - 1))
    assert torch.allclose(encoding_frequencies(pe_type, size, pe_dim, 0.5), expected, rtol=1e-5)


@pytest.mark.parametrize(("size", "sigma"), [(64, 0.5), (256, 0.5), (64, 2.0)])
def test_gaussian_frequencies_spread_by_sigma_times_half_the_box(size: int, sigma: float) -> None:
    torch.manual_seed(0)
    frequencies = encoding_frequencies("gaussian", size, 400, sigma)
    assert frequencies.shape == (1200, 3)
    assert torch.allclose(frequencies.std(dim=0), torch.full((3,), sigma * size / 2), rtol=0.07)
    assert frequencies.mean(dim=0).abs().max() < 0.15 * sigma * size / 2
    correlation = torch.corrcoef(frequencies.T) - torch.eye(3)
    assert correlation.abs().max() < 0.15
