"""``drgn-ray decode``: which latents it decodes, what is done to the volumes, and what it refuses."""

from __future__ import annotations

import zipfile
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest

from drgn_ray.physics.volume import crop, flip_hand, low_pass, resample
from drgn_ray.training.embed import latents_of
from drgn_ray.training.run_directory import RunDirectory
from jobs.cli import main


def decoded(run: RunDirectory, output: Path, *words: str) -> list[np.ndarray]:
    assert main(["decode", str(run.path), "-o", str(output), "--workers", "0", *words]) == 0
    return [mrcfile.read(path) for path in sorted(output.glob("vol_*.mrc"))]


def test_volumes_of_chosen_particles_and_of_a_latent(trained: RunDirectory, tmp_path: Path) -> None:
    z = latents_of(trained).of(np.array([17, 204]))
    of_particles = decoded(trained, tmp_path / "particles", "--particles", "17,204")
    assert np.allclose(np.loadtxt(tmp_path / "particles" / "z_values.txt"), z)
    (of_latent,) = decoded(trained, tmp_path / "z", "-z", *map(str, z[1]))
    assert np.allclose(of_latent, of_particles[1], atol=1e-4 * np.abs(of_latent).max())


def test_a_straight_path_stops_at_its_particles(trained: RunDirectory, tmp_path: Path) -> None:
    volumes = decoded(trained, tmp_path / "way", "--path", "3,40,150", "--through", "line", "-n", "4")
    table = pd.read_csv(tmp_path / "way" / "path.csv")
    z = table.filter(regex=r"^z\d+$").to_numpy()
    assert len(volumes) == len(table) == 7
    assert np.allclose(z[[0, 3, 6]], latents_of(trained).of(np.array([3, 40, 150])), atol=1e-6)
    assert table["nearest_source_row"][[0, 3, 6]].tolist() == [3, 40, 150]
    assert table["log_density"].max() == 0
    assert (tmp_path / "way" / "path.png").exists()


def test_a_path_through_particles_takes_short_steps(trained: RunDirectory, tmp_path: Path) -> None:
    decoded(trained, tmp_path / "way", "--path", "3,150", "--avg-neighbors", "9")
    table = pd.read_csv(tmp_path / "way" / "path.csv")
    assert table["nearest_source_row"].iloc[[0, -1]].tolist() == [3, 150]
    z = latents_of(trained).z
    assert np.diff(table["distance"]).max() <= np.linalg.norm(z[3] - z[150])
    assert np.allclose(table.filter(regex=r"^z\d+$"), z[table["nearest_source_row"]], atol=1e-6)


def test_a_component_into_a_zip_file(trained: RunDirectory, tmp_path: Path) -> None:
    output = tmp_path / "movie.zip"
    decoded(trained, output, "--pc", "1", "-n", "3")
    with zipfile.ZipFile(output) as made:
        names = set(made.namelist())
    assert {"vol_000.mrc", "vol_001.mrc", "vol_002.mrc", "z_values.txt", "path.csv", "path.png"} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["movie.zip"]


def test_volumes_are_finished_in_the_order_of_the_flags(trained: RunDirectory, tmp_path: Path) -> None:
    (plain,) = decoded(trained, tmp_path / "plain", "-z", "0", "0.1")
    mask = np.zeros((16, 16, 16), np.float32)
    mask[4:12] = 1
    mrcfile.write(tmp_path / "mask.mrc", mask, voxel_size=1.0)
    words = ["--crop", "24", "-D", "16", "--flip-hand", "--low-pass", "30", "--mask", str(tmp_path / "mask.mrc")]
    (finished,) = decoded(trained, tmp_path / "finished", "-z", "0", "0.1", *words)
    with mrcfile.open(tmp_path / "plain" / "vol_000.mrc") as file:
        apix = float(file.voxel_size.x)
    with mrcfile.open(tmp_path / "finished" / "vol_000.mrc") as file:
        assert float(file.voxel_size.x) == pytest.approx(apix * 24 / 16)
    expected = low_pass(flip_hand(resample(crop(plain, 24), 16)), apix * 24 / 16, 30.0) * mask
    assert np.allclose(finished, expected, atol=1e-5 * np.abs(plain).max())


