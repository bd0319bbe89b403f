"""cryoSPARC tables read as cryoDRGN and cryosparc-tools read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryosparc.dataset import CSDAT_FORMAT, Dataset
from numpy.lib.recfunctions import repack_fields
from star_sets import small_table, write_empty_stack, write_stack

from conversions import csdat
from conversions.inputs import read_particles
from drgn_ray.errors import ParticleFileError
from drgn_ray.particles.store import ParticleStore
from jobs.cli import main

CTF_COLUMNS = ("apix", "defocus_u", "defocus_v", "defocus_angle", "voltage", "cs", "amplitude_contrast", "phase_shift")
TABLES = ("cryosparc_P12_J24_001_particles.cs", "cryosparc_J2_particles_exported.cs", "empiar_10076_7.cs")


def write_images_of(table: np.ndarray, folder: Path) -> None:
    """Stacks long enough for every image of a table whose images nobody has."""
    side = int(table["blob/shape"][0, 0])
    for path in np.unique(table["blob/path"]):
        count = int(table["blob/idx"][table["blob/path"] == path].max()) + 1
        write_empty_stack(folder / path.decode().removeprefix(">"), count, side)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job folder with 12 images of noise."""
    write_stack(tmp_path / "stack.mrcs", np.random.default_rng(0).standard_normal((12, 16, 16), np.float32))
    return tmp_path


def written(folder: Path, table: np.ndarray, name: str = "particles.cs") -> str:
    csdat.write_cs(str(folder / name), table)
    return str(folder / name)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_comes_back_from_arrow_as_it_was(name: str, reference_data: Path) -> None:
    table = csdat.read_cs(str(reference_data / "fixtures" / name))
    again = csdat.from_arrow(csdat.to_arrow(table))
    assert again is not None
    assert again.dtype == table.dtype
    np.testing.assert_array_equal(again, table)


@pytest.mark.parametrize("name", TABLES)
def test_csdat_holds_what_the_numpy_format_holds(name: str, reference_data: Path, tmp_path: Path) -> None:
    path = str(reference_data / "fixtures" / name)
    Dataset.load(path).save(tmp_path / "new.cs", format=CSDAT_FORMAT)
    old, new = csdat.read_cs(path), csdat.read_cs(str(tmp_path / "new.cs"))
    assert new.dtype.names == old.dtype.names
    for field in old.dtype.names or ():
        np.testing.assert_array_equal(new[field], old[field], err_msg=field)


def test_what_we_write_cryosparc_tools_reads(tmp_path: Path) -> None:
    table = small_table()
    read = Dataset.load(written(tmp_path, table))
    np.testing.assert_array_equal(read["uid"], table["uid"])
    np.testing.assert_array_equal(read["alignments3D/pose"], table["alignments3D/pose"])


