"""The consensus volume against cryoDRGN's ``backproject_voxel``: its window, its inversion, its CTF and its shifts.

cryoDRGN windows and inverts images unless told otherwise, and turns shifts from fractions of the box into pixels with
D + 1 in the place of D, an error that we make here to compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from conversions.driver import read_cropped
from conversions.inputs import read_particles
from conversions.table import ParticleTable
from drgn_ray.physics.backproject import BackProjector, cryodrgn_volume
from drgn_ray.physics.observation import CTF_COLUMNS, Observer

pytestmark = pytest.mark.filterwarnings("ignore:.*(Map ID|machine stamp)")  # the toy stack has neither
BATCH = 250


def reconstruct(table: ParticleTable, *, data_sign: int = -1) -> np.ndarray:
    size = int(table.box_sizes[0])
    observer = Observer(box_size=size, data_sign=data_sign, hartley_std=1.0, window=True, ctf=table.has_ctf)
    projector = BackProjector(observer.half_disc, kernel="cryodrgn")
    for start in range(0, len(table), BATCH):
        rows = np.arange(start, min(start + BATCH, len(table)))
        batch = {
            name: torch.tensor(table.columns[name][rows], dtype=torch.float32)
            for name in (*CTF_COLUMNS, "rotation", "translation")
        }
        batch["images"] = torch.tensor(read_cropped(table.images_of(rows), table.samplings[0], table.samplings[0]))
        batch["translation"] *= (size + 1) / size
        projector.insert(*observer(batch))
    return cryodrgn_volume(projector.sums).numpy()


def assert_same_volume(ours: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert np.corrcoef(ours.ravel(), expected.ravel())[0, 1] > 0.9999
    assert np.abs(ours - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("poses", "reference"), [("hand_rot", "bp_hand_rot"), ("hand_rot_trans", "bp_hand")])
def test_images_that_fill_the_box_are_windowed_as_cryodrgn_does(
    reference_data: Path, poses: str, reference: str
) -> None:
    fixtures = reference_data / "fixtures"
    table = read_particles(str(fixtures / "hand.mrcs"), poses=str(fixtures / f"{poses}.pkl"), no_ctf=True, apix=1.0)
    expected = mrcfile.read(reference_data / "reference" / f"{reference}.backproject.mrc")
    assert_same_volume(reconstruct(table), expected, 1e-5)


def test_inverted_images_times_a_negative_ctf_are_positive_as_in_cryodrgn(reference_data: Path) -> None:
    """This CTF is all but constant (no defocus, phase shift 90 degrees): it tells the sign, and no more."""
    fixtures = reference_data / "fixtures"
    table = read_particles(
        str(fixtures / "toy_projections.mrcs"),
        poses=str(fixtures / "toy_rot_trans.pkl"),
        ctf=str(fixtures / "test_ctf.pkl"),
    )
    expected = mrcfile.read(reference_data / "reference" / "bp_toy_ctf.backproject.mrc")
    assert_same_volume(reconstruct(table), expected, 1e-5)
    assert_same_volume(reconstruct(table, data_sign=1), -expected, 1e-5)


@pytest.fixture(scope="module")
def adk(reference_data: Path) -> Mapping[str, np.ndarray]:
    """Our volume of 5,000 noisy images with shifts and astigmatic CTFs, cryoDRGN's, and the true mean."""
    folder = reference_data / "adk_sim"
    return {
        "ours": reconstruct(read_particles(str(folder / "particles.star"))),
        "cryodrgn": np.array(mrcfile.read(folder / "cryodrgn_backproject_consensus.mrc"), np.float32),
        "truth": np.array(mrcfile.read(folder / "gt_mean.mrc"), np.float32),
    }


def test_the_volume_of_shifted_noisy_images_with_ctf_is_cryodrgns(adk: Mapping[str, np.ndarray]) -> None:
    assert_same_volume(adk["ours"], adk["cryodrgn"], 1e-3)


def test_that_volume_is_the_true_one_and_not_its_mirror_image(adk: Mapping[str, np.ndarray]) -> None:
    ours, truth = adk["ours"], adk["truth"].ravel()
    mirrored = np.roll(ours[:, :, ::-1], 1, axis=2)  # pixel D/2 stays where it is
    assert np.corrcoef(ours.ravel(), truth)[0, 1] > 0.93
    assert np.corrcoef(mirrored.ravel(), truth)[0, 1] < 0.55
