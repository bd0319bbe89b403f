"""What the observer makes of images whose content, shift and scale are known, and sums of back-projected slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from drgn_ray.physics.backproject import BackProjector, unfiltered_volume
from drgn_ray.physics.fourier import images_to_half_disc, soft_window
from drgn_ray.physics.lattice import half_disc
from drgn_ray.physics.observation import Observer
from drgn_ray.physics.simulate import BlobMolecule, project

SIZE, APIX, COUNT = 32, 2.5, 6


@pytest.fixture(scope="module")
def rotation() -> Tensor:
    return torch.tensor(Rotation.random(COUNT, rng=np.random.default_rng(0)).as_matrix(), dtype=torch.float32)


@pytest.fixture(scope="module")
def shift() -> Tensor:
    """By parts of a pixel, Å."""
    return torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(1)) * 2 * APIX


def images(rotation: Tensor, shift: Tensor | None = None) -> Tensor:
    position = torch.randn(20, 3, generator=torch.Generator().manual_seed(2)) * 8
    molecule = BlobMolecule(position.expand(COUNT, -1, -1), torch.ones(COUNT, 20), sigma=4.0)
    return project(molecule, rotation, SIZE, APIX, shift)


def observe(images: Tensor, rotation: Tensor, shift: Tensor, **changed: object) -> Tensor:
    settings = {"data_sign": 1, "hartley_std": 1.0, "window": False, "ctf": False} | changed
    observer = Observer(box_size=SIZE, **settings)  # type: ignore[arg-type]
    batch = {"images": images, "rotation": rotation, "translation": shift, "apix": torch.full((COUNT,), APIX)}
    return observer(batch).coefficients


def test_the_shift_of_a_simulated_image_is_undone(rotation: Tensor, shift: Tensor) -> None:
    centred = observe(images(rotation), rotation, torch.zeros(COUNT, 2))
    again = observe(images(rotation, shift), rotation, shift)
    assert (again - centred).abs().max() < 1e-5 * centred.abs().max()


def test_the_shift_of_the_other_sign_is_not(rotation: Tensor, shift: Tensor) -> None:
    centred = observe(images(rotation), rotation, torch.zeros(COUNT, 2))
    away = observe(images(rotation, shift), rotation, -shift)
    assert (away - centred).abs().max() > 0.5 * centred.abs().max()


def test_sign_and_spread_of_the_data_scale_the_coefficients(rotation: Tensor, shift: Tensor) -> None:
    plain = observe(images(rotation), rotation, shift)
    scaled = observe(images(rotation), rotation, shift, data_sign=-1, hartley_std=4.0)
    assert torch.allclose(scaled, -plain / 4, atol=1e-5)


def test_images_are_windowed_before_they_are_shifted(rotation: Tensor, shift: Tensor) -> None:
    noise = torch.randn(COUNT, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    windowed = observe(noise, rotation, shift, window=True)
    assert torch.allclose(windowed, observe(noise * soft_window(SIZE), rotation, shift), atol=1e-4)


def test_the_window_falls_in_a_straight_line_between_its_two_radii() -> None:
    size = 400  # 200 pixels from the centre are radius 1
    row = soft_window(size)[size // 2, size // 2 :]
    assert row[[0, 100, 170]].tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-4)
    assert row[[177, 184, 191]].tolist() == pytest.approx([0.75, 0.5, 0.25], abs=1e-4)
    assert row[[198, 199]].tolist() == pytest.approx([0.0, 0.0], abs=1e-4)


def test_the_window_is_round() -> None:
    window = soft_window(400)
    assert window[200 + 3 * 37, 200 + 4 * 37].item() == pytest.approx(window[200, 200 + 5 * 37].item(), abs=1e-4)
    assert torch.equal(window, window.T)


def test_slices_inserted_one_by_one_add_up_to_all_at_once(rotation: Tensor) -> None:
    points = half_disc(SIZE)
    coefficients = images_to_half_disc(images(rotation), points)
    ctf = torch.rand(COUNT, points.num_points, generator=torch.Generator().manual_seed(6)) - 0.5
    at_once, one_by_one = BackProjector(points), BackProjector(points)
    at_once.insert(coefficients, ctf, rotation)
    for row in reversed(range(COUNT)):
        one_by_one.insert(coefficients[row : row + 1], ctf[row : row + 1], rotation[row : row + 1])
    expected = unfiltered_volume(at_once.sums)
    assert (unfiltered_volume(one_by_one.sums) - expected).abs().max() < 1e-5 * expected.abs().max()
