"""Ray Train: two workers learn what one learns, and the loop is the one of a single process."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest

from drgn_ray.config import DataConfig, ModelConfig, ResourcesConfig, RunConfig, TrainingConfig
from drgn_ray.distributed.train import train
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.training.report import LogReporter
from drgn_ray.training.run_directory import RunDirectory


def epoch_losses(
    store_path: Path, run_path: Path, num_workers: int, lr: float = 2e-3, back_offs: int = 0
) -> list[float]:
    config = RunConfig(
        particles=str(store_path),
        data=DataConfig(val_fraction=0.2),
        model=ModelConfig(zdim=2, enc_dim=32, enc_layers=1, dec_dim=32, dec_layers=1, pe_dim=6),
        training=TrainingConfig(num_epochs=4, batch_size=16, precision="fp32", lr=lr, back_offs=back_offs),
        resources=ResourcesConfig(num_workers=num_workers, cpus_per_worker=1),
    )
    run = RunDirectory(run_path)
    run.begin(config)
    train(config, run, partial(LogReporter, run, 4))
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [line["train_epoch/loss"] for line in lines if line["kind"] == "epoch"]


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
