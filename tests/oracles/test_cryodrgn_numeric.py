"""Transforms, CTF, shifts and rotations against numbers that cryoDRGN itself computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from drgn_ray.particles.normalise import measure
from drgn_ray.physics.ctf import compute_ctf
from drgn_ray.physics.fourier import fourier_crop, hartley, images_to_half_disc, translate
from drgn_ray.physics.lattice import half_disc, hartley_from_half
from drgn_ray.physics.observation import Observer
from drgn_ray.units import relion_from_rotation, rotation_from_relion

CTF_NAMES = ("apix", "defocus_u", "defocus_v", "defocus_angle", "voltage", "cs", "amplitude_contrast", "phase_shift")
POINTS = half_disc(64)


@pytest.fixture(scope="module")
def numbers(reference_data: Path) -> Mapping[str, np.ndarray]:
    return np.load(reference_data / "reference" / "numeric_checkpoints.npz")


@pytest.fixture(scope="module")
def in_disc(numbers: Mapping[str, np.ndarray]) -> np.ndarray:
    """Points of the 65 x 65 lattice that training uses."""
    k = np.rint(numbers["lattice_freqs2d"] * 64)
    return ((k**2).sum(axis=1) <= 32**2) & (k != 0).any(axis=1)


def disc_values(numbers: Mapping[str, np.ndarray], name: str, in_disc: np.ndarray) -> np.ndarray:
    return numbers[name].reshape(len(numbers[name]), -1)[:, in_disc]


def images(numbers: Mapping[str, np.ndarray]) -> Tensor:
    return torch.tensor(numbers["images"])


def test_the_hartley_transform_is_cryodrgns(numbers: Mapping[str, np.ndarray]) -> None:
    expected = numbers["ht2_center"]
    assert np.abs(hartley(images(numbers)).numpy() - expected).max() < 1e-6 * np.abs(expected).max()


def test_the_half_disc_holds_the_lattices_values_in_its_order(
    numbers: Mapping[str, np.ndarray], in_disc: np.ndarray
) -> None:
    expected = disc_values(numbers, "ht_symmetrized", in_disc)
    ours = hartley_from_half(images_to_half_disc(images(numbers), POINTS)).numpy()
    assert np.abs(ours - expected).max() < 1e-6 * np.abs(expected).max()
    k = np.rint(numbers["lattice_freqs2d"] * 64)[in_disc]
    assert np.array_equal(k[: POINTS.num_points], POINTS.k.numpy())
    assert np.array_equal(k[::-1][: POINTS.num_points], -POINTS.k.numpy())


def test_a_shift_is_cryodrgns(numbers: Mapping[str, np.ndarray], in_disc: np.ndarray) -> None:
    expected = disc_values(numbers, "ht_translated", in_disc)
    shifted = translate(
        images_to_half_disc(images(numbers), POINTS), torch.tensor(numbers["translations_px"]), POINTS.freq
    )
    assert np.abs(hartley_from_half(shifted).numpy() - expected).max() < 1e-6 * np.abs(expected).max()


def ctf_in_float64(parameters: np.ndarray, freq: np.ndarray) -> np.ndarray:
    """The formula of cryodrgn.md 2.3, evaluated in float64 image by image."""
    rows = []
    for apix, u, v, angle, kv, cs, w, phase in parameters.astype(np.float64):
        x, y = freq.astype(np.float64).T / apix
        s2, volts = x**2 + y**2, kv * 1000
        wavelength = 12.2639 / np.sqrt(volts + 0.97845e-6 * volts**2)
        defocus = 0.5 * (u + v + (u - v) * np.cos(2 * (np.arctan2(y, x) - np.deg2rad(angle))))
        gamma = 2 * np.pi * (-0.5 * defocus * wavelength * s2 + 0.25 * cs * 1e7 * wavelength**3 * s2**2)
        gamma -= np.deg2rad(phase)
        rows.append(np.sqrt(1 - w**2) * np.sin(gamma) - w * np.cos(gamma))
    return np.array(rows)


def test_the_ctf_is_cryodrgns_and_as_near_to_float64(numbers: Mapping[str, np.ndarray], in_disc: np.ndarray) -> None:
    parameters = numbers["ctf_params"][:, 1:]
    ours = compute_ctf(POINTS.freq, **dict(zip(CTF_NAMES, torch.tensor(parameters).T, strict=True))).numpy()
    theirs = disc_values(numbers, "ctf_on_65_lattice", in_disc)[:, : POINTS.num_points]
    exact = ctf_in_float64(parameters, POINTS.freq.numpy())
    assert np.abs(ours - theirs).max() < 3e-4  # phases of hundreds of radians in float32
    assert np.abs(ours - exact).max() < max(2 * np.abs(theirs - exact).max(), 1e-5)


def test_rotations_from_relions_angles_are_cryodrgns(numbers: Mapping[str, np.ndarray]) -> None:
    angles = numbers["relion_euler_deg"]
    assert np.abs(rotation_from_relion(*angles.T) - numbers["R_from_relion"]).max() < 1e-6
    again = rotation_from_relion(*relion_from_rotation(numbers["R_from_relion"]).T)
    assert np.abs(again - numbers["R_from_relion"]).max() < 1e-6


def test_one_rotation_is_the_one_of_cryodrgns_unit_test() -> None:
    ours = rotation_from_relion(np.array([-147.9485]), np.array([22.58999]), np.array([162.539]))[0]
    expected = [
        [0.90571941, 0.21306972, 0.36643367],
        [-0.27142096, 0.95553406, 0.11526193],
        [-0.32558103, -0.20385275, 0.92327734],
    ]
    assert np.abs(ours - expected).max() < 1e-6


def test_preprocessed_particles_are_cryodrgns(reference_data: Path) -> None:
    """Window, inversion, transform and normalisation of its own test (hand.mrcs)."""
    import mrcfile

    particles = torch.tensor(np.array(mrcfile.read(reference_data / "fixtures" / "hand.mrcs"), np.float32))
    expected = np.load(reference_data / "fixtures" / "hand_11_particles.npy")
    chosen = [43, 12, 53, 64, 31, 56, 75, 63, 27, 62, 96]
    spread = measure([(np.arange(len(particles)), particles)], len(particles)).hartley_std
    assert spread == pytest.approx(94.4595, abs=1e-3)
    observer = Observer(box_size=64, data_sign=-1, hartley_std=spread, window=True, ctf=False)
    count = len(chosen)
    batch = {
        "images": particles[chosen],
        "translation": torch.zeros(count, 2),
        "apix": torch.ones(count),
        "rotation": torch.eye(3).expand(count, 3, 3),
    }
    k = POINTS.k.numpy() + 32
    ours = observer(batch).coefficients
    assert np.abs((ours.real - ours.imag).numpy() - expected[:, k[:, 1], k[:, 0]]).max() < 1e-5


@pytest.mark.parametrize(
    ("source", "reference", "box_size"),
    [
        ("fixtures/relion31.mrcs", "relion31_D64.mrcs", 64),
        ("fixtures/toy_projections.mrcs", "toy_D16.mrcs", 16),
        ("fixtures/empiar_10076_7.mrc", "empiar10076_7_D64.mrcs", 64),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(Map ID|machine stamp)")
def test_downsampling_is_cryodrgns(reference_data: Path, source: str, reference: str, box_size: int) -> None:
    import mrcfile

    original = np.array(mrcfile.read(reference_data / source), np.float32)
    expected = mrcfile.read(reference_data / "reference" / reference)
    ours = fourier_crop(torch.tensor(original), box_size).numpy()
    assert np.abs(ours - expected).max() < 3e-5 * expected.std()
