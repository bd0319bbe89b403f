"""cryoDRGN's pickles: their numbers land, and what they may hide does not run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from star_sets import read_stack

from conversions.cryodrgn import read_pickle
from conversions.inputs import read_particles
from drgn_ray.errors import ParticleFileError
from drgn_ray.particles.store import ParticleStore
from jobs.cli import main

CTF_COLUMNS = ("apix", "defocus_u", "defocus_v", "defocus_angle", "voltage", "cs", "amplitude_contrast", "phase_shift")


class Calls:
    """Pickled, it calls a function when it is opened."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def write_pickle(path: Path, content: Any) -> str:
    path.write_bytes(pickle.dumps(content))
    return str(path)


def load_only(path: Path) -> np.ndarray:
    """The one array of an ``.npz``."""
    (array,) = np.load(path).values()
    return array


@pytest.fixture
def toy(reference_data: Path) -> dict[str, str]:
    """1,000 images of 30 px."""
    folder = reference_data / "fixtures"
    return {
        "path": str(folder / "toy_projections.mrcs"),
        "poses": str(folder / "toy_rot_trans.pkl"),
        "ctf": str(folder / "test_ctf.pkl"),
    }


@pytest.fixture
def hand(reference_data: Path) -> list[str]:
    """Words that convert 100 images of 64 px without CTF; poses are to be added."""
    return ["convert", str(reference_data / "fixtures/hand.mrcs"), "--no-ctf", "--apix", "1.5", "--workers", "0"]


