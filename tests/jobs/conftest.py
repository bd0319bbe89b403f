"""A trained run, which tests of several commands look at and leave as it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from drgn_ray.analysis.analyze import analyze
from drgn_ray.config import ModelConfig, ResourcesConfig, RunConfig, TrainingConfig
from drgn_ray.distributed.decode import decode_folders
from drgn_ray.distributed.embed import embed
from drgn_ray.distributed.train import train
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.report import LogReporter
from drgn_ray.training.run_directory import RunDirectory


@pytest.fixture(scope="session")
def trained(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that learned next to nothing, analysed in three clusters."""
    config = RunConfig(
        particles=str(store_path),
        model=ModelConfig(zdim=2, enc_dim=16, enc_layers=1, dec_dim=16, dec_layers=1, pe_dim=4),
        training=TrainingConfig(num_epochs=1, precision="fp32"),
        resources=ResourcesConfig(num_workers=0),
    )
    run = RunDirectory(tmp_path_factory.mktemp("run") / "run")
    run.begin(config)
    train(config, run, partial(LogReporter, run, 1))
    store = ParticleStore(store_path)
    latents = embed(run, store, num_workers=0)
    latents.save(run.latents_file)
    analysis = analyze(latents, load_position(run.checkpoints), run.analysis(1), ksample=3, num_pcs=1)
    decode_folders(run, analysis.volumes)
    return run
