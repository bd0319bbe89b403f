"""Nothing is lost to a fault: processes are killed, and the run ends with every epoch done once."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient
from servers import WAIT_SECONDS
from trainings import epochs_in, processes_below, started, train_command, wait_for

from drgn_ray.tracking.run import ERROR
from drgn_ray.training.run_directory import RunDirectory


def test_a_killed_worker_and_a_killed_driver_cost_no_epoch(store_path: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "killed")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    command, log = train_command(store_path, run, num_workers=2), tmp_path / "log"
    with started(command, log, environment) as first:
        wait_for(lambda: len(epochs_in(run)) >= 2, lambda: first.poll() is None, "two epochs", log.read_text)
        processes_below(first, "RayTrainWorker")[-1].kill()
        before = len(epochs_in(run))
        wait_for(
            lambda: len(epochs_in(run)) >= before + 3,
            lambda: first.poll() is None,
            "three more epochs after the worker was killed",
            log.read_text,
        )
        first.kill()
        first.wait()
    num_epochs = len(epochs_in(run)) + 2
    with started([*command, "-n", str(num_epochs)], log, environment) as second:
        assert second.wait(WAIT_SECONDS) == 0, log.read_text()[-3000:]
    assert "going on at epoch" in log.read_text()
    assert epochs_in(run) == list(range(1, num_epochs + 1))

    place = json.loads(run.mlflow_file.read_text())
    client = MlflowClient(place["tracking_uri"])
    assert client.get_run(place["run_id"]).info.status == "FINISHED"
    logged = [point.value for point in client.get_metric_history(place["run_id"], "epoch_done")]
    assert sorted(set(logged)) == list(range(1, num_epochs + 1))


@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_an_interruption_is_one_sentence_and_mlflow_knows(
    word: signal.Signals, store_path: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "runs" / "stopped")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    log = tmp_path / "log"
    with started(train_command(store_path, run, num_workers=2), log, environment) as process:
        wait_for(lambda: len(epochs_in(run)) >= 1, lambda: process.poll() is None, "one epoch", log.read_text)
        process.send_signal(word)
        assert process.wait(WAIT_SECONDS) == 130
    assert log.read_text().endswith("drgn-ray: interrupted; the same command, given again, finishes it.\n")
    assert "interrupted" in run.log_file.read_text().splitlines()
    place = json.loads(run.mlflow_file.read_text())
    stopped = MlflowClient(place["tracking_uri"]).get_run(place["run_id"])
    assert stopped.info.status == "KILLED"
    assert ERROR in stopped.data.tags
