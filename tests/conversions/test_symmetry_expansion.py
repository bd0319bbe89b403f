"""``drgn-ray export --sym``: every particle under each rotation of a group, as good as back-projecting with it."""

from __future__ import annotations

import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from numpy.lib import recfunctions
from star_sets import StarSet, random_set, relion_matrix, small_table
from test_cryosparc import write_images_of
from test_cryosparc import written as write_table

from conversions.inputs import read_particles
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.symmetry import point_group
from jobs.cli import main

ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]


def converted(source: str | Path, output: Path, *words: str) -> str:
    command = ["convert", str(source), "-o", str(output), "--workers", "0", "--no-invert", "--overwrite", *words]
    assert main(command) == 0
    return str(output)


def expanded(store: str, sym: str, output: Path, *words: str) -> Path:
    assert main(["export", store, "--sym", sym, "-o", str(output), *words]) == 0
    return output


def turned(rotation: np.ndarray, sym: str) -> np.ndarray:
    """Poses of the copies of every particle, one after the other."""
    return (rotation[:, None] @ point_group(sym)).reshape(-1, 3, 3)


class TestStar:
    """RELION's tables."""

    def test_a_cyclic_group_adds_equal_parts_of_a_turn_to_the_first_angle(self, star_set: StarSet) -> None:
        star_set.particles[ANGLES] = [[10.0, 50.0, 70.0]] + [[-100.0, 130.0, -20.0]] * 19
        store = converted(star_set.write(), star_set.folder / "s.zarr")
        angles = starfile.read(expanded(store, "C3", star_set.folder / "x.star"))["particles"][ANGLES].to_numpy()
        assert angles.shape == (60, 3)
        assert np.sort(angles[:3, 0]) == pytest.approx([-110, 10, 130], abs=2e-6)
        assert np.sort(angles[3:6, 0]) == pytest.approx([-100, 20, 140], abs=2e-6)
        assert angles[:3, 1:] == pytest.approx(np.array([[50, 70]] * 3), abs=2e-6)
        assert (angles[0, 0], angles[3, 0]) == (10, -100)

    @pytest.mark.parametrize("sym", ["C4", "D3", "O"])
    def test_the_angles_are_those_of_the_pose_times_the_group(self, sym: str, star_set: StarSet) -> None:
        store = converted(star_set.write(), star_set.folder / "s.zarr")
        before = star_set.particles[ANGLES].to_numpy().T
        after = starfile.read(expanded(store, sym, star_set.folder / "x.star"))["particles"][ANGLES].to_numpy().T
        assert np.allclose(relion_matrix(*after), turned(relion_matrix(*before), sym), atol=1e-7)

    def test_all_but_the_angles_is_repeated_and_the_first_copy_is_the_particle_as_it_was(
        self, star_set: StarSet
    ) -> None:
        star_set.particles["rlnAngleRot"] = [f"{value:.2f}" for value in star_set.particles["rlnAngleRot"]]
        store = converted(star_set.write(), star_set.folder / "s.zarr")
        path = expanded(store, "D2", star_set.folder / "x.star")
        before, after = (lines_of(each) for each in (star_set.folder / "particles.star", path))
        assert len(after) == 4 * len(before) == 80
        assert after[::4] == before
        angle_columns = [list(star_set.particles).index(name) for name in ANGLES]
        for number, line in enumerate(after):
            for column, (value, original) in enumerate(zip(line, before[number // 4], strict=True)):
                assert value == original or column in angle_columns

    def test_a_selection_is_expanded(self, star_set: StarSet) -> None:
        store = converted(star_set.write(), star_set.folder / "s.zarr")
        (star_set.folder / "rows.txt").write_text("3 17")
        words = ["--indices", str(star_set.folder / "rows.txt")]
        path = expanded(store, "C2", star_set.folder / "x.star", *words)
        names = starfile.read(path)["particles"]["rlnImageName"].tolist()
        assert names == ["000004@stack.mrcs"] * 2 + ["000018@stack.mrcs"] * 2

    def test_one_rotation_is_no_expansion(self, star_set: StarSet) -> None:
        store = converted(star_set.write(), star_set.folder / "s.zarr")
        assert main(["export", store, "-o", str(star_set.folder / "plain.star")]) == 0
        with_c1 = expanded(store, "c1", star_set.folder / "x.star")
        assert with_c1.read_bytes() == (star_set.folder / "plain.star").read_bytes()

    def test_views_along_the_axis_are_expanded_without_a_warning(self, star_set: StarSet) -> None:
        """There rot and psi turn about the same axis."""
        star_set.particles["rlnAngleTilt"] = [0.0, 180.0] * 10
        store = converted(star_set.write(), star_set.folder / "s.zarr")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            path = expanded(store, "D3", star_set.folder / "x.star")
        after = starfile.read(path)["particles"][ANGLES].to_numpy().T
        expected = turned(relion_matrix(*star_set.particles[ANGLES].to_numpy().T), "D3")
        assert np.allclose(relion_matrix(*after), expected, atol=1e-7)

    def test_half_sets_that_are_missing_are_made_so_that_copies_stay_together(
        self, star_set: StarSet, capsys: pytest.CaptureFixture[str]
    ) -> None:
        star_set.particles = star_set.particles.drop(columns="rlnRandomSubset")
        path = expanded(converted(star_set.write(), star_set.folder / "s.zarr"), "C3", star_set.folder / "x.star")
        assert "every other particle goes into each half set" in capsys.readouterr().out
        half_set = read_particles(str(path)).columns["half_set"].reshape(-1, 3)
        assert (half_set == half_set[:, :1]).all()
        assert half_set[:, 0].tolist() == [1 + row % 2 for row in range(len(half_set))]

    def test_particles_of_a_stack_are_expanded_from_the_poses_they_were_given(
        self, reference_data: Path, tmp_path: Path
    ) -> None:
        fixtures = reference_data / "fixtures"
        words = ["--poses", f"{fixtures}/hand_rot_trans.pkl", "--no-ctf", "--apix", "1"]
        store = converted(fixtures / "hand.mrcs", tmp_path / "s.zarr", *words)
        path = expanded(store, "C2", tmp_path / "x.star")
        columns = read_particles(str(path), no_ctf=True, datadir=str(fixtures)).columns
        original = ParticleStore(store).columns
        assert np.allclose(columns["rotation"], turned(original["rotation"], "C2"), atol=2e-6)
        assert np.allclose(columns["translation"], np.repeat(original["translation"], 2, axis=0), atol=1e-5)


def lines_of(star: Path) -> list[list[str]]:
    """Tokens of every particle."""
    return [line.split() for line in star.read_text().splitlines() if "@" in line]


class TestCs:
    """cryoSPARC's tables."""

    @pytest.mark.parametrize("sym", ["C3", "D2"])
    def test_poses_are_turned_and_all_else_is_repeated(self, sym: str, tmp_path: Path) -> None:
        table = small_table()
        write_images_of(table, tmp_path)
        path = write_table(tmp_path, table)
        copies = np.load(expanded(converted(path, tmp_path / "s.zarr"), sym, tmp_path / "x.cs"))
        order = len(point_group(sym))
        assert copies.dtype == table.dtype
        for name in set(table.dtype.names or ()) - {"uid", "alignments3D/pose"}:
            assert np.array_equal(copies[name], np.repeat(table[name], order, axis=0)), name
        assert np.array_equal(copies[::order], table)
        again = read_particles(str(tmp_path / "x.cs"))
        assert np.allclose(again.columns["rotation"], turned(read_particles(path).columns["rotation"], sym), atol=1e-6)

    def test_every_copy_has_a_uid_of_its_own(self, tmp_path: Path) -> None:
        table = small_table()
        write_images_of(table, tmp_path)
        store = converted(write_table(tmp_path, table), tmp_path / "s.zarr")
        assert len(np.unique(np.load(expanded(store, "I", tmp_path / "x.cs"))["uid"])) == 12 * 60

    def test_half_sets_that_are_missing_are_made(self, tmp_path: Path) -> None:
        table = small_table()
        kept = [name for name in table.dtype.names or () if name != "alignments3D/split"]
        table = recfunctions.repack_fields(table[kept])
        write_images_of(table, tmp_path)
        store = converted(write_table(tmp_path, table), tmp_path / "s.zarr")
        copies = np.load(expanded(store, "C2", tmp_path / "x.cs"))
        assert copies["alignments3D/split"].tolist() == [0, 0, 1, 1] * (len(table) // 2)
        assert [name for name in copies.dtype.names or () if name != "alignments3D/split"] == kept

    def test_from_one_program_to_the_other(self, star_set: StarSet) -> None:
        folder = star_set.folder
        store = converted(star_set.write(), folder / "s.zarr")
        for name in ("x.star", "x.cs"):
            expanded(store, "D2", folder / name)
        first, second = (read_particles(str(folder / name)).columns for name in ("x.star", "x.cs"))
        for column in ("rotation", "translation", "defocus_u", "half_set"):
            assert np.allclose(first[column], second[column], rtol=1e-6, atol=2e-6), column
        assert len(np.unique(np.load(folder / "x.cs")["uid"])) == 80

    def test_a_cryosparc_table_to_star(self, tmp_path: Path) -> None:
        table = small_table()
        write_images_of(table, tmp_path)
        path = write_table(tmp_path, table)
        expanded(converted(path, tmp_path / "s.zarr"), "C2", tmp_path / "x.star")
        rotation = read_particles(str(tmp_path / "x.star")).columns["rotation"]
        assert np.allclose(rotation, turned(read_particles(path).columns["rotation"], "C2"), atol=1e-6)


@pytest.mark.parametrize(("sym", "suffix"), [("C3", "star"), ("D2", "star"), ("C3", "cs")])
def test_the_expanded_table_without_symmetry_is_the_original_with_it(
    sym: str, suffix: str, simulated: Path, tmp_path: Path
) -> None:
    """Full map and both half maps."""
    original = converted(simulated, tmp_path / "s.zarr", "-D", "32", "--first", "60", "--dtype", "float32")
    table = expanded(original, sym, tmp_path / f"x.{suffix}")
    multiplied = converted(
        table, tmp_path / "x.zarr", "-D", "32", "--dtype", "float32", "--datadir", str(simulated.parent)
    )
    assert len(ParticleStore(multiplied)) == 60 * len(point_group(sym))
    back_project = ["backproject", "--workers", "0", "-o"]
    assert main([*back_project, str(tmp_path / "with"), original, "--sym", sym]) == 0
    assert main([*back_project, str(tmp_path / "without"), multiplied]) == 0
    assert main([*back_project, str(tmp_path / "plain"), original]) == 0
    for name in ("backproject.mrc", "half1_unfil.mrc", "half2_unfil.mrc"):
        ours, expected, plain = (mrcfile.read(tmp_path / kind / name) for kind in ("without", "with", "plain"))
        assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()
        assert np.abs(plain - expected).max() > 0.1 * np.abs(expected).max()


class TestRefusals:
    """One sentence, exit code 2, no file."""

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["-o", "x.mrcs", "--sym", "C2"], "-o x.mrcs --sym C2: it would hold no poses; expand to a .star or .cs"),
            (["-o", "x.txt", "--sym", "C2"], "-o x.txt --sym C2: it would hold no poses;"),
            (["-o", "x.npy", "--sym", "C2"], "-o x.npy --sym C2: it would hold no poses;"),
            (["-o", "x.star", "x.pkl", "--sym", "C2"], "-o x.pkl --sym C2: it would hold no poses;"),
            (["-o", "x.star", "--sym", "Q4"], "--sym Q4: there is no such point group; pass Cn or Dn"),
            (["--cryodrgn", "c", "--sym", "C2"], "--cryodrgn --sym: expanded particles are written as tables; pass -o"),
        ],
    )
    def test_what_cannot_be_expanded(
        self,
        words: list[str],
        sentence: str,
        star_set: StarSet,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        store = converted(star_set.write(), star_set.folder / "s.zarr")
        monkeypatch.chdir(star_set.folder)
        before = set(star_set.folder.iterdir())
        assert refusal(capsys, store, *words).startswith(f"drgn-ray: {sentence}")
        assert set(star_set.folder.iterdir()) == before

    def test_tilt_series(self, reference_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        star = reference_data / "empiar10076_sim" / "10076_both_32_sim.star"
        store = converted(star, tmp_path / "s.zarr", "--apix", "13.1", "--first", "40")
        said = refusal(capsys, store, "-o", str(tmp_path / "x.star"), "--sym", "C2")
        assert "are tilt series, whose copies would pass for more tilts of one particle;" in said

    @pytest.mark.parametrize("has_angles", [True, False])
    def test_poses_that_are_not_the_tables(
        self, has_angles: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        own = random_set(tmp_path / "own")
        other = random_set(tmp_path / "other", seed=1)
        others = converted(other.write(), tmp_path / "other.zarr")
        assert main(["export", others, "--cryodrgn", str(tmp_path / "c")]) == 0
        if not has_angles:
            own.particles = own.particles.drop(columns=ANGLES)
        store = converted(own.write(), tmp_path / "own.zarr", "--poses", str(tmp_path / "c" / "poses.pkl"))
        said = refusal(capsys, store, "-o", str(tmp_path / "x.star"), "--sym", "C2")
        what = "the poses of the store are not those of its table" if has_angles else "the table has no column rlnAngle"
        assert f"--sym C2: {what}" in said
        assert "were given by --poses; convert a table that has them" in said
        assert not (tmp_path / "x.star").exists()


def refusal(capsys: pytest.CaptureFixture[str], store: str, *words: str) -> str:
    capsys.readouterr()
    assert main(["export", store, *words]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    return error
