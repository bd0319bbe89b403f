"""The consensus volume against cryoDRGN's ``backproject_voxel``."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from drgn_ray.physics.backproject import BackProjector, cryodrgn_volume
from drgn_ray.physics.observation import Observer

pytestmark = pytest.mark.filterwarnings("ignore:.*(Map ID|machine stamp)")  # the toy stack has neither


def reconstruct(images: np.ndarray, rotation: np.ndarray, data_sign: int, shift_px: np.ndarray) -> np.ndarray:
    count, size = images.shape[:2]
    observer = Observer(box_size=size, data_sign=data_sign, hartley_std=1.0, window=False, ctf=False)
    seen = observer(
        {
            "images": torch.tensor(images, dtype=torch.float32),
            "rotation": torch.tensor(rotation, dtype=torch.float32),
            "translation": torch.tensor(shift_px, dtype=torch.float32),
            "apix": torch.ones(count),
        }
    )
    projector = BackProjector(observer.half_disc, kernel="cryodrgn")
    projector.insert(seen.coefficients, seen.ctf, seen.rotation)
    return cryodrgn_volume(projector.sums).numpy()


def assert_same_volume(ours: np.ndarray, expected: np.ndarray) -> None:
    assert np.corrcoef(ours.ravel(), expected.ravel())[0, 1] > 0.9999
    assert np.abs(ours - expected).max() < 1e-3 * np.abs(expected).max()


def test_the_volume_of_centred_images_is_cryodrgns(reference_data: Path) -> None:
    images = mrcfile.read(reference_data / "fixtures" / "toy_projections.mrcs")
    rotation = np.load(reference_data / "reference" / "input_toy_angles.npz")["data"]
    expected = mrcfile.read(reference_data / "reference" / "bp_toy_notrans_uninv.backproject.mrc")
    assert_same_volume(reconstruct(images, rotation, 1, np.zeros((len(images), 2))), expected)


def test_inverting_the_data_inverts_the_volume_as_cryodrgn_does_by_default(reference_data: Path) -> None:
    images = mrcfile.read(reference_data / "fixtures" / "toy_projections.mrcs")
    rotation = np.load(reference_data / "reference" / "input_toy_angles.npz")["data"]
    expected = mrcfile.read(reference_data / "reference" / "bp_toy_notrans.backproject.mrc")
    assert_same_volume(reconstruct(images, rotation, -1, np.zeros((len(images), 2))), expected)


def test_the_volume_of_shifted_images_is_cryodrgns(reference_data: Path) -> None:
    """Its shifts are fractions times D + 1 px, an error of 1/D that we make here to compare."""
    images = mrcfile.read(reference_data / "fixtures" / "toy_projections.mrcs")
    poses = np.load(reference_data / "reference" / "input_toy_rot_trans.npz")
    expected = mrcfile.read(reference_data / "reference" / "bp_toy.backproject.mrc")
    rotation, fraction = (poses[name] for name in poses)
    assert_same_volume(reconstruct(images, rotation, 1, fraction * (images.shape[1] + 1)), expected)
