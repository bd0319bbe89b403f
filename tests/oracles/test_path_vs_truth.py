"""The way from closed to open adenylate kinase, along particles, goes through the states that lie between."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from conversions.driver import Options, convert
from conversions.inputs import read_particles
from drgn_ray.config import ModelConfig, ResourcesConfig, RunConfig
from drgn_ray.distributed.embed import embed
from drgn_ray.distributed.train import train
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.volume import resample
from drgn_ray.training.embed import latents_of
from drgn_ray.training.report import LogReporter
from drgn_ray.training.run_directory import RunDirectory
from jobs.cli import main

SIDE, NUM_STATES = 32, 32


@pytest.fixture(scope="module")
def run(reference_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A subspace of volumes, bent along the latents, fitted to the simulated particles at half their size."""
    folder = tmp_path_factory.mktemp("adk")
    store = str(folder / "adk.zarr")
    table = read_particles(str(reference_data / "adk_sim" / "particles.star"))
    convert(table, Options(store, SIDE, "float16", None, False, 0, "drgn-ray convert"))
    model, resources = ModelConfig(model="curved", zdim=6), ResourcesConfig(num_workers=0)
    config = RunConfig(particles=store, model=model, resources=resources)
    run = RunDirectory(folder / "run")
    run.begin(config)
    train(config, run, partial(LogReporter, run, 1))
    embed(run, ParticleStore(store), num_workers=0).save(run.latents_file)
    return run


def typical(z: np.ndarray, state: np.ndarray) -> int:
    """The particle nearest to the mean latent of a state."""
    rows = np.flatnonzero(state)
    return int(rows[((z[rows] - z[rows].mean(axis=0)) ** 2).sum(axis=1).argmin()])


def best_states(folder: Path, truth: Path) -> tuple[list[int], list[float]]:
    """State that each volume of a folder is most like, in the part that moves; and its correlation with that."""
    read = lambda file: resample(mrcfile.read(file).astype(np.float32), SIDE)  # noqa: E731
    moves = read(truth / "mask_variable.mrc") > 0.5
    states = [read(truth / "gt" / f"vol_{state:03d}.mrc")[moves] for state in range(NUM_STATES)]
    files = sorted(folder.glob("vol_*.mrc"))
    correlation = np.array([[np.corrcoef(mrcfile.read(file)[moves], each)[0, 1] for each in states] for file in files])
    return correlation.argmax(axis=1).tolist(), correlation.max(axis=1).tolist()


def test_the_states_along_the_path_follow_one_another(run: RunDirectory, reference_data: Path, tmp_path: Path) -> None:
    truth = reference_data / "adk_sim"
    z, state = latents_of(run).z, np.load(truth / "labels.npy")
    ends = ",".join(str(typical(z, state == each)) for each in (0, NUM_STATES - 1))
    assert main(["decode", str(run.path), "--path", ends, "-n", "12", "-o", str(tmp_path / "way")]) == 0
    assert main(["decode", str(run.path), "--path", ends, "--through", "line", "-o", str(tmp_path / "line")]) == 0
    states, correlation = best_states(tmp_path / "way", truth)
    print("states", states, "correlation", np.round(correlation, 3))
    assert states == sorted(states)
    assert states[0] <= 4
    assert states[-1] >= 25
    assert len(set(states)) >= 8
    assert min(correlation) > 0.9
    straight = min(best_states(tmp_path / "line", truth)[1])
    print("least correlation on a straight way", round(straight, 3))
    assert straight < min(correlation)  # it leaves the particles
