"""Ray Train: two workers learn what one learns, and the loop is the one of a single process."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
from ray import cloudpickle
from torch import Tensor
from trainings import LONG

from drgn_ray.config import DataConfig, ModelConfig, ResourcesConfig, RunConfig, TrainingConfig
from drgn_ray.distributed.train import train
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.models.model import Model
from drgn_ray.training.checkpoint import Position
from drgn_ray.training.report import LogReporter, Metrics
from drgn_ray.training.run_directory import RunDirectory


def settings(store_path: Path, num_workers: int, lr: float = 2e-3, back_offs: int = 0) -> RunConfig:
    return RunConfig(
        particles=str(store_path),
        data=DataConfig(val_fraction=0.2),
        model=ModelConfig(zdim=2, enc_dim=32, enc_layers=1, dec_dim=32, dec_layers=1, pe_dim=6),
        training=TrainingConfig(num_epochs=4, batch_size=16, precision="fp32", lr=lr, back_offs=back_offs),
        resources=ResourcesConfig(num_workers=num_workers, cpus_per_worker=1),
    )


def epoch_losses(
    store_path: Path, run_path: Path, num_workers: int, lr: float = 2e-3, back_offs: int = 0
) -> list[float]:
    config = settings(store_path, num_workers, lr, back_offs)
    run = RunDirectory(run_path)
    run.begin(config)
    train(config, run, partial(LogReporter, run, 4))
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [line["train_epoch/loss"] for line in lines if line["kind"] == "epoch"]


class DiesAfterEveryEpoch(LogReporter):
    """Ends its process, as what runs out of memory does, when an epoch's checkpoint is there; or before any is."""

    def __init__(self, run: RunDirectory, num_epochs: int, *, before_any: bool) -> None:
        super().__init__(run, num_epochs)
        self.before_any = before_any

    def begin(self, position: Position) -> None:
        super().begin(position)
        if self.before_any:
            os._exit(1)

    def epoch(self, step: int, metrics: Metrics, model: Model, z: Tensor) -> None:
        super().epoch(step, metrics, model, z)
        if metrics["epoch"] < self.num_epochs:
            os._exit(1)


@LONG
@pytest.mark.parametrize("before_any", [False, True])
def test_workers_may_die_as_often_as_they_like_if_something_is_trained_in_between(
    store_path: Path, tmp_path: Path, ray_here: None, before_any: bool
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find this module
    config, run = settings(store_path, 1), RunDirectory(tmp_path / "run")
    config = config.model_copy(update={"training": config.training.model_copy(update={"num_epochs": 7})})
    run.begin(config)
    if before_any:
        with pytest.raises(RunError, match="workers ended 4 times and nothing was trained in between"):
            train(config, run, partial(DiesAfterEveryEpoch, run, 7, before_any=True))
        return
    train(config, run, partial(DiesAfterEveryEpoch, run, 7, before_any=False))
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == list(range(1, 8))


def test_two_workers_one_and_none_have_the_same_loss_curve(store_path: Path, tmp_path: Path, ray_here: None) -> None:
    alone = epoch_losses(store_path, tmp_path / "alone", 0)
    assert epoch_losses(store_path, tmp_path / "one", 1) == pytest.approx(alone, rel=0.02)
    assert epoch_losses(store_path, tmp_path / "two", 2) == pytest.approx(alone, rel=0.02)


def test_a_batch_that_cannot_be_shared_equally_is_refused(store_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--batch-size 16: it cannot be shared equally by 3 workers"):
        epoch_losses(store_path, tmp_path / "run", 3)


def test_a_diverging_run_is_one_sentence_from_the_workers_too(store_path: Path, tmp_path: Path, ray_here: None) -> None:
    back_offs = int("DRGN_RAY_LONG" in os.environ)
    with pytest.raises(RunError, match="the training diverged within .* images" + back_offs * ", also with 0.5 of"):
        epoch_losses(store_path, tmp_path / "run", 2, lr=1e9, back_offs=back_offs)
