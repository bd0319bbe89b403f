"""Nothing is lost to a fault: processes are killed, and the run ends with every epoch done once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from trainings import epochs_in, train_command, wait_for

from drgn_ray.tracking.run import ERROR
from drgn_ray.training.run_directory import RunDirectory

NUM_EPOCHS = 14


def training_workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


def test_a_killed_worker_and_a_killed_driver_cost_no_epoch(store_path: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "killed")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    command = train_command(store_path, run, NUM_EPOCHS, num_workers=2)
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        wait_for(lambda: len(epochs_in(run)) >= 2, lambda: first.poll() is None, "two epochs")
        training_workers(first)[-1].kill()
        before = len(epochs_in(run))
        wait_for(
            lambda: len(epochs_in(run)) >= before + 3,
            lambda: first.poll() is None,
            "three more epochs after the worker was killed",
        )
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        killed_at = len(epochs_in(run))
        assert killed_at < NUM_EPOCHS
        second = subprocess.run(command, stdout=log, stderr=log, env=environment, timeout=600, check=False)
    text = (tmp_path / "log").read_text()
    assert second.returncode == 0, text[-3000:]
    assert "going on at epoch" in text
    assert epochs_in(run) == list(range(1, NUM_EPOCHS + 1))

    place = json.loads(run.mlflow_file.read_text())
    client = MlflowClient(place["tracking_uri"])
    assert client.get_run(place["run_id"]).info.status == "FINISHED"
    logged = [point.value for point in client.get_metric_history(place["run_id"], "epoch_done")]
    assert sorted(set(logged)) == list(range(1, NUM_EPOCHS + 1))


@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_an_interruption_is_one_sentence_and_mlflow_knows(
    word: signal.Signals, store_path: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "runs" / "stopped")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            train_command(store_path, run, NUM_EPOCHS, num_workers=2), stdout=log, stderr=log, env=environment
        )
        wait_for(lambda: len(epochs_in(run)) >= 1, lambda: process.poll() is None, "one epoch")
        process.send_signal(word)
        assert process.wait(60) == 130
    assert (
        (tmp_path / "log").read_text().endswith("drgn-ray: interrupted; the same command, given again, finishes it.\n")
    )
    assert "interrupted" in run.log_file.read_text().splitlines()
    place = json.loads(run.mlflow_file.read_text())
    stopped = MlflowClient(place["tracking_uri"]).get_run(place["run_id"])
    assert stopped.info.status == "KILLED"
    assert ERROR in stopped.data.tags
