"""STAR files of RELION 3.0, 3.1 and 5 read as cryoDRGN reads them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import starfile
from star_sets import StarSet, random_set, relion_matrix, write_empty_stack, write_empty_stacks_for

from conversions.inputs import read_particles
from conversions.table import ParticleTable

CTF_COLUMNS = ("apix", "defocus_u", "defocus_v", "defocus_angle", "voltage", "cs", "amplitude_contrast", "phase_shift")


class Source(NamedTuple):
    """A STAR file, the options cryoDRGN was given for it, and the box of its images where nobody has them."""

    reference: str
    star: str
    apix: float | None = None
    empty_box: int | None = None


SOURCES = [
    Source("relion31", "fixtures/relion31.star"),
    Source("relion31v2", "fixtures/relion31.v2.star"),
    Source("relion31_6og", "fixtures/relion31.6opticsgroups.star", empty_box=196),
    Source("relion5", "fixtures/relion5.star", empty_box=448),
    Source("e10076sim", "empiar10076_sim/10076_both_32_sim.star", apix=13.1),
    Source("sta_bin8", "fixtures/sta_testing_bin8.star", apix=15.68),
    Source("m10", "tilt10499/ribo10499_10.star"),
]


@pytest.fixture(params=SOURCES, ids=lambda source: source.reference)
def source(request: pytest.FixtureRequest) -> Source:
    return request.param


@pytest.fixture
def table(source: Source, reference_data: Path, tmp_path: Path) -> ParticleTable:
    star, datadir = reference_data / source.star, None
    if source.empty_box is not None:
        write_empty_stacks_for(list(starfile.read(star)["particles"]["rlnImageName"]), tmp_path, source.empty_box)
        datadir = str(tmp_path)
    return read_particles(str(star), apix=source.apix, datadir=datadir)


def test_rotations_are_those_of_cryodrgn(table: ParticleTable, source: Source, reference_data: Path) -> None:
    poses = np.load(reference_data / f"reference/{source.reference}.pose.npz")
    np.testing.assert_allclose(table.columns["rotation"], poses["rot"], rtol=0, atol=1e-6)


def test_shifts_are_those_of_cryodrgn(table: ParticleTable, source: Source, reference_data: Path) -> None:
    poses = np.load(reference_data / f"reference/{source.reference}.pose.npz")
    box_angstrom = table.box_sizes * table.columns["apix"]
    np.testing.assert_allclose(table.columns["translation"] / box_angstrom[:, None], poses["trans"], rtol=0, atol=1e-6)


def test_the_ctf_is_that_of_cryodrgn(table: ParticleTable, source: Source, reference_data: Path) -> None:
    ctf = np.load(reference_data / f"reference/{source.reference}.ctf.npz")["ctf"]
    np.testing.assert_array_equal(ctf[:, 0], table.box_sizes)
    for column, expected in zip(CTF_COLUMNS, ctf[:, 1:].T, strict=True):
        np.testing.assert_allclose(table.columns[column], expected, rtol=1e-6, err_msg=column)


def test_every_optics_group_keeps_its_own_pixel_size(reference_data: Path, tmp_path: Path) -> None:
    star = reference_data / "fixtures/relion31.6opticsgroups.star"
    blocks = starfile.read(star)
    write_empty_stacks_for(list(blocks["particles"]["rlnImageName"]), tmp_path, 196)
    columns = read_particles(str(star), datadir=str(tmp_path)).columns
    of_group = dict(zip(blocks["optics"]["rlnOpticsGroup"], blocks["optics"]["rlnImagePixelSize"], strict=True))
    assert set(of_group.values()) == {1.24, 1.25}
    assert list(columns["optics_group"]) == list(blocks["particles"]["rlnOpticsGroup"])
    assert list(columns["apix"]) == [of_group[group] for group in columns["optics_group"]]


def test_relion_30_gets_its_pixel_size_from_the_magnification(reference_data: Path, tmp_path: Path) -> None:
    """The PfCRT file lacks the amplitude contrast, which cryoDRGN was told; here it is put in."""
    table = starfile.read(reference_data / "fixtures/FinalRefinement-OriginalParticles-PfCRT.star")
    table["rlnAmplitudeContrast"] = 0.1
    starfile.write({"images": table}, tmp_path / "pfcrt.star")
    write_empty_stacks_for(list(table["rlnImageName"]), tmp_path, 300)
    read = read_particles(str(tmp_path / "pfcrt.star"))
    poses = np.load(reference_data / "reference/pfcrt_D300.pose.npz")
    ctf = np.load(reference_data / "reference/pfcrt_D300.ctf.npz")["ctf"]
    np.testing.assert_allclose(read.columns["rotation"], poses["rot"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(read.columns["translation"] / (300 * 1.035), poses["trans"], rtol=0, atol=1e-6)
    for column, expected in zip(CTF_COLUMNS, ctf[:, 1:].T, strict=True):
        np.testing.assert_allclose(read.columns[column], expected, rtol=1e-6, err_msg=column)


def test_the_ctf_of_a_table_without_poses(reference_data: Path, tmp_path: Path) -> None:
    """Its poses come from a pose.pkl, as cryoDRGN's users do it."""
    (tmp_path / "pose.pkl").write_bytes(pickle.dumps(np.tile(np.eye(3), (7, 1, 1))))
    star = str(reference_data / "fixtures/empiar_10076_7.star")
    columns = read_particles(star, poses=str(tmp_path / "pose.pkl"), apix=1.31).columns
    ctf = np.load(reference_data / "reference/empiar10076_7_star.ctf.npz")["ctf"]
    for column, expected in zip(CTF_COLUMNS, ctf[:, 1:].T, strict=True):
        np.testing.assert_allclose(columns[column], expected, rtol=1e-6, err_msg=column)


