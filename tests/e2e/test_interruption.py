"""Ctrl-C; for faults see tests/chaos."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient

from drgn_ray.training.run_directory import RunDirectory

NUM_EPOCHS = 14


def train_command(store_path: Path, run_path: Path) -> list[str]:
    network = "--zdim 2 --enc-dim 32 --enc-layers 1 --dec-dim 256 --dec-layers 3 --val-fraction 0.2".split()
    length = f"-n {NUM_EPOCHS} -b 16 --workers 2 --cpus-per-worker 1 --no-analysis".split()
    return [sys.executable, "-m", "jobs.train", str(store_path), "-o", str(run_path), *network, *length]


def epochs_in(run: RunDirectory) -> list[int]:
    if not run.metrics_file.exists():
        return []
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [line["epoch"] for line in lines if line["kind"] == "epoch"]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, f"training ended before {what}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def test_ctrl_c_is_one_sentence_and_mlflow_knows(store_path: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "stopped")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(train_command(store_path, run.path), stdout=log, stderr=log, env=environment)
        wait_for(lambda: len(epochs_in(run)) >= 1, process, "one epoch")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert (tmp_path / "log").read_text().endswith("drgn-ray: interrupted; the same command goes on where it was.\n")
    place = json.loads(run.mlflow_file.read_text())
    assert MlflowClient(place["tracking_uri"]).get_run(place["run_id"]).info.status == "KILLED"
