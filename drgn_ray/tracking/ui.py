"""The MLflow server, on loopback, over a folder of runs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import IO

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run

from drgn_ray.errors import ResourceError, RunError
from drgn_ray.tracking.location import DATABASE, experiment_link, local_uri, run_link
from drgn_ray.tracking.moved import artifacts_follow

logger = logging.getLogger(__name__)
HOST = "127.0.0.1"
START_SECONDS = 90.0


def serve(runs_folder: Path, port: int) -> None:
    """Serve until interrupted; prints links to every experiment and its newest run."""
    database = runs_folder.absolute() / DATABASE
    if not database.exists():
        raise RunError(
            str(runs_folder),
            f"no runs are tracked here (no {DATABASE})",
            "pass the folder that holds your run directories, as in `drgn-ray ui runs`",
        )
    if not 0 < port < 1 << 16:
        raise ResourceError(f"--port {port}", "ports run from 1 to 65535", "pass another --port")
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise ResourceError(f"--port {port}", "something else listens there", f"pass --port {port + 1}")
    artifacts_follow(database)
    uri = local_uri(runs_folder)
    # Without job workers the server takes a fifth of the memory.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # And no page from elsewhere reaches it by a name of its own for this address.
    environment["MLFLOW_SERVER_ALLOWED_HOSTS"] = f"localhost:{port},{HOST}:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        HOST,
        "--port",
        str(port),
        "--workers",
        "1",
        "--default-artifact-root",
        str(runs_folder.absolute() / "mlartifacts"),
    ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server below ends with us
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            _wait_until_up(server, port, log)
            _print_links(uri, f"http://{HOST}:{port}")
            server.wait()
        finally:
            server.terminate()


def _wait_until_up(server: subprocess.Popen[bytes], port: int, log: IO[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            log.seek(0)
            last = log.read().strip().splitlines()[-1:]
            raise ResourceError(f"--port {port}", f"MLflow did not start ({' '.join(last)})", "try another --port")
        try:
            urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=1).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    raise ResourceError(f"--port {port}", f"MLflow did not answer within {START_SECONDS:.0f} s", "try again")


def _print_links(uri: str, server: str) -> None:
    client = MlflowClient(uri)
    for experiment in client.search_experiments():
        runs = client.search_runs([experiment.experiment_id], max_results=1)
        if runs:
            _print_experiment(server, experiment, runs[0])
    logger.info("Ctrl-C ends it")


def _print_experiment(server: str, experiment: Experiment, newest: Run) -> None:
    logger.info("%s: %s", experiment.name, experiment_link(server, experiment.experiment_id))
    logger.info(
        "  newest run, %s: %s", newest.info.run_name, run_link(server, experiment.experiment_id, newest.info.run_id)
    )
