"""Population-based training on a real Ray: a trial that is behind goes on from the weights of a better one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from small_sweeps import BASE

from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.sweep_directory import SweepDirectory
from jobs.cli import main

SWEEP = f"""
space:
  training.lr: {{choice: [3.0e-3, 1.0e-3, 1.0e-9]}}
search: grid
scheduler: pbt
{BASE}  model.zdim: 1
  training.num_epochs: 3
  training.warmup_epochs: 0
  resources.keep_checkpoints: 3
  resources.cpus_per_worker: 2
"""


def test_a_trial_that_is_behind_goes_on_from_the_weights_of_a_better_one(
    store_path: Path, tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Three trials take turns on two slots; the one that cannot learn has a model that did."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    words = ["tune", str(store_path), str(tmp_path / "sweep.yaml"), "-o", str(tmp_path / "sweeps" / "a")]
    assert main(words) == 0
    directory = SweepDirectory(tmp_path / "sweeps" / "a")
    client = MlflowClient(f"sqlite:///{tmp_path / 'sweeps' / 'mlflow.db'}")
    runs = {
        run.info.run_name: run.data
        for run in client.search_runs([e.experiment_id for e in client.search_experiments()])
    }
    donor, epoch = runs["trial_3"].tags["drgn_ray.exploited"].split(" after epoch ")
    assert donor in ("trial_1", "trial_2")
    assert load_position(directory.run("trial_3").checkpoints).history[-1]["epoch"] == 3
    bounds = {name: directory.bounds(name) for name in ("trial_3", donor)}
    assert np.array_equal(bounds["trial_3"][int(epoch)], bounds[donor][int(epoch)])  # the same weights
    for trial in directory.trials():
        assert directory.run(trial.name).config() == trial.config
        assert trial.config.training.lr == trial.chosen["training.lr"]
    assert runs["trial_3"].params["lr"] == "1e-09"  # as it began
