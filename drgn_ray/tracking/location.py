"""Where runs are tracked, and the links that open them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from drgn_ray.errors import RunError
from drgn_ray.text import refuse_secrets

LOCAL_UI = "http://127.0.0.1:5000"
DATABASE = "mlflow.db"
_LOCAL = "sqlite:///"
# A fresh browser would land in MLflow's GenAI view, which shows none of a training run's charts.
_VIEW = "workflowType=machine_learning"


def tracking_uri(runs_folder: Path) -> str:
    """``MLFLOW_TRACKING_URI`` if it is set, else an SQLite file beside the runs.

    Raises
    ------
    RunError
        The folder's name holds what an address cannot.
    ConfigError
        The server's address holds a password.
    """
    if server := os.environ.get("MLFLOW_TRACKING_URI"):
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on all machines, or ~/.mlflow/credentials"
        refuse_secrets(server, f"take it out of MLFLOW_TRACKING_URI and {remedy}")
        return server
    folder = str(runs_folder.absolute())
    if found := set(folder) & set("?#%"):
        raise RunError(
            folder, f"MLflow cannot keep runs in a path with {' or '.join(sorted(found))}", "pass another -o"
        )
    return local_uri(runs_folder)


def local_uri(runs_folder: Path) -> str:
    """Name the file beside the runs in which they are tracked, as MLflow does."""
    return f"{_LOCAL}{runs_folder.absolute() / DATABASE}"


def local_database(uri: str) -> Path | None:
    """Find the file in which runs are tracked; None where a server does that."""
    return Path(uri.removeprefix(_LOCAL)) if uri.startswith(_LOCAL) else None


def artifact_root(runs_folder: Path, experiment: str) -> Path:
    """Name where artifacts of an experiment are that is tracked in a file beside the runs."""
    return runs_folder.absolute() / "mlartifacts" / experiment


def run_link(uri: str, experiment_id: str, run_id: str) -> str:
    """Link to a run's page; for a local file, as `drgn-ray ui` will serve it."""
    return f"{_server(uri)}/#/experiments/{experiment_id}/runs/{run_id}?{_VIEW}"


def artifact_link(experiment_id: str, run_id: str, path: str) -> str:
    """Link to an artifact from within the interface, whatever its server's address."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{path}?{_VIEW}"


def experiment_link(uri: str, experiment_id: str) -> str:
    """Link to an experiment's charts."""
    return f"{_server(uri)}/#/experiments/{experiment_id}/runs?{_VIEW}&compareRunsMode=CHART"


def compare_link(uri: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Link to MLflow's page that sets runs of an experiment side by side."""
    runs, experiments = (quote(json.dumps(each, separators=(",", ":"))) for each in ([*run_ids], [experiment_id]))
    return f"{_server(uri)}/#/compare-runs?runs={runs}&experiments={experiments}&{_VIEW}"


def _server(uri: str) -> str:
    return uri.rstrip("/") if uri.startswith("http") else LOCAL_UI
