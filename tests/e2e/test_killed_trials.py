"""Trials of several workers, and processes of trials that are killed: every sweep ends, all it held is free."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from servers import own_ray
from small_sweeps import BASE
from trainings import LONG, epochs_in

from drgn_ray.training.sweep_directory import SweepDirectory
from jobs.cli import main

NUM_EPOCHS = 9
OF_GROUPS = f"""
space: {{training.lr: {{choice: [3.0e-3, 1.0e-6, 1.0e-7, 1.0e-8]}}}}
search: grid
{BASE}  model.zdim: 2
  training.num_epochs: {NUM_EPOCHS}
  resources.num_workers: 2
"""
NUM_EPOCHS_ALONE = 60
ALONE = f"""
space: {{training.lr: {{choice: [3.0e-3]}}}}
search: grid
{BASE}  model.zdim: 2
  training.num_epochs: {NUM_EPOCHS_ALONE}
"""


@pytest.fixture(scope="module")
def six_cpus() -> Iterator[None]:
    """Ray without a dashboard, of which Ray Train's own cleaner of placement groups would ask what is dead."""
    with own_ray(6):
        yield


def tune(store_path: Path, folder: Path, sweep: str, meanwhile: Callable[[SweepDirectory], None]) -> SweepDirectory:
    """Run a sweep, and something beside it, which must come to its end too."""
    (folder / "sweep.yaml").write_text(sweep)
    directory = SweepDirectory(folder / "sweeps" / "a")
    ended: Future[None] = Future()

    def beside() -> None:
        try:
            ended.set_result(meanwhile(directory))
        except Exception as error:  # noqa: BLE001 - told by the future
            ended.set_exception(error)

    threading.Thread(target=beside, daemon=True).start()
    assert main(["tune", str(store_path), str(folder / "sweep.yaml"), "-o", str(directory.path)]) == 0
    ended.result(timeout=1)  # it raises what the thread raised, and when the sweep ended before anything was killed
    return directory


def kill_once_it_judged(directory: SweepDirectory, num_epochs: int, name: str, having_open: Path | None = None) -> None:
    """Kill the process of this name, of those below ours, that has a file open, once trial 1 judged so many epochs."""
    while len(directory.bounds("trial_1")) < num_epochs:
        time.sleep(0.02)
    while True:  # an actor carries its method's name only while it runs it
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(name):
                    if having_open is None or str(having_open) in [file.path for file in process.open_files()]:
                        process.kill()
                        return
        time.sleep(0.02)


def check_that_nothing_is_held_and_no_epoch_lost(directory: SweepDirectory, num_epochs: int) -> None:
    import ray
    from ray._private.state import actors
    from ray.util import placement_group_table

    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}
    assert ray.available_resources()["CPU"] == 6
    alive = {actor["ActorClassName"] for actor in actors().values() if actor["State"] == "ALIVE"}
    assert not alive & {"PlacementGroupCleaner", "TrainController", "RayTrainWorker"}
    run, epochs = directory.run("trial_1"), list(range(1, num_epochs + 1))
    outcome = directory.outcome("trial_1")
    assert outcome is not None
    assert outcome.state == "finished"
    assert epochs_in(run) == list(directory.bounds("trial_1")) == epochs
    place = json.loads(run.mlflow_file.read_text())
    client = MlflowClient(place["tracking_uri"])
    assert client.get_run(place["run_id"]).info.status == "FINISHED"
    assert len(client.get_metric_history(place["run_id"], "held_out/gain")) == num_epochs
    children = client.search_runs([place["experiment_id"]], filter_string="tags.mlflow.parentRunId LIKE '%'")
    assert sorted(str(child.info.run_name) for child in children) == [path.path.name for path in directory.runs()]


@LONG
def test_trials_of_two_workers_end_though_trials_are_stopped_and_killed(
    store_path: Path, tmp_path: Path, six_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what `drgn_ray.distributed.groups` frees, three stopped trials keep six CPUs, and the fourth waits."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def kill(directory: SweepDirectory) -> None:
        kill_once_it_judged(directory, 2, "ray::RayTrainWorker", directory.run("trial_1").log_file)  # rank 0
        kill_once_it_judged(directory, 4, "ray::ImplicitFunc.train")
        assert main(["tune", str(store_path), str(tmp_path / "sweep.yaml"), "-o", str(directory.path)]) == 2

    directory = tune(store_path, tmp_path, OF_GROUPS, kill)
    check_that_nothing_is_held_and_no_epoch_lost(directory, NUM_EPOCHS)
    later = [directory.outcome(f"trial_{number}") for number in (3, 4)]  # which better ones were before
    assert [outcome.state for outcome in later if outcome] == ["stopped"] * 2
    assert not list(directory.path.glob("**/.ray*"))


def test_a_trial_in_one_process_goes_on_after_that_was_killed(
    store_path: Path, tmp_path: Path, six_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    directory = tune(
        store_path, tmp_path, ALONE, lambda found: kill_once_it_judged(found, 3, "ray::ImplicitFunc.train")
    )
    check_that_nothing_is_held_and_no_epoch_lost(directory, NUM_EPOCHS_ALONE)
