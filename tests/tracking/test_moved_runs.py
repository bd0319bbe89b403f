"""A folder of runs is moved, copied or reached by a link: each run stays the MLflow run that it is."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils
from servers import MlflowServer

from drgn_ray.config import RunConfig
from drgn_ray.tracking.location import local_uri
from drgn_ray.tracking.moved import artifacts_follow, database_beside
from drgn_ray.tracking.run import TrackedRun, open_run, open_sweep
from drgn_ray.training.run_directory import RunDirectory

CONFIG = RunConfig(particles="particles.zarr")


def tracked(path: Path) -> TrackedRun:
    """Begin a run, or go on with it, and track it as a command does."""
    utils._artifact_repos_cache.clear()  # a command begins without what the one before it knew
    run = RunDirectory(path)
    run.begin(CONFIG)
    return open_run(run, CONFIG)


def losses(run: TrackedRun) -> list[float]:
    return [point.value for point in MlflowClient(run.uri).get_metric_history(run.run_id, "loss")]


def files(run: TrackedRun) -> set[str]:
    return {file.path for file in MlflowClient(run.uri).list_artifacts(run.run_id)}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a run in it that has a metric and an artifact."""
    first = tracked(tmp_path / "runs" / "a")
    first.metrics({"loss": 3.0}, 1)
    first.artifacts(first.path / "config.yaml")
    return tmp_path / "runs"


@pytest.fixture
def run_id(runs: Path) -> str:
    return json.loads((runs / "a" / "mlflow.json").read_text())["run_id"]


def test_a_moved_folder_goes_on_in_its_runs_and_finds_their_artifacts(runs: Path, run_id: str, tmp_path: Path) -> None:
    (runs / "a" / "note.txt").write_text("seen")
    elsewhere = tmp_path / "archive" / "of 2026"
    elsewhere.parent.mkdir()
    shutil.move(runs, elsewhere)
    there = tracked(elsewhere / "a")
    there.metrics({"loss": 2.0}, 2)
    there.artifacts(elsewhere / "a" / "note.txt")
    assert there.run_id == run_id
    assert losses(there) == [3.0, 2.0]
    assert files(there) == {"config.yaml", "note.txt"}
    assert json.loads((elsewhere / "a" / "mlflow.json").read_text())["tracking_uri"] == local_uri(elsewhere)
    found = MlflowClient(there.uri).get_run(run_id)
    assert found.data.tags["drgn_ray.run_directory"] == str(elsewhere / "a")
    assert tracked(elsewhere / "b").run_id != run_id  # begun there
    assert not runs.exists()


def test_a_moved_folder_whose_runs_have_no_artifacts_yet_gets_them_where_it_is(tmp_path: Path) -> None:
    run_id = tracked(tmp_path / "runs" / "a").run_id
    shutil.move(tmp_path / "runs", tmp_path / "new")
    there = tracked(tmp_path / "new" / "a")
    there.artifacts(there.path / "config.yaml")
    assert there.run_id == run_id
    assert files(there) == {"config.yaml"}
    assert not (tmp_path / "runs").exists()


def test_a_copied_folder_leaves_the_original_alone(runs: Path, run_id: str, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "copy")
    copy = tracked(tmp_path / "copy" / "a")
    copy.metrics({"loss": 1.0}, 2)
    assert copy.run_id == run_id
    assert losses(copy) == [3.0, 1.0]
    (runs / "mlartifacts").rename(runs / "gone")
    assert files(copy) == {"config.yaml"}
    assert losses(tracked(runs / "a")) == [3.0]