def test_workers_decode_the_same(trained: RunDirectory, tmp_path: Path) -> None:
    here = decoded(trained, tmp_path / "here", "--pc", "1", "-n", "6")
    assert (
        main(["decode", str(trained.path), "-o", str(tmp_path / "ray"), "--workers", "2", "--pc", "1", "-n", "6"]) == 0
    )
    there = [mrcfile.read(path) for path in sorted((tmp_path / "ray").glob("vol_*.mrc"))]
    assert np.allclose(here, there, atol=1e-4 * np.abs(here).max())


def test_volumes_that_are_there_are_replaced_only_if_told(
    trained: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoded(trained, tmp_path / "way", "--pc", "1", "-n", "4")
    assert main(["decode", str(trained.path), "-o", str(tmp_path / "way"), "-z", "0", "0"]) == 2
    assert "it is already here" in capsys.readouterr().err
    (tmp_path / "way" / "notes.txt").write_text("mine")
    assert len(decoded(trained, tmp_path / "way", "-z", "0", "0", "--overwrite")) == 1
    left = {path.name for path in (tmp_path / "way").iterdir()}
    assert left == {"vol_000.mrc", "z_values.txt", "notes.txt"}, "no path.csv of other volumes"


def test_the_folder_above_is_a_folder_like_others(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "keep.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "inner")
    assert main(["decode", str(trained.path), "-o", "..", "-z", "0", "0", "--workers", "0"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"inner", "keep.txt", "vol_000.mrc", "z_values.txt"}


@pytest.mark.parametrize(
    ("output", "complaint"), [("s3://bucket/x", "this is a URL"), ("", "it is empty"), ("made.zip", "this is a folder")]
)
def test_places_that_cannot_be_written_are_refused(
    trained: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
    complaint: str,
) -> None:
    (tmp_path / "made.zip").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["decode", str(trained.path), "-o", output, "-z", "0", "0", "--overwrite"]) == 2
    assert complaint in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["made.zip"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "it is not said which volumes"),
        (["--pc", "1", "--particles", "3"], "--particles, --pc: each says which volumes"),
        (["--pc", "3"], "--pc 3: z has 2 components; pass a number from 1 to 2"),
        (["--pc", "1", "-n", "1"], "-n 1: a way has two ends"),
        (["--path", "3"], "--path 3: a way has two ends"),
        (["--path", "3,four"], "--path 3,four: these are no row numbers"),
        (["--path", "3,4", "--avg-neighbors", "11"], "--max-neighbors 10, --avg-neighbors 11: "),
        (["--path", "3,150", "--avg-neighbors", "1.1"], "between them particles are further apart than"),
        (["-z", "0"], "-z: its latents have 1 numbers, the run's 2"),
        (["--pc", "1", "-D", "15"], "-D 15: it is no even number"),
        (["--pc", "1", "--low-pass", "0"], "--low-pass 0: it is no number above 0"),
        (["--pc", "1", "--low-pass", "inf"], "--low-pass inf: it is no number above 0"),
        (["-z", "nan", "0"], "-z: a latent holds values that are no numbers"),
        (["--path", "3,3"], "--path 3,3: a particle follows itself"),
        (["--particles", "3", "-n", "5"], "-n 5: it is for --path and --pc"),
        (["--pc", "1", "--through", "line"], "--through line: it is for --path"),
        (["--pc", "1", "--workers", "-1"], "--workers -1: it is a count"),
    ],
)
def test_calls_that_make_no_sense_are_refused(
    trained: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert main(["decode", str(trained.path), "-o", str(tmp_path / "volumes"), *words]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "volumes").exists()
