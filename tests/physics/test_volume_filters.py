"""Filters, resampling, cropping and mirroring of volumes against closed forms."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from drgn_ray.physics.simulate import BlobMolecule, density
from drgn_ray.physics.volume import crop, flip_hand, guinier_bfactor, low_pass, resample, sharpen

pytestmark = pytest.mark.filterwarnings("ignore:.*(Map ID|machine stamp)")
APIX = 1.5
CHIRAL = torch.tensor([[0.0, 0, -9], [7, 0, -3], [0, 7, 3], [-7, 0, 9], [5, -4, 0]], dtype=torch.float64)


def molecule(position: torch.Tensor = CHIRAL, sigma: float = 3.0) -> BlobMolecule:
    return BlobMolecule(position, torch.arange(1.0, len(position) + 1, dtype=position.dtype), sigma)


def density_of(blobs: BlobMolecule, box_size: int, apix: float = APIX) -> np.ndarray:
    """Density in mass/Å³, which does not depend on the sampling."""
    return density(blobs, box_size, apix).numpy() / apix**3


def wave(cycles: tuple[int, int, int], shape: tuple[int, int, int] = (32, 32, 32)) -> np.ndarray:
    z, y, x = np.meshgrid(*(np.arange(size) / size for size in shape), indexing="ij")
    return np.cos(2 * np.pi * (cycles[0] * z + cycles[1] * y + cycles[2] * x)).astype(np.float32)


@pytest.mark.parametrize("direction", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_a_low_pass_keeps_slow_waves_and_kills_fast_ones(direction: tuple[int, int, int]) -> None:
    """Box of 48 Å, cut at 6 Å: 8 waves in the box, with an edge from 7 to 9."""
    for cycles, left in ((7, 1.0), (8, 0.5), (9, 0.0)):
        plane = wave(tuple(cycles * each for each in direction))
        assert low_pass(plane, APIX, 6.0) == pytest.approx(left * plane, abs=1e-5)


def test_a_low_pass_leaves_the_mean() -> None:
    assert low_pass(np.full((16, 16, 16), 3.0, np.float32), APIX, 10.0) == pytest.approx(3.0, abs=1e-5)


def test_a_low_pass_of_a_volume_that_is_no_cube_is_in_angstrom() -> None:
    """Along z the box is 96 Å and along x 48 Å, so the same wave has twice the cycles."""
    for along_z, along_x, left in ((12, 6, 1.0), (20, 10, 0.0)):
        for cycles in ((along_z, 0, 0), (0, 0, along_x)):
            plane = wave(cycles, (64, 32, 32))
            assert low_pass(plane, APIX, 6.0) == pytest.approx(left * plane, abs=1e-5)


@pytest.mark.parametrize("bfactor", [-200.0, 150.0])
def test_a_bfactor_changes_the_width_of_a_gaussian(bfactor: float) -> None:
    """exp(-2π²σ²s²) exp(-Bs²/4) is a Gaussian of variance σ² + B/8π²."""
    sigma = (9.0 + bfactor / (8 * np.pi**2)) ** 0.5
    sharpened = sharpen(density_of(molecule(), 48), APIX, bfactor)
    expected = density_of(molecule(sigma=sigma), 48)
    assert np.abs(sharpened - expected).max() < 1e-4 * expected.max()
    assert np.abs(density_of(molecule(), 48) - expected).max() > 0.1 * expected.max()


def test_sharpening_is_undone_by_blurring() -> None:
    volume = np.random.default_rng(0).normal(size=(16, 16, 16))
    assert sharpen(sharpen(volume, APIX, -30.0), APIX, 30.0) == pytest.approx(volume, abs=1e-4)


@pytest.mark.parametrize("bfactor", [40.0, 120.0, -30.0])
def test_a_guinier_fit_finds_what_undoes_a_known_decay(bfactor: float) -> None:
    point = np.zeros((64, 64, 64))
    point[32, 32, 32] = 1
    assert guinier_bfactor(sharpen(point, 1.0, bfactor), 1.0, 3.0) == pytest.approx(-bfactor, rel=0.01)


def test_a_guinier_fit_of_many_atoms_finds_their_width() -> None:
    """Random atoms have a flat spectrum, so what falls is the atom's own 8π²σ²."""
    position = 40 * torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) - 20
    blobs = BlobMolecule(position, torch.ones(400), 1.2)
    assert guinier_bfactor(density_of(blobs, 64, 1.0), 1.0, 3.0) == pytest.approx(-8 * np.pi**2 * 1.44, rel=0.1)


