"""A search by Optuna whose driver is killed goes on: what was begun ends, and the rest is asked with that in mind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import psutil
from servers import WAIT_SECONDS
from small_sweeps import BASE
from trainings import started, wait_for

from drgn_ray.training.sweep_directory import SweepDirectory

SWEEP = f"""
space:
  model.zdim: {{choice: [1, 2]}}
  training.lr: {{loguniform: [1.0e-4, 1.0e-2]}}
search: optuna
num_samples: 5
{BASE}  training.num_epochs: 2
  resources.cpus_per_worker: {-(-(os.cpu_count() or 1) // 2)}
"""  # two trials at a time at most, however many CPUs there are


def test_a_search_goes_on_after_its_driver_was_killed(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    directory = SweepDirectory(tmp_path / "sweeps" / "a")
    command = [sys.executable, "-m", "jobs.tune", str(store_path), str(tmp_path / "sweep.yaml"), "-o"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    command, log = [*command, str(directory.path)], tmp_path / "log"
    with started(command, log, environment) as first:
        wait_for(
            lambda: len(list(directory.path.glob("outcomes/*.json"))) >= 2 and len(directory.trials()) > 2,
            lambda: first.poll() is None,
            "two outcomes, and a trial that was asked for",
            log.read_text,
        )
        left_over = psutil.Process(first.pid).children(recursive=True)
        first.kill()
        first.wait()
        psutil.wait_procs(left_over, timeout=30)  # Ray's processes see that it is gone
    before = directory.trials()
    assert 2 < len(before) < 5  # two at random, and others that were asked for
    ended = {file: file.read_bytes() for file in directory.path.glob("trials/*/metrics.jsonl")}
    ended = {file: text for file, text in ended.items() if directory.outcome(file.parent.name)}
    with started(command, log, environment) as second:
        assert second.wait(WAIT_SECONDS) == 0, log.read_text()[-3000:]
    text = log.read_text()
    assert f"{5 - len(ended)} of 5 trials to train" in text
    trials = directory.trials()
    assert [trial.name for trial in trials] == [f"trial_{number}" for number in range(1, 6)]
    assert trials[: len(before)] == before
    assert len({json.dumps(trial.chosen) for trial in trials}) == 5
    assert all(directory.outcome(trial.name) is not None for trial in trials)
    assert {file: file.read_bytes() for file in ended} == ended
