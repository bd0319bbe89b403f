"""Runs of several machines write to one MLflow server at once, whose records are in PostgreSQL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from mlflow import MlflowClient
from servers import WAIT_SECONDS, MlflowServer, own_postgres

TINY = "--zdim 2 --enc-dim 16 --enc-layers 1 --dec-dim 16 --dec-layers 1 --pe-dim 4 -n 2 --workers 0 --log-seconds 1e-9"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with own_postgres() as database:
        one = MlflowServer(tmp_path_factory.mktemp("mlflow"), database)
        yield one
        one.stop()


def test_two_trainings_at_once_are_both_whole_in_mlflow(server: MlflowServer, store_path: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    here = os.environ | {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(WAIT_SECONDS)}
    command = [sys.executable, "-m", "jobs.train", str(store_path), "--no-analysis", *TINY.split()]
    trainings = [subprocess.Popen([*command, "-o", str(run)], env=here, stderr=subprocess.DEVNULL) for run in runs]
    assert [training.wait(WAIT_SECONDS) for training in trainings] == [0, 0]

    client = MlflowClient(server.uri)
    places = [json.loads((run / "mlflow.json").read_text()) for run in runs]
    assert places[0]["experiment_id"] == places[1]["experiment_id"]  # made by whichever came first
    for run, place in zip(runs, places, strict=True):
        assert client.get_run(place["run_id"]).info.status == "FINISHED"
        written = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {line["kind"] for line in written} == {"epoch", "interval"}
        for name in {name for line in written for name in line} - {"kind", "step", "epoch"}:
            points = [(point.step, point.value) for point in client.get_metric_history(place["run_id"], name)]
            assert sorted(points) == sorted((line["step"], line[name]) for line in written if name in line)
        assert client.list_artifacts(place["run_id"])
        assert not (run / "mlflow_outbox").exists()


def test_the_server_answers_to_its_own_address_alone(server: MlflowServer) -> None:
    said = f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=1"
    assert urlopen(said).status == 200
    with pytest.raises(HTTPError, match="403"):
        urlopen(Request(said, headers={"Host": "elsewhere.example.com"}))