def test_a_guinier_fit_needs_shells_that_hold_something() -> None:
    volume = np.random.default_rng(0).normal(size=(16, 16, 16))
    with pytest.raises(ValueError, match="there are 0 shells between 10 and 12 Å"):
        guinier_bfactor(volume, 1.0, 12.0)
    with pytest.raises(ValueError, match="holds nothing"):
        guinier_bfactor(np.zeros((32, 32, 32)), 1.0, 3.0)


@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 7, 7), (8, 6, 4)])
def test_the_other_hand_of_the_other_hand_is_the_first(shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(0).normal(size=shape)
    flipped = flip_hand(volume)
    assert np.array_equal(flip_hand(flipped), volume)
    assert np.array_equal(flipped[shape[0] // 2], volume[shape[0] // 2]), "the origin's plane stays"
    assert np.array_equal(flipped[shape[0] // 2 + 1], volume[shape[0] // 2 - 1])


def test_the_other_hand_is_the_density_of_the_mirrored_molecule() -> None:
    mirrored = density_of(molecule(CHIRAL * torch.tensor([1, 1, -1])), 48)
    volume = density_of(molecule(), 48)
    assert flip_hand(volume) == pytest.approx(mirrored, abs=1e-9)
    assert np.abs(volume - mirrored).max() > 0.5 * volume.max(), "a molecule that has a hand"


@pytest.mark.parametrize(("box_size", "other"), [(48, 32), (48, 33), (47, 32), (47, 31)])
def test_a_crop_is_the_density_of_a_smaller_box_and_padding_brings_it_back(box_size: int, other: int) -> None:
    volume = density_of(molecule(), box_size)
    small = crop(volume, other)
    assert small == pytest.approx(density_of(molecule(), other), abs=1e-12)
    padded = crop(small, box_size)
    assert padded.shape == volume.shape
    assert np.array_equal(crop(padded, other), small)
    assert padded.sum() == pytest.approx(small.sum()), "padding is zeros"


def test_a_crop_makes_a_cube_of_a_volume_that_is_none() -> None:
    volume = np.random.default_rng(0).normal(size=(12, 8, 4))
    cube = crop(volume, 8)
    assert cube.shape == (8, 8, 8)
    assert np.array_equal(cube[:, :, 2:6], volume[2:10])
    assert not cube[:, :, :2].any()
    assert not cube[:, :, 6:].any()


@pytest.mark.parametrize("box_size", [32, 40, 64, 96])
def test_a_resampled_density_is_that_of_the_new_sampling(box_size: int) -> None:
    """Blobs of 3 Å hold 1e-5 of their amplitude at the coarsest Nyquist, 4.5 Å."""
    expected = density_of(molecule(), box_size, 48 * APIX / box_size)
    resampled = resample(density_of(molecule(), 48), box_size)
    assert np.abs(resampled - expected).max() < 1e-3 * expected.max()


@pytest.mark.parametrize(("box_size", "new_size"), [(32, 16), (16, 32)])
def test_a_wave_below_the_smaller_nyquist_is_kept_and_one_at_it_is_gone(box_size: int, new_size: int) -> None:
    """At Nyquist, 8 waves in the box, the two signs of a frequency are one sample, which the other size has twice."""
    for cycles, left in ((7, 1.0), (8, 0.0)):
        resampled = resample(wave((cycles, 0, 0), (box_size,) * 3), new_size)
        assert resampled == pytest.approx(left * wave((cycles, 0, 0), (new_size,) * 3), abs=1e-5)


def test_resampling_to_the_same_size_changes_nothing() -> None:
    volume = np.random.default_rng(0).normal(size=(8, 8, 8))
    assert np.array_equal(resample(volume, 8), volume)


def test_a_resampled_map_is_cryodrgns_but_for_its_scale_and_nyquist(reference_data: Path) -> None:
    """Values of ``cryodrgn downsample --is-vol`` grow by (64/32)³; it keeps one sign of the Nyquist frequencies."""
    volume = np.array(mrcfile.read(reference_data / "fixtures" / "hand-vol.mrc"), np.float32)
    theirs = np.fft.fftn(mrcfile.read(reference_data / "reference" / "handvol_D32.mrc").astype(np.float64))
    below_nyquist = np.ix_(*[np.arange(-15, 16)] * 3)
    ours = np.fft.fftn(resample(volume, 32).astype(np.float64))
    assert np.abs(8 * ours - theirs)[below_nyquist].max() < 1e-6 * np.abs(theirs).max()
