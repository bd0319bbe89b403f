"""``drgn-ray backproject --like-cryodrgn`` against cryoDRGN's ``backproject_voxel``: maps, half maps and FSC curves.

`commands.log` beside the references holds the commands that made them.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryodrgn_maps import compatible_maps, read_map

from conversions.inputs import read_particles
from conversions.table import ParticleTable
from drgn_ray.analysis.consensus import Correlation, Maps, correlate_halves

pytestmark = pytest.mark.filterwarnings("ignore:.*(Map ID|machine stamp)")  # the toy stack has neither
INVERTED, UNINVERTED = -1, 1
COLUMNS = ("unmasked", "spherical", "loose", "tight")


@dataclass(frozen=True)
class Case:
    """One command: its particles, flags of conversion as (name, file or value), and flags of the back-projection."""

    name: str
    particles: str
    flags: tuple[tuple[str, str], ...]
    data_sign: int = INVERTED
    dose_per_tilt: float | None = None
    ntilts: int | None = None
    curve_tolerance: float = 1e-3


TOY, HAND, STA = "fixtures/toy_projections.mrcs", "fixtures/hand.mrcs", "fixtures/sta_testing_bin8.star"
SIM = "empiar10076_sim/10076_both_32_sim.star"
SHIFTED = ("poses", "fixtures/toy_rot_trans.pkl")
CENTRED = ("poses", "fixtures/toy_angles.pkl")
STA_FLAGS = (("poses", "fixtures/sta_pose.pkl"), ("ctf", "fixtures/sta_ctf.pkl"))
SIM_FLAGS = (("poses", "reference/e10076sim.pose.npz"), ("ctf", "reference/e10076sim.ctf.npz"))
CASES = [
    Case("bp_toy", TOY, (SHIFTED,), UNINVERTED),
    Case("bp_toy_ctf", TOY, (SHIFTED, ("ctf", "fixtures/test_ctf.pkl"))),
    Case("bp_toy_notrans", TOY, (CENTRED,)),
    Case("bp_toy_notrans_uninv", TOY, (CENTRED,), UNINVERTED),
    Case("bp_hand", HAND, (("poses", "fixtures/hand_rot_trans.pkl"),)),
    Case("bp_hand_rot", HAND, (("poses", "fixtures/hand_rot.pkl"),)),
    Case("bp_sta", STA, STA_FLAGS, dose_per_tilt=2.93, ntilts=10),
    # A voxel lies so near to the threshold of the masks (1e-5 of it) that rounding decides on which side.
    Case("bp_sta_nt5", STA, STA_FLAGS, dose_per_tilt=2.93, ntilts=5, curve_tolerance=3e-3),
    Case("bp_e10076sim", SIM, SIM_FLAGS, dose_per_tilt=2.0, ntilts=10),
    Case("bp_e10076sim_uninv", SIM, SIM_FLAGS, UNINVERTED, dose_per_tilt=2.0, ntilts=10),
]


@dataclass(frozen=True)
class Reconstructed:
    """What we made of a case, and cryoDRGN's folder."""

    case: Case
    maps: Maps
    correlation: Correlation
    reference: Path

    def cryodrgns_curves(self) -> np.ndarray:
        """Columns pixres, NoMask, Spherical, Loose, Tight, Corrected."""
        return np.loadtxt(self.reference / f"{self.case.name}.fsc-vals.txt", skiprows=1)


def read_case(case: Case, data: Path, folder: Path) -> ParticleTable:
    given = {name: _as_pickle(data / file, folder) for name, file in case.flags}
    if "ctf" not in given:
        given |= {"no_ctf": True, "apix": 1.0}
    table = read_particles(str(data / case.particles), **given)  # type: ignore[arg-type]
    if case.ntilts is not None:
        table.columns["tilt_index"] = cryodrgns_ranks(table.columns["particle"], table.columns["ctf_scalefactor"])
    return table


def _as_pickle(path: Path, folder: Path) -> str:
    """Write the arrays of an .npz as the pickle that they come from: angles read again are rounded otherwise."""
    if path.suffix == ".pkl":
        return str(path)
    arrays = list(np.load(path).values())
    pickled = folder / f"{path.stem}.pkl"
    pickled.write_bytes(pickle.dumps(tuple(arrays) if len(arrays) > 1 else arrays[0]))
    return str(pickled)


def cryodrgns_ranks(particle: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Rank tilts by an unstable sort that is then reversed, so that of two tilts by +-angle either comes first.

    Ours takes that with less dose first; with its ranks the maps differ in the dose of half of the images.
    """
    ranks = np.empty(len(particle), np.int64)
    for number in np.unique(particle):
        mine = np.flatnonzero(particle == number)
        ranks[mine[np.argsort(scale[mine])[::-1]]] = np.arange(len(mine))
    return ranks


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def made(
    request: pytest.FixtureRequest, reference_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Reconstructed:
    case, folder = request.param, tmp_path_factory.mktemp("store")
    table = read_case(case, reference_data, folder)
    maps = compatible_maps(table, folder, case.data_sign, dose_per_tilt=case.dose_per_tilt, ntilts=case.ntilts)
    correlation = correlate_halves(maps, float(table.columns["apix"][0]), "cryodrgn")
    return Reconstructed(case, maps, correlation, reference_data / "reference")


def test_the_map_is_cryodrgns(made: Reconstructed) -> None:
    assert_same_volume(made.maps.full, read_map(made.reference / f"{made.case.name}.backproject.mrc"))


def test_the_half_maps_are_cryodrgns(made: Reconstructed) -> None:
    """Only those of the toy were kept; the curves below tell of the others."""
    files = [made.reference / f"{made.case.name}.half_map_{half}.mrc" for half in "ab"]
    if not files[0].exists():
        assert not made.case.name.startswith("bp_toy")
        return
    for ours, file in zip((made.maps.half1, made.maps.half2), files, strict=True):
        assert_same_volume(ours, read_map(file))


def assert_same_volume(ours: np.ndarray, expected: np.ndarray) -> None:
    assert np.corrcoef(ours.ravel(), expected.ravel())[0, 1] > 0.9999
    assert np.abs(ours - expected).max() < 1e-3 * np.abs(expected).max()


def test_the_curves_under_every_mask_are_cryodrgns(made: Reconstructed) -> None:
    """Shell 1 holds the mean alone, whose correlation is 1 or -1 as it is rounded."""
    theirs = made.cryodrgns_curves()
    assert np.allclose(theirs[:, 0], np.arange(len(theirs)) / len(made.maps.full), atol=1e-6)
    for number, name in enumerate(COLUMNS, 1):
        ours = made.correlation.curves[name]
        assert np.abs(ours[2:] - theirs[2:, number]).max() < made.case.curve_tolerance, name
        assert np.abs(ours[:2]) == pytest.approx(np.abs(theirs[:2, number]), abs=1e-3), name


def test_the_corrected_curve_is_cryodrgns_where_phases_were_not_randomised(made: Reconstructed) -> None:
    """Beyond, it depends on the seed."""
    ours, tight = made.correlation.curves["corrected"], made.correlation.curves["tight"]
    their_tight, theirs = made.cryodrgns_curves()[:, 4:].T
    randomised = np.flatnonzero(theirs != their_tight)
    first = int(randomised[0]) if len(randomised) else len(theirs)
    assert first >= 5
    assert np.abs(ours[2:first] - theirs[2:first]).max() < made.case.curve_tolerance
    assert np.array_equal(ours[:first], tight[:first])
