"""A sweep goes on when one of its machines is lost for good: its trials go on elsewhere, from where they were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
from machines import machines
from mlflow import MlflowClient
from servers import MlflowServer
from small_sweeps import SLOWER_BASE
from trainings import LONG, epochs_in, wait_for

from drgn_ray.training.sweep_directory import SweepDirectory

NUM_TRIALS, NUM_EPOCHS = 6, 15
SWEEP = f"""
space:
  model.zdim: {{choice: [1, 2]}}
  training.lr: {{choice: [3.0e-3, 1.0e-3, 3.0e-4]}}
{SLOWER_BASE}  training.num_epochs: {NUM_EPOCHS}
search: grid
scheduler: none
"""


@LONG
def test_a_sweep_goes_on_without_a_machine_that_was_lost(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    sweep, log = SweepDirectory(tmp_path / "sweeps" / "a"), tmp_path / "log"
    command = [sys.executable, "-m", "jobs.tune", str(store_path), str(tmp_path / "sweep.yaml"), "-o", str(sweep.path)]
    names = [f"trial_{number}" for number in range(1, NUM_TRIALS + 1)]
    with machines() as both, log.open("w") as written:
        (tmp_path / "mlflow").mkdir()
        mlflow = MlflowServer(tmp_path / "mlflow", host=both.host)
        environment = both.environment | {"RAY_ADDRESS": both.address, "MLFLOW_TRACKING_URI": mlflow.uri}
        driver = subprocess.Popen([*command, "--no-analysis"], stdout=written, stderr=written, env=environment)
        try:
            wait_for(
                lambda: sum(len(sweep.bounds(name)) >= 3 for name in names) >= 4,  # one on each of the CPUs
                lambda: driver.poll() is None,
                "four trials at work",
                log.read_text,
            )
            both.second.kill()
            begun = [name for name in names if sweep.bounds(name)]
            before = {name: json.loads(sweep.run(name).mlflow_file.read_text()) for name in begun}
            assert driver.wait(900) == 0, log.read_text()[-3000:]
            client = MlflowClient(mlflow.uri)
            for name in names:
                run = sweep.run(name)
                place = json.loads(run.mlflow_file.read_text())
                assert before.get(name, place) == place
                assert epochs_in(run) == list(sweep.bounds(name)) == list(range(1, NUM_EPOCHS + 1))
                assert client.get_run(place["run_id"]).info.status == "FINISHED"
        finally:
            driver.kill()
            mlflow.stop()
    assert set(pd.read_csv(sweep.path / "leaderboard.csv")["state"]) == {"finished"}
    assert "Traceback" not in log.read_text()
