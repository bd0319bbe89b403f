"""``--ind`` and ``--first`` keep the rows that were asked for, in the order that was asked for."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from star_sets import StarSet, read_stack, relion_matrix

from drgn_ray.particles.store import ParticleStore
from jobs.cli import main

CHOSEN = [13, 2, 19, 7]


def write_numbers(path: Path, numbers: np.ndarray) -> str:
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(numbers))
    elif path.suffix == ".npy":
        np.save(path, numbers)
    else:
        np.savetxt(path, numbers, fmt="%d")
    return str(path)


def converted(star: Path, *words: str) -> ParticleStore:
    output = star.parent / "chosen.zarr"
    assert main(["convert", str(star), "-o", str(output), "--dtype", "float32", "--workers", "0", *words]) == 0
    return ParticleStore(output)


def assert_holds(store: ParticleStore, star_set: StarSet, rows: list[int]) -> None:
    """Images, poses, CTF, half-sets, origin and table are those of these rows."""
    assert len(store) == len(rows)
    assert list(store.columns["source_row"]) == rows
    np.testing.assert_array_equal(store.read_images(slice(0, len(rows))) * store.info.scale, star_set.images[rows])
    particles = star_set.particles.iloc[rows]
    angles = (particles[f"rlnAngle{axis}"].to_numpy() for axis in ("Rot", "Tilt", "Psi"))
    np.testing.assert_allclose(store.columns["rotation"], relion_matrix(*angles), atol=1e-6)
    np.testing.assert_allclose(store.columns["defocus_u"], particles["rlnDefocusU"], rtol=1e-6)
    np.testing.assert_array_equal(store.columns["half_set"], particles["rlnRandomSubset"])
    assert store.table()["rlnImageName"].to_pylist() == list(particles["rlnImageName"])


@pytest.mark.parametrize("suffix", ["pkl", "npy", "txt"])
def test_row_numbers_keep_their_order(suffix: str, star_set: StarSet, tmp_path: Path) -> None:
    ind = write_numbers(tmp_path / f"ind.{suffix}", np.array(CHOSEN))
    assert_holds(converted(star_set.write(), "--ind", ind), star_set, CHOSEN)


@pytest.mark.parametrize("suffix", ["pkl", "npy"])
def test_booleans_choose_rows(suffix: str, star_set: StarSet, tmp_path: Path) -> None:
    ind = write_numbers(tmp_path / f"ind.{suffix}", np.isin(np.arange(20), CHOSEN))
    assert_holds(converted(star_set.write(), "--ind", ind), star_set, sorted(CHOSEN))


def test_a_list_in_a_pickle_is_as_good_as_an_array(star_set: StarSet, tmp_path: Path) -> None:
    (tmp_path / "ind.pkl").write_bytes(pickle.dumps(CHOSEN))
    assert_holds(converted(star_set.write(), "--ind", str(tmp_path / "ind.pkl")), star_set, CHOSEN)


def test_a_single_row_number_is_enough(star_set: StarSet, tmp_path: Path) -> None:
    (tmp_path / "ind.txt").write_text("11\n")
    assert_holds(converted(star_set.write(), "--ind", str(tmp_path / "ind.txt")), star_set, [11])


def test_the_first_rows_are_kept(star_set: StarSet) -> None:
    assert_holds(converted(star_set.write(), "--first", "3"), star_set, [0, 1, 2])


def test_more_first_rows_than_there_are_keep_all(star_set: StarSet) -> None:
    assert_holds(converted(star_set.write(), "--first", "1000"), star_set, list(range(20)))


def test_first_counts_within_a_selection(star_set: StarSet, tmp_path: Path) -> None:
    ind = write_numbers(tmp_path / "ind.txt", np.array(CHOSEN))
    assert_holds(converted(star_set.write(), "--ind", ind, "--first", "2"), star_set, CHOSEN[:2])


def test_a_selection_made_by_cryodrgn_chooses_from_a_stack(reference_data: Path, tmp_path: Path) -> None:
    fixtures, output = reference_data / "fixtures", str(tmp_path / "toy.zarr")
    words = f"--poses {fixtures}/toy_rot_trans.pkl --ctf {fixtures}/test_ctf.pkl --ind {fixtures}/ind100-rand.pkl"
    stack = fixtures / "toy_projections.mrcs"
    assert main(["convert", str(stack), *words.split(), "-o", output, "--dtype", "float32", "--workers", "0"]) == 0
    rows = pickle.loads((fixtures / "ind100-rand.pkl").read_bytes())
    store = ParticleStore(output)
    np.testing.assert_array_equal(store.columns["source_row"], rows)
    np.testing.assert_array_equal(store.table()["image"], rows)
    np.testing.assert_array_equal(store.read_images(slice(0, 100)) * store.info.scale, read_stack(stack)[rows])
    rotations = np.load(reference_data / "reference/input_toy_rot_trans.npz")["rot"]
    np.testing.assert_array_equal(store.columns["rotation"], rotations[rows].astype(np.float32))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"1\n20\n", "row numbers run from 1 to 20, the particles from 0 to 19; make the selection from the same"),
        (b"-1\n3\n", "row numbers run from -1 to 3, the particles from 0 to 19; make the selection from the same"),
        (b"1\n2.5\n", "cannot be read as row numbers (invalid literal for int() with base 10"),
        (None, "there is no such selection; check the path."),
    ],
    ids=["past the end", "negative", "fraction", "no file"],
)
def test_a_wrong_selection_is_refused(
    content: bytes | None, sentence: str, star_set: StarSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ind, output = tmp_path / "ind.txt", tmp_path / "x.zarr"
    if content is not None:
        ind.write_bytes(content)
    assert main(["convert", str(star_set.write()), "--ind", str(ind), "-o", str(output)]) == 2
    assert f"drgn-ray: {ind}: {sentence}" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("booleans.pkl", pickle.dumps(np.ones(19, bool))),
        ("empty.npy", b""),
        ("ragged.pkl", pickle.dumps([[1], [2, 3]])),
        ("dict.pkl", pickle.dumps({"ind": [1]})),
        ("nothing.pkl", pickle.dumps(np.array([], int))),
    ],
    ids=["booleans of another length", "empty file", "ragged list", "dict", "no rows"],
)
def test_a_file_that_is_no_selection_is_refused_by_name(
    name: str, content: bytes, star_set: StarSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["convert", str(star_set.write()), "--ind", str(tmp_path / name), "-o", str(tmp_path / "x.zarr")]) == 2
    assert f"drgn-ray: {tmp_path / name}: " in capsys.readouterr().err


def test_a_selection_that_keeps_nothing_is_refused(star_set: StarSet, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(star_set.write()), "--first", "0", "-o", str(star_set.folder / "x.zarr")]) == 2
    assert capsys.readouterr().err == "drgn-ray: --first 0: it would keep nothing; pass a positive number.\n"
