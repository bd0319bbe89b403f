"""Trainings that tests start as commands, and then look at, wait for and disturb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from servers import WAIT_SECONDS, end

from drgn_ray.training.run_directory import RunDirectory

LONG = pytest.mark.skipif("DRGN_RAY_LONG" not in os.environ, reason="it takes minutes; DRGN_RAY_LONG=1 runs it")
NETWORK = "--zdim 2 --enc-dim 32 --enc-layers 1 --dec-dim 256 --dec-layers 3 --val-fraction 0.2 -b 16 --log-seconds 1"
NETWORK += " --lr-schedule constant"
FOR_EVER = 10_000  # epochs: however fast a machine is, what is to happen meanwhile does


def train_command(store: Path, run: RunDirectory, num_workers: int, num_epochs: int = FOR_EVER) -> list[str]:
    """Write the command that trains a network whose epochs take seconds; however long, the first ones are the same."""
    how = f"{NETWORK} -n {num_epochs} --workers {num_workers} --cpus-per-worker 1 --no-analysis"
    return [sys.executable, "-m", "jobs.train", str(store), "-o", str(run.path), *how.split()]


@contextmanager
def started(command: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command that appends what it says to a log, and leave nothing of it."""
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        yield process
    finally:
        end(process)


def processes_below(process: subprocess.Popen[bytes], name: str) -> list[psutil.Process]:
    """Processes that a process started by their actor's name: those that train, say."""
    if process.poll() is not None:
        return []
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # or a zombie by now
            found += [child] if name in " ".join(child.cmdline()) else []
    return found


def epochs_in(run: RunDirectory) -> list[int]:
    """List the epochs that are done, as the run's directory has them; a last line may be half written."""
    if not run.metrics_file.exists():
        return []
    lines = [line for line in run.metrics_file.read_text().splitlines() if line.endswith("}")]
    return [line["epoch"] for line in map(json.loads, lines) if line["kind"] == "epoch"]


def last_loss(run: RunDirectory) -> float:
    """Read the held-out loss of the last epoch."""
    lines = [line for line in run.metrics_file.read_text().splitlines() if "val/loss" in line]
    return json.loads(lines[-1])["val/loss"]


def wait_for(
    condition: Callable[[], bool], is_alive: Callable[[], bool], what: str, said: Callable[[], str] = lambda: ""
) -> None:
    """Wait for something, while what should do it is alive."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert is_alive(), f"ended before {what}: {said()[-3000:]}"
        assert time.monotonic() < deadline, f"waited in vain for {what}: {said()[-3000:]}"
        time.sleep(0.05)
