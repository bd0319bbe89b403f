"""``drgn-ray landscape`` from end to end: its files, which other commands read, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
from mlflow import MlflowClient

from drgn_ray.analysis.volumes import write_mrc
from drgn_ray.config import ModelConfig, RunConfig
from drgn_ray.tracking.run import TrackedRun
from drgn_ray.training.embed import latents_of
from drgn_ray.training.run_directory import RunDirectory
from jobs.cli import main


def half_of_the_box(path: Path, size: int, apix: float) -> Path:
    """A mask that only is above the middle of the box."""
    mask = np.zeros((size,) * 3, np.float32)
    mask[size // 2 : size // 2 + size // 4, size // 4 : -size // 4, size // 4 : -size // 4] = 1
    write_mrc(path, mask, apix, "above")
    return path


@pytest.fixture(scope="module")
def run(trained: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A copy of the run, with its landscape."""
    folder = tmp_path_factory.mktemp("landscape")
    copy = RunDirectory(shutil.copytree(trained.path, folder / "run"))
    masks = half_of_the_box(folder / "large.mrc", 32, 6.0), half_of_the_box(folder / "small.mrc", 16, 12.0)
    words = ["--sketch-size", "40", "-D", "16", "--states", "3", "--pc", "2", "--regions", ",".join(map(str, masks))]
    assert main(["landscape", str(copy.path), *words]) == 0
    return copy


def test_all_files_are_written_on_the_small_grid(run: RunDirectory) -> None:
    folder = run.landscape(1)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    volumes = {f"states/vol_{state:03d}.mrc" for state in range(3)}
    volumes |= {f"volume_pc{component}/vol_{number:03d}.mrc" for component in (1, 2) for number in range(10)}
    assert names == volumes | {
        *("mask.mrc", "mean.mrc", "landscape.png", "regions.png", "states/labels.csv"),
        *("sketch.csv", "variance.csv", "prediction.csv", "particles.parquet"),
        *("view_states.cxc", "movie_volume_pc1.cxc", "movie_volume_pc2.cxc"),
    }
    for name in volumes:
        with mrcfile.open(folder / name) as file:
            assert file.data.shape == (16, 16, 16)
            assert float(file.voxel_size.x) == pytest.approx(12.0)
    assert [path.name for path in run.path.glob(".landscape*")] == []


def test_every_particle_has_its_place_state_and_occupancies(run: RunDirectory) -> None:
    folder = run.landscape(1)
    table, of_sketch = pd.read_parquet(folder / "particles.parquet"), pd.read_csv(folder / "sketch.csv")
    columns = ["source_row", "state", "volume_pc1", "volume_pc2", "occupancy_large", "occupancy_small"]
    assert table.columns.tolist() == of_sketch.columns.tolist() == columns
    assert table["source_row"].tolist() == latents_of(run).source_row.tolist()
    assert table.notna().all(axis=None)
    assert set(of_sketch["state"]) == {0, 1, 2}
    assert np.corrcoef(table["occupancy_large"], table["occupancy_small"])[0, 1] > 0.99, "the same region on two grids"
    labels = pd.read_csv(folder / "states" / "labels.csv")
    assert labels["label"].tolist() == table["state"].tolist()
    predicted = pd.read_csv(folder / "prediction.csv")
    assert predicted["predicted"].tolist() == columns[2:]


def test_a_state_is_the_mean_of_its_volumes(run: RunDirectory, tmp_path: Path) -> None:
    of_sketch = pd.read_csv(run.landscape(1) / "sketch.csv")
    state = int(of_sketch["state"].value_counts().index[0])
    rows = of_sketch["source_row"][of_sketch["state"] == state]
    words = ["--particles", ",".join(map(str, rows)), "-D", "16", "--workers", "0"]
    assert main(["decode", str(run.path), "-o", str(tmp_path / "volumes"), *words]) == 0
    mean = np.mean([mrcfile.read(path) for path in (tmp_path / "volumes").glob("vol_*.mrc")], axis=0)
    assert np.allclose(mrcfile.read(run.landscape(1) / "states" / f"vol_{state:03d}.mrc"), mean, atol=1e-4 * mean.max())


