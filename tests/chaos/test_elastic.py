"""A training shrinks and grows with its cluster, and its loss curve goes on."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from machines import machines
from test_chaos import epochs_in, last_loss, train_command

from drgn_ray.training.run_directory import RunDirectory

NUM_EPOCHS = 30
WAIT_SECONDS = 300


@pytest.mark.skipif("DRGN_RAY_LONG" not in os.environ, reason="it takes minutes; DRGN_RAY_LONG=1 runs it")
def test_a_training_shrinks_and_grows_with_the_cluster(store_path: Path, tmp_path: Path) -> None:
    run, log = RunDirectory(tmp_path / "run"), tmp_path / "log"
    command = [*train_command(store_path, run.path, seed=0, num_workers=1, num_epochs=NUM_EPOCHS), "--max-workers", "2"]

    def await_log(text: str, count: int) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while log.read_text().count(text) < count:
            assert driver.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)

    with machines() as both, log.open("w") as written:
        environment = both.environment | {"RAY_ADDRESS": both.address, "MLFLOW_TRACKING_URI": ""}
        driver = subprocess.Popen(command, stdout=written, stderr=written, env=environment)
        try:
            await_log("2 workers, each with 8 images of a batch", 1)
            await_log("done  loss", 2)
            both.second.kill()
            await_log("1 worker, each with 16 images of a batch", 1)
            both.second.start()
            await_log("2 workers, each with 8 images of a batch", 2)
            assert driver.wait(600) == 0, log.read_text()[-3000:]
        finally:
            driver.kill()
    assert "Traceback" not in log.read_text()
    assert epochs_in(run) == list(range(1, NUM_EPOCHS + 1))
    alone = RunDirectory(tmp_path / "alone")
    subprocess.run(train_command(store_path, alone.path, seed=0, num_workers=0, num_epochs=NUM_EPOCHS), check=True)
    assert last_loss(run) == pytest.approx(last_loss(alone), rel=0.01)