def test_a_copied_run_begins_a_run_of_its_own(runs: Path, run_id: str, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(runs / "a", runs / "b")
    assert tracked(runs / "b").run_id != run_id
    assert f"{runs / 'b'} is a copy of {runs / 'a'}" in caplog.text
    assert tracked(runs / "a").run_id == run_id


def test_a_renamed_run_goes_on_in_the_run_it_was(runs: Path, run_id: str) -> None:
    (runs / "a").rename(runs / "b")
    assert tracked(runs / "b").run_id == run_id
    assert tracked(runs / "a").run_id != run_id  # which is another, begun later


def test_a_run_reached_by_a_link_is_the_same(
    runs: Path, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "link").symlink_to(runs)
    with caplog.at_level("INFO"):
        linked = tracked(tmp_path / "link" / "a")
    assert linked.run_id == run_id
    assert files(linked) == {"config.yaml"}
    assert "goes on in the same" not in caplog.text
    locations = [each.artifact_location for each in MlflowClient(linked.uri).search_experiments()]
    assert str(runs / "mlartifacts" / "particles") in locations


def test_trials_are_found_where_their_sweep_moved(tmp_path: Path) -> None:
    sweep = RunDirectory(tmp_path / "runs" / "sweep")
    sweep.path.mkdir(parents=True)
    trial = RunDirectory(sweep.path / "trial_0")
    trial.begin(CONFIG)
    before = open_run(trial, CONFIG, parent=open_sweep(sweep, CONFIG.particles))
    shutil.move(tmp_path / "runs", tmp_path / "new")
    there = tracked(tmp_path / "new" / "sweep" / "trial_0")
    assert there.run_id == before.run_id
    assert there.uri == local_uri(tmp_path / "new")


def test_what_was_moved_can_be_looked_at_before_it_goes_on(runs: Path, run_id: str, tmp_path: Path) -> None:
    shutil.move(runs, tmp_path / "new")
    artifacts_follow(tmp_path / "new" / "mlflow.db")
    client = MlflowClient(local_uri(tmp_path / "new"))
    assert Path(client.download_artifacts(run_id, "config.yaml")).read_text()


def test_a_database_moved_without_its_artifacts_still_finds_them(runs: Path, run_id: str, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.move(runs / "mlflow.db", tmp_path / "new")
    shutil.move(runs / "a", tmp_path / "new")
    there = tracked(tmp_path / "new" / "a")
    assert there.run_id == run_id
    assert files(there) == {"config.yaml"}


def test_a_database_that_is_elsewhere_than_its_runs_leaves_artifacts_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "records").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_uri(tmp_path / "records"))
    tracked(tmp_path / "runs" / "a")
    again = tracked(tmp_path / "runs" / "a")
    again.artifacts(again.path / "config.yaml")
    assert files(again) == {"config.yaml"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"a", "mlartifacts"}
    assert {path.name for path in (tmp_path / "records").iterdir()} == {"mlflow.db"}


def test_a_run_begun_anew_with_the_same_settings_is_the_same_run(runs: Path, run_id: str) -> None:
    assert tracked(runs / "a").run_id == run_id  # it has no checkpoint
    other = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"seed": 7})})
    run = RunDirectory(runs / "a")
    run.begin(other)
    assert open_run(run, other).run_id != run_id


def test_artifacts_that_a_server_missed_are_told_from_where_the_run_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = MlflowServer(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    try:
        first = tracked(tmp_path / "runs" / "a")
        server.stop()
        first.artifacts(first.path / "config.yaml")
        shutil.move(tmp_path / "runs", tmp_path / "new")
        server.start()
        there = tracked(tmp_path / "new" / "a")
        assert there.run_id == first.run_id
        assert files(there) == {"config.yaml"}
    finally:
        server.stop()


def test_a_database_that_is_being_made_or_is_none_names_nothing(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.touch()  # as MLflow does, some seconds before it has tables
    artifacts_follow(database)
    assert database_beside(tmp_path / "a", "0" * 32) is None
    assert database.read_bytes() == b""
    database.write_bytes(b"no database" * 1000)
    artifacts_follow(database)
    assert database_beside(tmp_path / "a", "0" * 32) is None


def test_where_a_moved_database_cannot_be_written_that_is_said(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.move(runs, tmp_path / "new")
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as other:
        other.execute("BEGIN IMMEDIATE")
        artifacts_follow(tmp_path / "new" / "mlflow.db")
    assert "artifacts are looked for where they were" in caplog.text
