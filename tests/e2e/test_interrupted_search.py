"""A search by Optuna whose driver is killed goes on: what was begun ends, and the rest is asked with that in mind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from small_sweeps import BASE

from drgn_ray.training.sweep_directory import SweepDirectory

SWEEP = f"""
space:
  model.zdim: {{choice: [1, 2]}}
  training.lr: {{loguniform: [1.0e-4, 1.0e-2]}}
search: optuna
num_samples: 5
{BASE}  training.num_epochs: 2
"""


def test_a_search_goes_on_after_its_driver_was_killed(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    directory = SweepDirectory(tmp_path / "sweeps" / "a")
    command = [sys.executable, "-m", "jobs.tune", str(store_path), str(tmp_path / "sweep.yaml"), "-o"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen([*command, str(directory.path)], stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 180
        while len(list(directory.path.glob("outcomes/*.json"))) < 2:
            assert first.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        left_over = psutil.Process(first.pid).children(recursive=True)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        psutil.wait_procs(left_over, timeout=30)  # Ray's processes see that it is gone
        before = directory.trials()
        assert 2 < len(before) < 5  # two at random, and others that were asked for
        ended = {file: file.read_bytes() for file in directory.path.glob("trials/*/metrics.jsonl")}
        ended = {file: text for file, text in ended.items() if directory.outcome(file.parent.name)}
        second = subprocess.run([*command, str(directory.path)], stdout=log, stderr=log, env=environment, check=False)
    text = (tmp_path / "log").read_text()
    assert second.returncode == 0, text[-3000:]
    assert f"{5 - len(ended)} of 5 trials to train" in text
    trials = directory.trials()
    assert [trial.name for trial in trials] == [f"trial_{number}" for number in range(1, 6)]
    assert trials[: len(before)] == before
    assert len({json.dumps(trial.chosen) for trial in trials}) == 5
    assert all(directory.outcome(trial.name) is not None for trial in trials)
    assert {file: file.read_bytes() for file in ended} == ended
