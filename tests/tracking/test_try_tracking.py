"""Whether MLflow takes a run is found out by giving it one."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from servers import free_ports

from drgn_ray.errors import ResourceError
from drgn_ray.tracking.run import try_tracking


def test_where_runs_are_tracked_takes_one_and_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    client.search_experiments()  # makes its tables

    assert try_tracking(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db takes runs, metrics and artifacts"

    made = [each.experiment_id for each in client.search_experiments()]
    assert len(made) == 2
    assert client.search_runs(made) == []


def test_a_server_that_is_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(ResourceError, match=r"MLflow does not answer .*; start its server"):
        try_tracking(tmp_path)


def test_a_file_beside_runs_that_are_none_yet_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert try_tracking(tmp_path) == f"runs will be tracked in sqlite:///{tmp_path}/mlflow.db"
    assert list(tmp_path.iterdir()) == []


def test_an_address_of_no_kind_that_mlflow_knows_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://127.0.0.1:5000")
    with pytest.raises(ResourceError, match=r"^MLFLOW_TRACKING_URI=htp://.*MLflow knows no such kind of place; set"):
        try_tracking(tmp_path)
