"""A training shrinks and grows with its cluster, and its loss curve goes on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from machines import machines
from servers import WAIT_SECONDS
from trainings import LONG, epochs_in, last_loss, started, train_command, wait_for

from drgn_ray.training.run_directory import RunDirectory


@LONG
def test_a_training_shrinks_and_grows_with_the_cluster(store_path: Path, tmp_path: Path) -> None:
    run, log = RunDirectory(tmp_path / "run"), tmp_path / "log"
    command = [*train_command(store_path, run, num_workers=1), "--max-workers", "2"]

    def await_log(text: str, count: int) -> None:
        wait_for(lambda: log.read_text().count(text) >= count, lambda: driver.poll() is None, text, log.read_text)

    with machines() as both:
        environment = both.environment | {"RAY_ADDRESS": both.address, "MLFLOW_TRACKING_URI": ""}
        with started(command, log, environment) as driver:
            await_log("2 workers, each with 8 images of a batch", 1)
            await_log("done  loss", 2)
            both.second.kill()
            await_log("1 worker, each with 16 images of a batch", 1)
            both.second.start()
            await_log("2 workers, each with 8 images of a batch", 2)
            driver.terminate()
            assert driver.wait(WAIT_SECONDS) == 130
        num_epochs = len(epochs_in(run)) + 10
        with started([*command, "-n", str(num_epochs)], log, environment) as driver:
            assert driver.wait(WAIT_SECONDS) == 0, log.read_text()[-3000:]
    assert "Traceback" not in log.read_text()
    assert epochs_in(run) == list(range(1, num_epochs + 1))
    alone = RunDirectory(tmp_path / "alone")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    subprocess.run(train_command(store_path, alone, 0, num_epochs), env=environment, check=True)
    assert last_loss(run) == pytest.approx(last_loss(alone), rel=0.03)