class TestRefinement:
    """The P12 J24 table against cryoDRGN's own parse of it."""

    @pytest.fixture(scope="class")
    def columns(self, reference_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
        source = reference_data / "fixtures" / TABLES[0]
        folder = tmp_path_factory.mktemp("J19")
        write_images_of(csdat.read_cs(str(source)), folder)
        return read_particles(str(source), datadir=str(folder)).columns

    def test_rotations(self, columns: dict[str, np.ndarray], reference_data: Path) -> None:
        poses = np.load(reference_data / "reference/cs_P12_J24.pose.npz")
        np.testing.assert_allclose(columns["rotation"], poses["rot"], rtol=0, atol=1e-6)

    def test_shifts(self, columns: dict[str, np.ndarray], reference_data: Path) -> None:
        poses = np.load(reference_data / "reference/cs_P12_J24.pose.npz")
        np.testing.assert_allclose(columns["translation"] / (180 * 2.95), poses["trans"], rtol=0, atol=1e-6)

    def test_ctf(self, columns: dict[str, np.ndarray], reference_data: Path) -> None:
        ctf = np.load(reference_data / "reference/cs_P12_J24.ctf.npz")["ctf"]
        for column, expected in zip(CTF_COLUMNS, ctf[:, 1:].T, strict=True):
            np.testing.assert_allclose(columns[column], expected, rtol=1e-6, err_msg=column)

    def test_splits_are_half_sets(self, columns: dict[str, np.ndarray]) -> None:
        assert set(columns["half_set"]) == {1, 2}


@pytest.mark.parametrize(("name", "reference"), [(TABLES[1], "cs_J2"), (TABLES[2], "empiar10076_7_cs")])
def test_the_ctf_of_tables_without_3d_poses(name: str, reference: str, reference_data: Path, tmp_path: Path) -> None:
    """Poses come from a pose.pkl, as cryoDRGN's users do it."""
    import pickle

    source = str(reference_data / "fixtures" / name)
    table = csdat.read_cs(source)
    write_images_of(table, tmp_path)
    (tmp_path / "pose.pkl").write_bytes(pickle.dumps(np.tile(np.eye(3), (len(table), 1, 1))))
    columns = read_particles(source, datadir=str(tmp_path), poses=str(tmp_path / "pose.pkl")).columns
    ctf = np.load(reference_data / f"reference/{reference}.ctf.npz")["ctf"]
    for column, expected in zip(CTF_COLUMNS, ctf[:, 1:].T, strict=True):
        np.testing.assert_allclose(columns[column], expected, rtol=1e-6, err_msg=column)


@pytest.mark.parametrize("prefix", ["ctf/", "blob/", "alignments3D/"])
def test_a_passthrough_table_is_joined_by_uid(prefix: str, folder: Path) -> None:
    table = small_table()
    names = table.dtype.names or ()
    rest = repack_fields(table[[name for name in names if not name.startswith(prefix)]])
    passed = repack_fields(table[["uid", *(name for name in names if name.startswith(prefix))]])
    shuffled = passed[np.random.default_rng(1).permutation(len(passed))]
    path, other = written(folder, rest), written(folder, shuffled, "J1_passthrough_particles.cs")
    whole = read_particles(written(folder, table, "whole.cs"))
    joined = read_particles(path, passthrough=[other])
    for name, values in whole.columns.items():
        np.testing.assert_array_equal(joined.columns[name], values, err_msg=name)
    with pytest.raises(ParticleFileError, match=f"no {prefix}.*; pass --passthrough {other}"):
        read_particles(path)


def test_a_passthrough_table_of_other_particles_is_refused(folder: Path) -> None:
    table = small_table()
    others = table.copy()
    others["uid"] += 20_000
    with pytest.raises(ParticleFileError, match=r"uid \d+ is not in .*other.cs \(12 of 12 rows are not\)"):
        read_particles(written(folder, table), passthrough=[written(folder, others, "other.cs")])


def renamed(table: np.ndarray, old: str, new: str) -> np.ndarray:
    from numpy.lib import recfunctions

    names = [name for name in table.dtype.names or () if name.startswith(old)]
    return recfunctions.rename_fields(table, {name: name.replace(old, new) for name in names})


def test_ab_initio_poses_are_taken_on_request(folder: Path) -> None:
    table = small_table()
    path = written(folder, renamed(table, "alignments3D", "alignments_class_0"), "abinit.cs")
    with pytest.raises(ParticleFileError, match="but poses of an ab initio job; pass --abinit"):
        read_particles(path)
    expected = read_particles(written(folder, table)).columns["rotation"]
    np.testing.assert_array_equal(read_particles(path, abinit=True).columns["rotation"], expected)


def test_shifts_of_heterogeneous_refinement_count_double_pixels(folder: Path) -> None:
    path = written(folder, small_table())
    shift = read_particles(path).columns["translation"]
    np.testing.assert_allclose(read_particles(path, hetrefine=True).columns["translation"], 2 * shift)


def test_shifts_are_in_pixels_of_their_alignment(folder: Path) -> None:
    """A refinement of downsampled particles writes its own Å/px."""
    from numpy.lib import recfunctions

    table = small_table()
    coarse = recfunctions.append_fields(table, "alignments3D/psize_A", np.full(12, 4, "<f4"), usemask=False)
    shift = read_particles(written(folder, table)).columns["translation"]
    np.testing.assert_allclose(read_particles(written(folder, coarse, "c.cs")).columns["translation"], 2 * shift)


def test_an_index_beyond_32_bits_of_bytes_finds_its_image(tmp_path: Path) -> None:
    """cryoDRGN multiplied uint32 indices by the image size (its issue 485); here the stack is a hole of 20 GB."""
    table = small_table(count=2, side=512)
    table["blob/idx"] = [0, 19_999]
    write_empty_stack(tmp_path / "stack.mrcs", 20_000, 512)
    with open(tmp_path / "stack.mrcs", "r+b") as file:
        file.seek(1024 + 19_999 * 512 * 512 * 4)
        file.write(np.full(512 * 512, 7, "<f4").tobytes())
    output = str(tmp_path / "x.zarr")
    assert main(["convert", written(tmp_path, table), "-o", output, "-D", "16", "--workers", "0", "--no-invert"]) == 0
    store = ParticleStore(output)
    images = store.read_images(slice(0, 2)).astype(np.float32) * store.info.scale
    assert not images[0].any()
    np.testing.assert_allclose(images[1], 7 * (512 / 16) ** 2, rtol=1e-3)


@pytest.mark.parametrize(("sign", "kind"), [(1.0, "white"), (-1.0, "dark")])
def test_the_sign_of_the_file_decides_where_the_data_do_not_tell(sign: float, kind: str, folder: Path) -> None:
    table = small_table()
    table["blob/sign"] = sign
    output = str(folder / "x.zarr")
    assert main(["convert", written(folder, table), "-o", output, "--workers", "0"]) == 0
    contrast = ParticleStore(output).info.contrast
    told = "but the data do not tell" in contrast
    assert f"taken as {kind} as the file says" in contrast or not told


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "it begins with b''"),
        (b"\x93NUMPY\x01\x00", "this is not a cryoSPARC table"),
        (b"\x95CSDAT\xff\xff\xff\xff", "cut short at byte 10"),
        (b"data_particles\n", "it begins with b'data_p'"),
    ],
    ids=["empty", "cut NumPy", "cut CSDAT", "STAR"],
)
def test_what_is_no_table_is_refused(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "x.cs").write_bytes(content)
    with pytest.raises(ParticleFileError) as refused:
        read_particles(str(tmp_path / "x.cs"))
    assert found in str(refused.value)