def test_poses_are_turned_from_fractions_of_the_box_into_angstrom(toy: dict[str, str], reference_data: Path) -> None:
    poses = np.load(reference_data / "reference/input_toy_rot_trans.npz")
    columns = read_particles(**toy).columns
    np.testing.assert_allclose(columns["rotation"], poses["rot"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(columns["translation"], poses["trans"] * 30 * 1.0, rtol=0, atol=1e-6 * 30)
    assert np.abs(columns["translation"]).max() > 1


def test_the_ctf_lands_column_by_column(toy: dict[str, str], reference_data: Path) -> None:
    expected_ctf = load_only(reference_data / "reference/input_test_ctf.npz")
    table = read_particles(**toy)
    assert table.has_ctf
    for column, expected in zip(CTF_COLUMNS, expected_ctf[:, 1:].T, strict=True):
        np.testing.assert_allclose(table.columns[column], expected, rtol=1e-6, err_msg=column)


def test_no_two_ctf_columns_are_mixed_up(toy: dict[str, str], tmp_path: Path) -> None:
    """cryoDRGN's test file has equal columns; here each has its own value."""
    row = np.array([30, 1.25, 15000, 14000, 35, 200, 1.4, 0.07, 80], np.float32)
    toy["ctf"] = write_pickle(tmp_path / "ctf.pkl", np.tile(row, (1000, 1)))
    columns = read_particles(**toy).columns
    found = [columns[name][17] for name in CTF_COLUMNS]
    np.testing.assert_allclose(found, row[1:], rtol=1e-6)


def test_a_ctf_made_for_larger_images_gives_the_pixel_size_of_these(toy: dict[str, str], tmp_path: Path) -> None:
    row = np.array([120, 0.5, 15000, 14000, 35, 200, 1.4, 0.07, 80], np.float32)
    toy["ctf"] = write_pickle(tmp_path / "ctf.pkl", np.tile(row, (1000, 1)))
    np.testing.assert_allclose(read_particles(**toy).columns["apix"], 0.5 * 120 / 30)


def test_images_without_ctf_say_so(hand: list[str], reference_data: Path, tmp_path: Path) -> None:
    poses, output = reference_data / "fixtures/hand_rot.pkl", tmp_path / "hand.zarr"
    assert main([*hand, "--poses", str(poses), "-o", str(output), "--dtype", "float32"]) == 0
    store = ParticleStore(output)
    assert not store.info.has_ctf
    assert store.info.apix == 1.5
    rotations = load_only(reference_data / "reference/input_hand_rot.npz")
    np.testing.assert_array_equal(store.columns["rotation"], rotations)
    assert not store.columns["translation"].any()
    images = read_stack(reference_data / "fixtures/hand.mrcs")
    np.testing.assert_array_equal(store.read_images(slice(0, 100)) * store.info.scale, images)


@pytest.mark.parametrize("flag", ["--poses", "--ctf", "--ind"])
def test_a_hostile_pickle_is_refused_and_does_not_run(
    flag: str, toy: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "it ran"
    hostile = write_pickle(tmp_path / "hostile.pkl", Calls(os.system, f"touch '{mark}'"))
    words = ["--poses", toy["poses"], "--ctf", toy["ctf"], flag, hostile]
    assert main(["convert", toy["path"], "-o", str(tmp_path / "x.zarr"), *words]) == 2
    error = capsys.readouterr().err
    assert f"{hostile}: this is not a pickle of numpy arrays (it wants to load posix.system)" in error
    assert not mark.exists()
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize(
    "content",
    [
        Calls(eval, "open('it ran', 'w')"),
        (np.zeros((100, 3, 3)), Calls(exec, "open('it ran', 'w')")),
        np.array([Calls(os.mkdir, "it ran")] * 100, object),
        Calls(np.save, "it ran", 1),
    ],
    ids=["eval", "inside a tuple", "inside an array", "a function of numpy"],
)
def test_nothing_but_arrays_is_opened(content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = write_pickle(tmp_path / "hostile.pkl", content)
    with pytest.raises(ParticleFileError, match="it wants to load"):
        read_pickle(hostile)
    assert os.listdir(tmp_path) == ["hostile.pkl"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_pickle_protocol_are_opened(protocol: int, tmp_path: Path) -> None:
    content = np.arange(12.0).reshape(4, 3), np.float32(3), [1, 2]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    array, number, numbers = read_pickle(str(tmp_path / "a.pkl"))
    np.testing.assert_array_equal(array, content[0])
    assert (number, numbers) == (3, [1, 2])


def test_poses_of_another_stack_are_refused(
    hand: list[str], toy: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*hand, "--poses", toy["poses"], "-o", str(tmp_path / "x.zarr")]) == 2
    assert capsys.readouterr().err == (
        f"drgn-ray: {toy['poses']}: holds (1000, 3, 3) and (1000, 2) numbers, not poses (rotation matrices"
        " and shifts) for 100 images;"
        " pass the pose.pkl of these particles.\n"
    )


def test_a_ctf_of_another_stack_is_refused(
    toy: dict[str, str], reference_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ctf = str(reference_data / "fixtures/test_ctf.100.pkl")
    words = ["--poses", toy["poses"], "--ctf", ctf, "-o", str(tmp_path / "x.zarr")]
    assert main(["convert", toy["path"], *words]) == 2
    assert f"{ctf}: holds an array of shape (100, 9), not (1000, 9); pass the ctf.pkl" in capsys.readouterr().err


def test_shifts_in_pixels_are_refused(hand: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shifts = np.zeros((100, 2))
    shifts[41] = 3.5, 0
    poses = write_pickle(tmp_path / "pose.pkl", (np.tile(np.eye(3), (100, 1, 1)), shifts))
    assert main([*hand, "--poses", poses, "-o", str(tmp_path / "x.zarr")]) == 2
    assert f"{poses}, row 41: the shift is [3.5 0. ], but shifts are fractions of the box" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [{"rot": 1}, "poses", (), 3, None, np.zeros((100, 3)), (np.zeros((100, 3, 3)), np.zeros(100))],
    ids=["dict", "text", "empty", "number", "none", "vectors", "flat shifts"],
)
def test_a_pickle_of_something_else_is_no_traceback(
    content: Any, hand: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poses = write_pickle(tmp_path / "pose.pkl", content)
    assert main([*hand, "--poses", poses, "-o", str(tmp_path / "x.zarr")]) == 2
    assert f"drgn-ray: {poses}: " in capsys.readouterr().err


def test_poses_passed_as_the_ctf_are_refused(
    toy: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--poses", toy["poses"], "--ctf", toy["poses"], "-o", str(tmp_path / "x.zarr")]
    assert main(["convert", toy["path"], *words]) == 2
    assert toy["poses"] in capsys.readouterr().err