def test_a_flag_overrules_the_pixel_size_of_the_file(star_set: StarSet) -> None:
    table = read_particles(str(star_set.write()), apix=2.5)
    assert set(table.columns["apix"]) == {2.5}


def test_origins_in_angstrom_go_before_those_in_pixels(star_set: StarSet) -> None:
    star_set.particles[["rlnOriginX", "rlnOriginY"]] = 7.0
    table = read_particles(str(star_set.write()))
    expected = star_set.particles[["rlnOriginXAngst", "rlnOriginYAngst"]]
    np.testing.assert_allclose(table.columns["translation"], expected, atol=1e-6)


def test_origins_in_pixels_are_turned_into_angstrom(star_set: StarSet) -> None:
    star_set.particles = star_set.particles.rename(
        columns={"rlnOriginXAngst": "rlnOriginX", "rlnOriginYAngst": "rlnOriginY"}
    )
    table = read_particles(str(star_set.write()))
    np.testing.assert_allclose(
        table.columns["translation"], 2.0 * star_set.particles[["rlnOriginX", "rlnOriginY"]], atol=1e-5
    )


def test_images_without_origin_columns_are_taken_as_centred(star_set: StarSet) -> None:
    star_set.particles = star_set.particles.drop(columns=["rlnOriginXAngst", "rlnOriginYAngst"])
    assert not read_particles(str(star_set.write())).columns["translation"].any()


def test_a_column_of_the_particles_goes_before_that_of_their_optics_group(star_set: StarSet) -> None:
    star_set.particles["rlnVoltage"] = 200.0
    assert set(read_particles(str(star_set.write())).columns["voltage"]) == {200.0}


def test_each_image_is_found_in_its_own_stack(tmp_path: Path) -> None:
    both = random_set(tmp_path, count=6)
    both.particles["rlnImageName"] = [
        f"{number}@{name}" for number, name in [(3, "b.mrcs"), (1, "a.mrcs"), (2, "a.mrcs"), (1, "b.mrcs")]
    ] + ["3@a.mrcs", "2@b.mrcs"]
    for name in ("a.mrcs", "b.mrcs"):
        write_empty_stack(tmp_path / name, 3, 16)
    table = read_particles(str(both.write_table()))
    named = [f"{1 + i}@{Path(table.stacks[s].path).name}" for s, i in zip(table.stack_of, table.index_of, strict=True)]
    assert named == list(both.particles["rlnImageName"])


def test_stacks_are_looked_for_from_the_project_folder_above(star_set: StarSet) -> None:
    star = star_set.write()
    job = star_set.folder / "Refine3D" / "job012"
    job.mkdir(parents=True)
    moved = star.rename(job / "run_data.star")
    assert [stack.path for stack in read_particles(str(moved)).stacks] == [str(star_set.stack)]


def test_datadir_finds_stacks_by_their_name_alone(star_set: StarSet, tmp_path: Path) -> None:
    star_set.particles["rlnImageName"] = [f"{number}@Extract/job007/stack.mrcs" for number in range(1, 21)]
    star = star_set.write()
    moved = star.rename(tmp_path / "elsewhere.star")
    table = read_particles(str(moved), datadir=str(star_set.folder))
    assert [stack.path for stack in table.stacks] == [str(star_set.stack)]


def test_only_the_ctf_columns_may_lack_when_images_carry_no_ctf(star_set: StarSet) -> None:
    star_set.particles = star_set.particles.drop(columns=["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"])
    table = read_particles(str(star_set.write()), no_ctf=True)
    angles = (star_set.particles[f"rlnAngle{name}"].to_numpy() for name in ("Rot", "Tilt", "Psi"))
    assert not table.has_ctf
    np.testing.assert_allclose(table.columns["rotation"], relion_matrix(*angles), atol=1e-6)


def test_tilt_series_groups_keep_their_names(reference_data: Path) -> None:
    """Names such as 000_000000 are texts, whatever Python's numbers may look like."""
    star = reference_data / "empiar10076_sim/10076_both_32_sim.star"
    groups = read_particles(str(star), apix=13.1).tables["table"]["rlnGroupName"]
    last_words = [line.split()[-1] for line in star.read_text().splitlines() if "@" in line]
    assert groups.to_pylist() == last_words
