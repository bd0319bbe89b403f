"""``drgn-ray export RUN`` keeps the particles of a place in the latent space."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from drgn_ray.analysis.latent_space import principal_components
from drgn_ray.analysis.umap import write_umap
from drgn_ray.training.embed import latents_of
from drgn_ray.training.run_directory import RunDirectory
from jobs.cli import main


def exported(run: RunDirectory, output: Path, *words: str) -> list[int]:
    assert main(["export", str(run.path), "-o", str(output), "--overwrite", *words]) == 0
    return np.loadtxt(output, dtype=int, ndmin=1).tolist()


def square(axes: str, low: float, high: float) -> str:
    return f"{axes}:{low},{low}:{high},{low}:{high},{high}:{low},{high}"


def test_a_lasso_around_latents(trained: RunDirectory, tmp_path: Path) -> None:
    latents = latents_of(trained)
    low, high = np.percentile(latents.z, (10, 70))
    inside = ((latents.z > low) & (latents.z < high)).all(axis=1)
    assert exported(trained, tmp_path / "rows.txt", "--lasso", square("z0,z1", low, high)) == (
        latents.source_row[inside].tolist()
    )


def test_a_lasso_around_principal_components(trained: RunDirectory, tmp_path: Path) -> None:
    latents = latents_of(trained)
    scores = principal_components(latents.z).scores
    corners = scores.min(axis=0) - 1, scores.max(axis=0) + 1
    triangle = f"pc1,pc2:{corners[0][0]},{corners[0][1]}:{corners[1][0]},{corners[0][1]}:0,{scores[:, 1].mean()}"
    kept = exported(trained, tmp_path / "rows.txt", "--lasso", triangle)
    assert 0 < len(kept) < len(scores)
    others = exported(trained, tmp_path / "rows.txt", "--lasso", triangle, "--others")
    assert sorted(kept + others) == latents.source_row.tolist()
    below = scores[np.isin(latents.source_row, kept), 1]
    assert below.max() < scores[:, 1].mean()


def test_a_lasso_that_was_drawn_around_other_latents_is_refused(
    trained: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = latents_of(trained).images_seen
    assert exported(trained, tmp_path / "rows.txt", "--lasso", square(f"z0,z1@{seen}", -9, 9))
    words = ["export", str(trained.path), "-o", str(tmp_path / "other.txt"), "--lasso", square("z0,z1@7", -9, 9)]
    assert main(words) == 2
    assert f"it was drawn after 7 images of training, and the latents are of {seen}" in capsys.readouterr().err


def test_particles_that_umap_left_out_are_in_no_lasso_of_it(trained: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(shutil.copytree(trained.path, tmp_path / "run"))
    rows = latents_of(run).source_row
    coordinates = np.full((len(rows), 2), np.nan)
    coordinates[:10] = np.arange(10)[:, None]
    write_umap(run.path / "analyze.1", rows, coordinates)
    assert exported(run, tmp_path / "rows.txt", "--lasso", square("umap1,umap2", 2.5, 6.5)) == rows[3:7].tolist()


@pytest.mark.parametrize(
    ("lasso", "sentence"),
    [
        (
            "z0,z1:0,0:1,1",
            "--lasso: 'z0,z1:0,0:1,1' is no polygon (2 axes, 2 corners); pass it as pc1,pc2:0,0:2,0:1,3.",
        ),
        ("z0:0,0:1,1:2,0", "is no polygon (1 axes, 3 corners); pass it as pc1,pc2:"),
        ("z0,z1:0,0:1,x:2,0", "is no polygon (could not convert string to float: 'x'); pass it as pc1,pc2:"),
        ("z0,z7:0,0:1,1:2,0", "has no z7; pass two of z0, z1, pc1, pc2."),
        ("umap1,umap2:0,0:1,1:2,0", "has no umap1; pass two of z0, z1, pc1, pc2."),
    ],
)
def test_what_is_no_lasso_is_refused(
    lasso: str, sentence: str, trained: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained.path), "-o", str(tmp_path / "rows.txt"), "--lasso", lasso]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "rows.txt").exists()


def test_clusters_are_those_of_the_newest_analysis_whatever_else_is_called_so(
    trained: RunDirectory, tmp_path: Path
) -> None:
    run = RunDirectory(shutil.copytree(trained.path, tmp_path / "run"))
    expected = exported(trained, tmp_path / "rows.txt", "--clusters", "1")
    for name in ("analyze.old", "analyze.0"):
        shutil.copytree(run.analysis(1), run.path / name)
    (run.path / "analyze.0" / "kmeans3" / "labels.csv").write_text("source_row,label\n0,1\n")
    assert exported(run, tmp_path / "rows.txt", "--clusters", "1") == expected
