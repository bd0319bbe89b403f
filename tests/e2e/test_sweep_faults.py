"""A sweep goes on after its driver was killed and while MLflow's server is away; no trial is run twice, none lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from servers import WAIT_SECONDS, MlflowServer
from small_sweeps import SLOWER_BASE
from trainings import LONG, wait_for

from drgn_ray.training.sweep_directory import SweepDirectory

NUM_TRIALS, NUM_EPOCHS = 4, 40  # on a quick machine, too, longer than a server's start
SWEEP = f"""
space:
  model.zdim: {{choice: [1, 2]}}
  training.lr: {{choice: [3.0e-3, 1.0e-3]}}
{SLOWER_BASE}  training.num_epochs: {NUM_EPOCHS}
  resources.cpus_per_worker: {-(-(os.cpu_count() or 1) // 2)}
search: grid
scheduler: none
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path)
    yield server
    server.stop()


def children_of(client: MlflowClient, sweep: SweepDirectory) -> dict[str, Run]:
    (parent,) = client.search_runs(["1"], "tags.mlflow.runName = 'tune a'")
    found = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(found) == len({run.info.run_name for run in found})  # none is tracked twice
    return {str(run.info.run_name): run for run in found}


@LONG
def test_a_sweep_survives_its_server_and_its_driver(store_path: Path, tmp_path: Path, server: MlflowServer) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    sweep = SweepDirectory(tmp_path / "sweeps" / "a")
    command = [sys.executable, "-m", "jobs.tune", str(store_path), str(tmp_path / "sweep.yaml"), "-o", str(sweep.path)]
    names = [f"trial_{number}" for number in range(1, NUM_TRIALS + 1)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": server.uri}
    client = MlflowClient(server.uri)

    def told() -> int:
        return sum(len(sweep.bounds(name)) for name in names)

    def ends() -> dict[str, int]:
        return {name: run.info.end_time for name, run in children_of(client, sweep).items() if run.info.end_time}

    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        alive = lambda: first.poll() is None  # noqa: E731
        wait_for(lambda: told() >= 2, alive, "two epochs")
        server.stop()
        before = told()
        wait_for(lambda: told() >= before + 3, alive, "three more epochs without a server")
        server.start()
        wait_for(lambda: bool(ends()), alive, "the end of a trial, of which the server knows")
        before = told()
        wait_for(lambda: told() > before, alive, "one more epoch")
        first.send_signal(signal.SIGKILL)
        first.wait()
        finished = ends()
        assert finished.keys() < set(names)
        runs = {name: run.info.run_id for name, run in children_of(client, sweep).items()}
        second = subprocess.run(command, stdout=log, stderr=log, env=environment, timeout=WAIT_SECONDS, check=False)
    text = (tmp_path / "log").read_text()
    assert second.returncode == 0, text[-3000:]
    assert set(pd.read_csv(sweep.path / "leaderboard.csv")["state"]) == {"finished"}

    children = children_of(client, sweep)
    assert sorted(children) == names
    assert {name: children[name].info.run_id for name in runs} == runs
    assert {name: children[name].info.end_time for name in finished} == finished  # these were left alone
    for name, run in children.items():
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "epoch_done")
        assert sorted({int(point.value) for point in history}) == list(range(1, NUM_EPOCHS + 1)), name
        assert len(client.get_metric_history(run.info.run_id, "held_out/gain")) >= NUM_EPOCHS
        assert not (sweep.run(name).path / "mlflow_outbox" / "waiting.jsonl").exists()
