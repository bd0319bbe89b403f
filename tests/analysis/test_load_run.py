"""A run is opened from Python, and gives what the commands write."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest

from drgn_ray import load_run
from drgn_ray.errors import UserError
from jobs.cli import main


@pytest.fixture(scope="module")
def path(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear run, analysed."""
    path = tmp_path_factory.mktemp("runs") / "linear"
    words = ["--model", "linear", "--zdim", "2", "--workers", "0"]
    assert main(["train", str(store_path), "-o", str(path), *words]) == 0
    return path


def test_its_latents_and_clusters_are_those_of_the_analysis(path: Path) -> None:
    run = load_run(path)
    assert run.latents.z.shape == (300, run.model.zdim)
    labels = pd.read_csv(next(path.glob("analyze.*/kmeans*/labels.csv")))
    assert run.table["source_row"].tolist() == list(range(300))
    assert run.table["cluster"].tolist() == labels["label"].tolist()
    assert np.array_equal(run.table.filter(regex=r"^z\d+$").to_numpy(), run.latents.z)


def test_its_volumes_are_those_that_decode_writes(path: Path, tmp_path: Path) -> None:
    run = load_run(path)
    assert main(["decode", str(path), "--particles", "17", "-o", str(tmp_path / "volumes"), "--workers", "0"]) == 0
    volume = run.decode(run.latents.z[17])
    with mrcfile.open(tmp_path / "volumes" / "vol_000.mrc") as file:
        assert np.allclose(volume, file.data, atol=1e-5 * np.abs(volume).max())
        assert float(file.voxel_size.x) == pytest.approx(run.apix)


def test_mistakes_are_told_as_the_commands_tell_them(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run here"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="z: its shape is"):
        load_run(path).decode(np.zeros(7))


def test_the_package_names_what_it_has_not() -> None:
    import drgn_ray

    with pytest.raises(AttributeError, match="has no attribute 'load_runs'"):
        drgn_ray.load_runs  # noqa: B018 # type: ignore[attr-defined]
