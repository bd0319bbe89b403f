"""Runs that tests of several commands look at."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from drgn_ray.config import ModelConfig, ResourcesConfig, RunConfig, TrainingConfig
from drgn_ray.distributed.embed import embed
from drgn_ray.distributed.train import train
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.report import LogReporter
from drgn_ray.training.run_directory import RunDirectory


def train_tiny(store_path: Path, run: RunDirectory, seed: int = 0) -> None:
    """Train a network that learns next to nothing, and embed its particles."""
    config = RunConfig(
        particles=str(store_path),
        model=ModelConfig(zdim=2, enc_dim=16, enc_layers=1, dec_dim=16, dec_layers=1, pe_dim=4),
        training=TrainingConfig(num_epochs=1, precision="fp32", seed=seed),
        resources=ResourcesConfig(num_workers=0),
    )
    run.begin(config)
    train(config, run, partial(LogReporter, run, 1))
    embed(run, ParticleStore(store_path), num_workers=0).save(run.latents_file)
