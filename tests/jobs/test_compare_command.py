"""``drgn-ray compare``: what it writes and tracks, which runs it compares, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tiny_run import train_tiny

from conversions.driver import Options, convert
from conversions.inputs import read_particles
from drgn_ray import load_run
from drgn_ray.analysis import run_agreement
from drgn_ray.analysis.run import TrainedRun
from drgn_ray.analysis.run_agreement import DIFFERENCES, SAME, compare_runs, decode_here
from drgn_ray.physics.volume import Finish, resample
from drgn_ray.tracking.run import TrackedRun, open_run
from drgn_ray.training.run_directory import RunDirectory
from jobs.cli import main

FILES = {"comparison.csv", "comparison.md", "runs.csv", "latents.csv", "volumes.csv", "latents.png", "volumes.png"}


class Runs(NamedTuple):
    """Run directories ``a`` and ``b`` of one MLflow database."""

    a: RunDirectory
    b: RunDirectory


@pytest.fixture(scope="module")
def runs(trained: RunDirectory, store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("compared") / "runs"
    pair = Runs(RunDirectory(folder / "a"), RunDirectory(folder / "b"))
    shutil.copytree(trained.path, pair.a.path, ignore=shutil.ignore_patterns("mlflow.json"))
    train_tiny(store_path, pair.b, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for run in pair:
            open_run(run, run.config())
    return pair


def compare(output: Path, *words: object) -> int:
    return main(["compare", "-o", str(output), "--num-volumes", "3", "--workers", "0", *map(str, words)])


def tracked(folder: Path) -> Run:
    found = TrackedRun(RunDirectory(folder))
    return found.client.get_run(found.run_id)


def changed(run: RunDirectory, to: Path, old: str, new: str) -> Path:
    """Copy a run with other settings."""
    shutil.copytree(run.path, to)
    text = (to / "config.yaml").read_text()
    assert old in text
    (to / "config.yaml").write_text(text.replace(old, new))
    return to


def test_tables_figures_and_a_verdict_in_words(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path / "out", runs.a.path, runs.b.path) == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == FILES | {"mlflow.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    about = pd.read_csv(out / "runs.csv")
    assert about["run"].tolist() == ["a", "b"]
    assert about[["zdim", "epochs", "particles"]].to_numpy().tolist() == [[2, 1, 300]] * 2
    last = json.loads(runs.b.metrics_file.read_text().splitlines()[-1])
    assert about["val/loss"][1] == pytest.approx(last["val/loss"], rel=1e-5)
    (of_latents,) = pd.read_csv(out / "latents.csv").to_dict("records")
    assert 0 < of_latents["permuted"] < 0.5
    assert of_latents["neighbors_by_chance"] == pytest.approx(20 / 299, rel=1e-5)
    assert {"canonical_1", "canonical_2", "second_from_first", "rand_index"} <= of_latents.keys()
    by_shell = pd.read_csv(out / "volumes.csv")
    assert by_shell["shell"].tolist() == list(range(17))
    assert all((out / f"{name}.png").stat().st_size > 10_000 for name in ("latents", "volumes"))
    (verdict,) = [line for line in (out / "comparison.md").read_text().splitlines() if "differences between" in line]
    assert verdict.startswith("- a and b tell ")
    printed = capsys.readouterr().out
    assert verdict.removeprefix("- ") in printed
    assert "latents of all 300 particles were compared" in printed


def test_mlflow_has_the_numbers_the_note_the_files_and_which_runs_they_are_of(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path / "out", runs.a.path, runs.b.path) == 0
    run, of_runs = tracked(tmp_path / "out"), [TrackedRun(each) for each in runs]
    assert (run.info.run_name, run.info.status) == ("compare a b", "FINISHED")
    assert run.info.experiment_id == of_runs[0].experiment_id
    ids = [each.run_id for each in of_runs]
    assert run.data.tags["drgn_ray.compared_runs"].split(",") == ids
    (numbers,) = pd.read_csv(tmp_path / "out" / "comparison.csv").drop(columns=["first", "second"]).to_dict("records")
    assert run.data.metrics == pytest.approx({f"{name}/a b": value for name, value in numbers.items()}, rel=1e-4)
    charts = "http://127.0.0.1:5000/#/compare-runs?runs=%5B%22{}%22%2C%22{}%22%5D&experiments=%5B%22{}%22%5D"
    link = f"{charts.format(*ids, run.info.experiment_id)}&workflowType=machine_learning"
    note = (tmp_path / "out" / "comparison.md").read_text()
    assert run.data.tags["mlflow.note.content"].startswith(note)
    assert f"({link})" in run.data.tags["mlflow.note.content"]
    assert f"charts  {link} (once `drgn-ray ui {runs.a.path.parent}` runs)" in capsys.readouterr().out
    kept = MlflowClient(of_runs[0].uri).list_artifacts(run.info.run_id)
    assert {entry.path for entry in kept} >= FILES


def test_a_comparison_is_replaced_only_if_told_and_its_record_says_so(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path / "out", runs.a.path, runs.b.path) == 0
    first = tracked(tmp_path / "out").info.run_id
    assert compare(tmp_path / "out", runs.b.path, runs.a.path) == 2
    assert "comparison.md: it is already here; pass another -o, or --overwrite" in capsys.readouterr().err
    assert compare(tmp_path / "out", runs.b.path, runs.a.path, "--overwrite") == 0
    after = tracked(tmp_path / "out")
    before = TrackedRun(runs.a).client.get_run(first)
    assert after.info.run_name == "compare b a"
    assert before.info.run_name == "compare a b (replaced)"
    assert before.data.tags["drgn_ray.replaced_by"] == after.info.run_id
    assert after.info.run_id in before.data.tags["mlflow.note.content"].splitlines()[0]


def test_a_run_and_itself_agree_in_everything(trained: RunDirectory) -> None:
    found = compare_runs([load_run(trained.path), load_run(trained.path)], num_volumes=4)
    pair = ("run_1", "run_2")
    latents, volumes = found.latents[pair], found.volumes[pair]
    assert latents.canonical == pytest.approx([1, 1])
    assert (latents.second_from_first, latents.neighbors, latents.rand_index) == pytest.approx((1, 1, 1))
    assert volumes.curves[SAME] == pytest.approx(np.ones(17))
    assert volumes.curves[DIFFERENCES] == pytest.approx(np.ones(17))
    assert volumes.difference_correlation == pytest.approx(1)
    assert found.resolution(pair, SAME) == pytest.approx(2 * found.apix)
    assert found.runs["variation"][0] > 0


def test_volumes_are_compared_in_the_smallest_box(runs: Runs, simulated: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.zarr"
    convert(read_particles(str(simulated)), Options(str(small), 24, "float16", None, False, 0, "drgn-ray convert"))
    train_tiny(small, RunDirectory(tmp_path / "small"))
    both, seen = [load_run(runs.a.path), load_run(tmp_path / "small")], []

    def decode(of: Sequence[TrainedRun], latents: Sequence[np.ndarray], finish: Finish) -> list[list[np.ndarray]]:
        seen.extend(decode_here(of, latents, finish))
        return seen

    found = compare_runs(both, num_volumes=2, decode=decode)
    assert (found.box_size, found.apix) == (24, pytest.approx(8.0))
    for run, volumes in zip(both, seen, strict=True):
        whole = run.decode(run.latents.of(found.source_rows)[1])
        assert np.allclose(volumes[1], resample(whole, 24), atol=1e-5 * np.abs(whole).max())


def test_of_many_particles_some_are_drawn_at_random_and_that_is_said(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_agreement, "MOST_PARTICLES", 200)
    assert compare(tmp_path / "out", runs.a.path, runs.b.path) == 0
    said = "200 of 300 particles, drawn at random"
    assert f"latents of {said} were compared" in capsys.readouterr().out
    assert said in (tmp_path / "out" / "comparison.md").read_text()


def test_a_comparison_that_fails_leaves_no_folder_and_mlflow_knows(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs.b.path, tmp_path / "broken")
    next((tmp_path / "broken").glob("checkpoints/*/model.safetensors")).write_bytes(b"nothing")
    assert compare(tmp_path / "out", runs.a.path, tmp_path / "broken") == 2
    assert "this checkpoint is damaged" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"broken"}
    client, experiment = TrackedRun(runs.a).client, TrackedRun(runs.a).experiment_id
    (failed,) = client.search_runs([experiment], "attributes.run_name = 'compare a broken'")
    assert failed.info.status == "FAILED"


def test_runs_of_other_particles_are_refused(
    runs: Runs, simulated: Path, store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer, options = tmp_path / "fewer.zarr", ("float16", None, False, 0, "drgn-ray convert")
    convert(read_particles(str(simulated)).take(np.arange(200)), Options(str(fewer), 16, *options))
    other = changed(runs.b, tmp_path / "other", str(store_path), str(fewer))
    assert compare(tmp_path / "out", runs.a.path, other) == 2
    error = capsys.readouterr().err
    assert f"{runs.a.path} and {other}: they are of different particles ({store_path} and {fewer});" in error
    assert not (tmp_path / "out").exists()


def test_runs_without_latents_are_refused(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mean").mkdir()
    words = f"particles: {runs.a.config().particles}\nmodel: {{model: homogeneous}}\n"
    (tmp_path / "mean" / "config.yaml").write_text(words)
    assert compare(tmp_path / "out", runs.a.path, tmp_path / "mean") == 2
    assert "mean: it has one volume and no latents; compare such maps by `drgn-ray fsc`." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["A"], "compare: fewer than two runs are named; pass two run directories or more"),
        (["A", "B", "A"], "a: it is named twice; name each run once"),
        (["A", "B", "--num-volumes", "1"], "--num-volumes 1: latents of 300 particles are compared"),
        (["A", "B", "--num-volumes", "301"], "--num-volumes 301: latents of 300 particles are compared"),
        (["A", "B", "--workers", "-1"], "--workers -1: it is a count"),
        (["A", "B", "-o", "A"], "a: a run is here; pass another folder"),
        (["A", "nowhere"], "nowhere: there is no run here"),
    ],
)
def test_calls_that_make_no_sense_are_refused(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    paths = {"A": str(runs.a.path), "B": str(runs.b.path)}
    assert main(["compare", "-o", str(tmp_path / "out"), *(paths.get(word, word) for word in words)]) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
