"""A real MLflow server goes away while a run is tracked: nothing waits for it, and it is told later, in order."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from servers import WAIT_SECONDS, MlflowServer

from drgn_ray.config import RunConfig
from drgn_ray.tracking.run import TrackedRun, open_run
from drgn_ray.training.run_directory import RunDirectory


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(WAIT_SECONDS))  # slow is not away
    yield server
    server.stop()


def test_what_a_server_missed_is_told_in_order_by_whoever_comes_next(
    tmp_path: Path, server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    run, config = RunDirectory(tmp_path / "runs" / "a"), RunConfig(particles="particles.zarr")
    run.begin(config)
    tracked = open_run(run, config)
    tracked.begin()
    tracked.metrics({"loss": 3.0}, 1)
    server.stop()

    caplog.set_level(logging.WARNING)
    for step in (2, 3):
        tracked.metrics({"loss": 3.0 / step}, step)
    tracked.image("volume_slices", np.zeros((4, 4), np.uint8), 1)
    tracked.artifacts(run.config_file)
    tracked.set_tag("drgn_ray.warning", "first")
    tracked.set_tag("drgn_ray.warning", "last")
    assert tracked.last_step("loss") is None
    assert open_run(run, config).run_id == tracked.run_id  # a run goes on without its server
    tracked.end("FINISHED")
    said = [record.getMessage() for record in caplog.records if str(run.mlflow_outbox) in record.getMessage()]
    assert len(said) == 2  # once when it went, and once at the end
    assert "7 messages wait" in said[1]

    server.start()
    open_run(run, config)  # as the next command does
    client = MlflowClient(server.uri)
    found = client.get_run(tracked.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["drgn_ray.warning"] == "last"
    assert [point.step for point in client.get_metric_history(tracked.run_id, "loss")] == [1, 2, 3]
    assert {file.path for file in client.list_artifacts(tracked.run_id)} >= {"config.yaml", "images"}
    assert not (run.mlflow_outbox / "waiting.jsonl").exists()


def test_what_mlflow_refuses_is_said_and_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run, config = RunDirectory(tmp_path / "runs" / "a"), RunConfig(particles="particles.zarr")
    run.begin(config)
    open_run(run, config)
    tracked = TrackedRun(run)
    caplog.set_level(logging.WARNING)
    tracked.set_tag("a name that \n it does not take", "1")
    tracked.artifacts(tmp_path / "nowhere")
    tracked.metrics({"loss": 1.0}, 7)
    ours = [record.getMessage() for record in caplog.records if record.name == "drgn_ray.tracking.outbox"]
    assert [said.split(" failed (")[0] for said in ours] == ["MLflow: tag", "MLflow: artifacts"]
    assert tracked.last_step("loss") == 7
    assert not run.mlflow_outbox.exists()
