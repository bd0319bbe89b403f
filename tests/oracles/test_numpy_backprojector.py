"""FSC curves of an independent back-projector in plain numpy (section 7.3 of the method notes), on six particle sets.

It follows the same description of cryoDRGN; curves are of its half maps without mask, and of its map against the truth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryodrgn_maps import compatible_maps, read_map

from conversions.inputs import read_particles
from conversions.table import ParticleTable
from drgn_ray.analysis.consensus import Maps
from drgn_ray.physics.fsc import fourier_shell_correlation

pytestmark = pytest.mark.filterwarnings("ignore:.*(Map ID|machine stamp)")  # the toy stack has neither
NUM_CLASS_D = 72


def undamped(table: ParticleTable) -> ParticleTable:
    """Without weights for dose and tilt, which it does not know."""
    table.columns["ctf_scalefactor"] = np.ones(len(table))
    table.columns["dose"] = np.zeros(len(table))
    return table


def of_class(data: Path, name: str, kind: str) -> ParticleTable:
    star = data / "empiar10076_sim" / f"10076_both_32_{kind}.star"
    table = read_particles(str(star), apix=13.1, no_ctf=kind == "clean")
    names = table.tables["table"]["rlnGroupName"].to_numpy()
    prefix = {"D": "000_", "E": "001_"}[name]
    return undamped(table.take(np.flatnonzero([each.startswith(prefix) for each in names])))


def assert_curve(first: np.ndarray, second: np.ndarray, expected: dict[int, float], tolerance: float) -> None:
    curve = fourier_shell_correlation(first, second, "cryodrgn")
    assert [curve[shell] for shell in expected] == pytest.approx(list(expected.values()), abs=tolerance)


def assert_halves(maps: Maps, expected: dict[int, float], tolerance: float = 0.02) -> None:
    assert_curve(maps.half1, maps.half2, expected, tolerance)


def test_the_toy(reference_data: Path, tmp_path: Path) -> None:
    fixtures = reference_data / "fixtures"
    table = read_particles(
        str(fixtures / "toy_projections.mrcs"), poses=str(fixtures / "toy_angles.pkl"), no_ctf=True, apix=1.0
    )
    maps = compatible_maps(table, tmp_path, -1)
    assert_halves(maps, {2: 0.9995, 5: 0.999, 10: 0.995, 14: 0.980}, 0.002)
    truth = read_map(fixtures / "toymodel_small_nocenter.mrc")
    assert fourier_shell_correlation(-maps.full, truth, "cryodrgn").min() > 0.98
    assert_curve(-maps.full, truth, {14: 0.981}, 0.002)
    assert np.corrcoef(maps.full.ravel(), truth.ravel())[0, 1] == pytest.approx(-0.955, abs=0.002)


def test_the_hand(reference_data: Path, tmp_path: Path) -> None:
    fixtures = reference_data / "fixtures"
    table = read_particles(str(fixtures / "hand.mrcs"), poses=str(fixtures / "hand_rot.pkl"), no_ctf=True, apix=1.0)
    assert_halves(compatible_maps(table, tmp_path, -1), {8: 0.965, 16: 0.852, 22: 0.739, 31: 0.609}, 0.005)


@pytest.mark.parametrize(
    ("kind", "name", "halves", "against_truth", "whole"),
    [
        ("clean", "D", {4: 0.993, 8: 0.978, 15: 0.942}, {4: 0.970, 8: 0.875, 15: 0.810}, 0.881),
        ("clean", "E", {4: 0.995, 8: 0.983, 15: 0.958}, {4: 0.965, 8: 0.902, 15: 0.863}, 0.884),
        ("sim", "D", {4: 0.964, 6: 0.718, 8: 0.372, 10: 0.141}, {4: 0.966, 6: 0.861, 8: 0.633, 10: 0.500}, 0.707),
        ("sim", "E", {4: 0.960, 6: 0.779, 8: 0.320, 10: 0.143}, {4: 0.965, 6: 0.903, 8: 0.663, 10: 0.472}, 0.733),
    ],
)
def test_shifted_images_clean_and_noisy_with_ctf(
    kind: str,
    name: str,
    halves: dict[int, float],
    against_truth: dict[int, float],
    whole: float,
    reference_data: Path,
    tmp_path: Path,
) -> None:
    maps = compatible_maps(of_class(reference_data, name, kind), tmp_path, 1)
    assert_halves(maps, halves)
    truth = read_map(reference_data / "empiar10076_sim" / f"10076_class{name}_32.mrc")
    clean = kind == "clean"
    assert_curve(maps.full, truth, against_truth, 0.02 if clean else 0.03)
    assert np.corrcoef(maps.full.ravel(), truth.ravel())[0, 1] == pytest.approx(whole, abs=0.01 if clean else 0.02)


def test_a_real_tilt_series_of_six_ribosomes(reference_data: Path, tmp_path: Path) -> None:
    fixtures = reference_data / "fixtures"
    table = read_particles(
        str(fixtures / "sta_testing_bin8.star"),
        poses=str(fixtures / "sta_pose.pkl"),
        ctf=str(fixtures / "sta_ctf.pkl"),
    )
    maps = compatible_maps(undamped(table), tmp_path, -1)
    assert_halves(maps, {4: 0.951, 8: 0.637, 10: 0.516, 14: 0.246}, 0.005)