def test_the_particles_of_a_state_are_exported(run: RunDirectory, tmp_path: Path) -> None:
    labels = run.landscape(1) / "states" / "labels.csv"
    state = int(pd.read_csv(labels)["label"].iloc[0])
    output = tmp_path / "state.star"
    assert main(["export", str(run.path), "--labels", str(labels), "--clusters", str(state), "-o", str(output)]) == 0
    assert len(starfile.read(output)["particles"]) == (pd.read_csv(labels)["label"] == state).sum()


def test_mlflow_has_all_of_it(run: RunDirectory) -> None:
    tracked = TrackedRun(run)
    entries = MlflowClient(tracked.uri).list_artifacts(tracked.run_id, "landscape.1")
    assert {Path(entry.path).name for entry in entries} == {path.name for path in run.landscape(1).iterdir()}


def test_a_landscape_is_replaced_only_if_told_and_keeps_what_is_not_ours(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = run.landscape(1), ["landscape", str(run.path), "--sketch-size", "20", "--pc", "1", "--states", "2"]
    assert main(words) == 2
    assert "it is already here; pass another -o, or --overwrite" in capsys.readouterr().err
    (folder / "notes.txt").write_text("mine")
    assert main([*words, "--overwrite"]) == 0
    names = {path.name for path in folder.iterdir()}
    assert {"notes.txt", "volume_pc1", "landscape.png"} <= names
    assert not {"volume_pc2", "regions.png", "movie_volume_pc2.cxc"} & names


def test_a_folder_that_is_no_landscape_is_left_alone(
    trained: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "states").mkdir()
    assert main(["landscape", str(trained.path), "-o", str(tmp_path), "--overwrite"]) == 2
    assert f"-o {tmp_path}: what is here is no landscape" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--sketch-size", "10"], "--sketch-size 10: there are 300 particles; pass a number from 20 up to that"),
        (["--sketch-size", "301"], "--sketch-size 301: there are 300 particles"),
        (["-D", "34"], "-D 34: the run's volumes have 32 px; pass an even number from 8 up to that"),
        (["-D", "15"], "-D 15: the run's volumes have 32 px"),
        (["--pc", "0"], "--pc 0: it is a count"),
        (["--states", "0"], "--states 0: it is a count"),
        (["--workers", "-1"], "--workers -1: it is a count"),
        (["--mask", "nowhere.mrc"], "nowhere.mrc: there is no such file"),
        (["--regions", "cap.mrc,other/cap.mrc"], "--regions cap.mrc,other/cap.mrc: two are called alike"),
        (["-D", "16", "--regions", "odd.mrc"], "odd.mrc: it has 24 x 24 x 24 voxels of 8 Å, the sketch (-D 16) has"),
        (["--regions", "map.mrc"], "map.mrc: it holds 0 to 7, and a mask is between 0 and 1"),
        (["--mask", "empty.mrc"], "empty.mrc: none of its voxels reaches 0.5"),
        (["-o", "s3://bucket/x"], "-o s3://bucket/x: this is a URL"),
    ],
)
def test_calls_that_make_no_sense_are_refused(
    trained: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, size, value in (("odd.mrc", 24, 1.0), ("map.mrc", 32, 7.0), ("empty.mrc", 32, 0.0)):
        mask = np.zeros((size,) * 3)
        mask[4:9] = value
        write_mrc(Path(name), mask, 192.0 / size, name)
    before = sorted(trained.path.iterdir())
    assert main(["landscape", str(trained.path), *words]) == 2
    assert complaint in capsys.readouterr().err
    assert sorted(trained.path.iterdir()) == before


def test_a_run_without_latents_is_refused(
    trained: RunDirectory, store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(trained.path, tmp_path / "run"))
    (copy / "latents.npz").unlink()
    assert main(["landscape", str(copy)]) == 2
    assert "the latents are not there yet; type `drgn-ray embed" in capsys.readouterr().err
    one_volume = RunDirectory(tmp_path / "mean")
    one_volume.begin(RunConfig(particles=str(store_path), model=ModelConfig(model="homogeneous")))
    assert main(["landscape", str(one_volume.path)]) == 2
    assert "it has one volume and no latents" in capsys.readouterr().err
