"""What resolution a curve says, and what is left of it when the mask's own correlation is taken away."""

from __future__ import annotations

import numpy as np
import pytest

from drgn_ray.physics.fsc import (
    corrected_curve,
    first_shell_below,
    fourier_shell_correlation,
    randomise_phases,
    resolution,
)
from drgn_ray.physics.mask import sphere_mask
from drgn_ray.physics.volume import filter_radially

SIZE, APIX = 32, 2.0
# Falls below 0.5 between shells 4 and 5 and below 0.143 between 6 and 7, and comes back at 10.
REVIVING = np.array([1, 1, 0.95, 0.9, 0.8, 0.4, 0.2, 0.1, 0.05, 0.1, 0.55, 0.3, 0.05, 0, 0, 0, 0])


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(SIZE,) * 3)


def up_to_shell(volume: np.ndarray, last: float) -> np.ndarray:
    return filter_radially(volume, 1.0, lambda frequency: 1.0 * (frequency * SIZE <= last)).astype(np.float64)


@pytest.mark.parametrize(("threshold", "shell"), [(0.5, 4.75), (0.143, 6.57)])
def test_resolution_is_the_first_crossing_between_two_shells(threshold: float, shell: float) -> None:
    assert resolution(REVIVING, SIZE, APIX, threshold) == pytest.approx(SIZE * APIX / shell)


@pytest.mark.parametrize(("threshold", "shell"), [(0.5, 10), (0.143, 11)])
def test_cryodrgns_resolution_is_the_last_shell_that_reaches_it(threshold: float, shell: int) -> None:
    assert resolution(REVIVING, SIZE, APIX, threshold, last=True) == pytest.approx(SIZE * APIX / shell)


def test_a_curve_that_never_falls_is_resolved_to_nyquist() -> None:
    assert resolution(np.full(17, 0.9), SIZE, APIX, 0.5) == 2 * APIX


def test_a_curve_that_falls_in_the_last_shell_is_not_quite() -> None:
    curve = np.append(np.ones(16), 0.0)
    assert resolution(curve, SIZE, APIX, 0.5) == pytest.approx(SIZE * APIX / 15.5)


def test_a_curve_below_from_the_first_shell_is_resolved_to_the_box() -> None:
    curve = np.append(1.0, np.zeros(16))
    assert resolution(curve, SIZE, APIX, 0.5) == SIZE * APIX
    assert resolution(curve, SIZE, APIX, 0.5, last=True) == np.inf


@pytest.mark.parametrize(("threshold", "shell"), [(0.8, 5), (0.143, 7), (-1.0, 16)])
def test_the_first_shell_below_a_threshold_is_found(threshold: float, shell: int) -> None:
    assert first_shell_below(REVIVING, threshold) == shell


def test_a_volume_correlates_with_itself_and_with_its_negative() -> None:
    assert fourier_shell_correlation(noise(0), 3 * noise(0)) == pytest.approx(1)
    assert fourier_shell_correlation(noise(0), -noise(0)) == pytest.approx(-1)


def test_signal_and_equal_noise_correlate_by_one_half() -> None:
    curve = fourier_shell_correlation(noise(0) + noise(1), noise(0) + noise(2))
    assert curve[4:].mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("convention", ["relion", "cryodrgn"])
def test_random_phases_keep_amplitudes_and_what_is_below(convention) -> None:
    volume = noise(0)
    randomised = randomise_phases(volume, 6, np.random.default_rng(1), convention)
    assert randomised.dtype.kind == "f"
    before, after = np.fft.fftn(volume), np.fft.fftn(randomised)
    assert np.abs(after) == pytest.approx(np.abs(before), rel=1e-6), "an inverse that is not real would lose some"
    axis = np.fft.fftfreq(SIZE) * SIZE
    radius = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij")), axis=0)
    first = 5.5 if convention == "relion" else 5.0
    assert after[radius < first] == pytest.approx(before[radius < first])
    for beyond, chance in (((radius >= first) & (radius < first + 1), 0.25), (radius >= first, 0.03)):
        likeness = np.vdot(after[beyond], before[beyond]).real / np.linalg.norm(before[beyond]) ** 2
        assert abs(likeness) < chance


@pytest.mark.parametrize("convention", ["relion", "cryodrgn"])
def test_correction_takes_away_what_the_mask_brings_and_nothing_else(convention) -> None:
    """Half maps share shells 0 to 4 only; a sharp mask smears those over the noise beyond, which then correlates."""
    mask, masked, corrected = sphere_mask(SIZE, 8.0), [], []
    for pair in range(6):
        shared = 10 * up_to_shell(noise(100 + pair), 4) + 1
        halves = [shared + noise(seed) - up_to_shell(noise(seed), 4) for seed in (2 * pair, 2 * pair + 1)]
        masked.append(fourier_shell_correlation(halves[0] * mask, halves[1] * mask, convention))
        corrected.append(corrected_curve(*halves, mask, 5, seed=pair, convention=convention))
    assert np.mean(masked, axis=0)[7:].mean() > 0.2
    assert abs(np.mean(corrected, axis=0)[7:].mean()) < 0.05
    assert np.array_equal(np.array(corrected)[:, :7], np.array(masked)[:, :7]), (
        "below the random phases nothing changes"
    )


def test_the_corrected_curve_of_a_clean_pair_is_one() -> None:
    assert corrected_curve(noise(0), noise(0), sphere_mask(SIZE, 6.0), 4) == pytest.approx(1)


def test_correction_leaves_what_is_really_shared() -> None:
    """Signal and equal noise in all shells: one half, masked or not, corrected or not."""
    halves = noise(0) + noise(1), noise(0) + noise(2)
    corrected = corrected_curve(*halves, sphere_mask(SIZE, 12.0), 4)
    assert corrected[6:].mean() == pytest.approx(0.5, abs=0.05)
