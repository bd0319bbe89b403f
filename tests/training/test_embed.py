"""Every particle gets its latent, in source order, whatever training dropped."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drgn_ray.config import ModelConfig, ResourcesConfig, RunConfig, TrainingConfig
from drgn_ray.distributed.embed import embed
from drgn_ray.distributed.train import train
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.embed import Latents, embed_chunks, in_source_order, latents_of, load_latents
from drgn_ray.training.report import LogReporter
from drgn_ray.training.run_directory import RunDirectory


@pytest.fixture(scope="module")
def trained(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    config = RunConfig(
        particles=str(store_path),
        model=ModelConfig(zdim=3, enc_dim=16, enc_layers=1, dec_dim=16, dec_layers=1, pe_dim=4),
        training=TrainingConfig(num_epochs=1, precision="fp32"),
        resources=ResourcesConfig(num_workers=0),
    )
    run = RunDirectory(tmp_path_factory.mktemp("run") / "run")
    run.begin(config)
    train(config, run, partial(LogReporter, run, 1))
    return run


def test_every_particle_has_one_latent_in_source_order(trained: RunDirectory, store_path: Path) -> None:
    latents = embed(trained, ParticleStore(store_path), num_workers=0)
    assert latents.z.shape == latents.z_logvar.shape == (300, 3)
    assert np.array_equal(latents.source_row, np.arange(300))
    assert np.isfinite(latents.z).all()


def test_ranges_of_chunks_put_together_are_the_whole(trained: RunDirectory, store_path: Path) -> None:
    whole = embed(trained, ParticleStore(store_path), num_workers=0)
    parts = [embed_chunks(str(trained.path), str(store_path), *bounds) for bounds in ((3, 5), (0, 3))]
    assert np.allclose(in_source_order(parts).z, whole.z, atol=1e-5)


def test_npz_and_parquet_say_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    latents = Latents(rng.normal(size=(5, 2)), rng.normal(size=(5, 2)), np.array([1, 4, 5, 8, 9]), 7)
    latents.save(tmp_path / "latents.npz")
    again, table = load_latents(tmp_path / "latents.npz"), pd.read_parquet(tmp_path / "latents.parquet")
    assert np.array_equal(again.z, latents.z)
    assert np.array_equal(table[["z0", "z1"]].to_numpy(), latents.z)
    assert table["source_row"].tolist() == [1, 4, 5, 8, 9]


def test_particles_are_found_by_source_row_and_strangers_refused() -> None:
    latents = Latents(np.arange(4.0)[:, None], np.zeros((4, 1)), np.array([2, 3, 7, 9]), 7)
    assert latents.of(np.array([9, 2])).tolist() == [[3.0], [0.0]]
    with pytest.raises(ConfigError, match="particle 5: it is not among"):
        latents.of(np.array([2, 5]))


def test_latents_of_an_older_checkpoint_are_refused(store_path: Path, tmp_path: Path) -> None:
    run, store = RunDirectory(tmp_path / "run"), ParticleStore(store_path)
    config = RunConfig(
        particles=str(store_path),
        model=ModelConfig(zdim=2, enc_dim=8, dec_dim=8),
        training=TrainingConfig(num_epochs=1),
        resources=ResourcesConfig(num_workers=0),
    )
    for num_epochs in (1, 2):
        longer = config.model_copy(update={"training": TrainingConfig(num_epochs=num_epochs)})
        run.begin(longer)
        train(longer, run, lambda: LogReporter(run, 2))
        if num_epochs == 1:
            embed(run, store, num_workers=0).save(run.latents_file)
            assert len(latents_of(run).z) == len(store)
    with pytest.raises(RunError, match=r"of a checkpoint after [\d,]+ images, and the newest is after [\d,]+; type"):
        latents_of(run)
