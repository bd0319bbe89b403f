"""A linear subspace is fitted to particles, finds what is there, and finds nothing where nothing is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2

from benchmarks.simulated_sets import write_set
from conversions.driver import Options, convert
from conversions.inputs import read_particles
from drgn_ray.config import DataConfig, ModelConfig, ResourcesConfig, RunConfig
from drgn_ray.distributed.embed import embed
from drgn_ray.distributed.linear import _summed, fit_linear
from drgn_ray.distributed.train import train
from drgn_ray.errors import ResourceError
from drgn_ray.models.curved import CurvedSubspace, bending_terms
from drgn_ray.models.em import Subspace
from drgn_ray.particles.backproject import mean_squared_ctf
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.embed import trained_model, trained_zdim
from drgn_ray.training.report import LogReporter
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.training.subspace import Pass
from jobs.cli import main

COUNT, BOX = 1500, 32


def store_of(folder: Path, name: str) -> ParticleStore:
    star = write_set(folder / name, name, COUNT)
    path = str(folder / f"{name}.zarr")
    return convert(read_particles(str(star)), Options(path, BOX, "float16", None, None, 0, "drgn-ray convert"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def composition(folder: Path) -> ParticleStore:
    return store_of(folder, "composition")


def chunks(store: ParticleStore) -> np.ndarray:
    return np.arange(store.num_chunks)


def span(subspace: Subspace) -> torch.Tensor:
    """Orthonormal axes of the space of the components, (voxels, M)."""
    return torch.linalg.qr(subspace.volumes[1:].flatten(1).T.double()).Q


def test_latents_tell_the_states_of_a_composition(composition: ParticleStore, folder: Path) -> None:
    config = RunConfig(
        particles=composition.path,
        model=ModelConfig(model="linear"),
        data=DataConfig(val_fraction=0.1),
        resources=ResourcesConfig(num_workers=0),
    )
    run = RunDirectory(folder / "run")
    run.begin(config)
    train(config, run, lambda: LogReporter(run, 1))
    zdim = trained_zdim(run, config, composition)
    assert 2 <= zdim <= 6, "five subunits come and go"
    latents = embed(run, composition, num_workers=0)
    truth = np.load(folder / "composition" / "labels.npy")
    assert latents.z.shape == (COUNT, zdim)
    centres, label = kmeans2(latents.z, 8, minit="++", rng=0)
    del centres
    most_common = sum(np.bincount(truth[label == cluster]).max() for cluster in np.unique(label))
    assert most_common / COUNT > 0.7, "one state alone is 25%"
    model = trained_model(run, config, composition, torch.device("cpu"))
    z = torch.from_numpy(latents.z[:2]).float()
    difference = model.decode_volume(z[0]) - model.decode_volume(z[1])
    assert torch.allclose(difference, torch.tensordot(z[0] - z[1], model.volumes[1:], dims=1), atol=1e-5)


def test_one_volume_is_all_that_is_found_of_a_homogeneous_set(folder: Path) -> None:
    store = store_of(folder, "homogeneous")
    subspace, _ = fit_linear(store, chunks(store), zdim=4)
    assert subspace.num_components == 0
    assert subspace.volumes.shape == (1, BOX, BOX, BOX)


def test_two_and_four_workers_find_the_subspace_that_one_process_finds(
    composition: ParticleStore, monkeypatch: pytest.MonkeyPatch, ray_here: None
) -> None:
    monkeypatch.setattr("drgn_ray.distributed.linear.IMAGES_A_PART", 300)
    here, radius = fit_linear(composition, chunks(composition), zdim=4)
    for num_workers in (2, 4):
        there, its_radius = fit_linear(composition, chunks(composition), zdim=4, num_workers=num_workers)
        assert (radius, here.num_components) == (its_radius, there.num_components)
        cosines = torch.linalg.svdvals(span(here).T @ span(there))
        assert cosines.min() > 0.999
        assert torch.allclose(here.volumes[0], there.volumes[0], atol=1e-3 * here.volumes[0].abs().max().item())


def test_more_components_than_asked_for_are_never_kept(composition: ParticleStore) -> None:
    subspace, _ = fit_linear(composition, chunks(composition), zdim=1)
    assert subspace.num_components == 1


def test_a_straight_curved_model_is_left_on_a_homogeneous_set(folder: Path) -> None:
    config = RunConfig(
        particles=str(folder / "homogeneous.zarr"),
        model=ModelConfig(model="curved", zdim=4),
        resources=ResourcesConfig(num_workers=0),
    )
    run = RunDirectory(folder / "one_volume")
    run.begin(config)
    train(config, run, lambda: LogReporter(run, 1))
    assert trained_zdim(run, config, ParticleStore(config.particles)) == 0


def test_sums_that_do_not_fit_into_memory_are_refused_before_they_are_made(composition: ParticleStore) -> None:
    work = Pass(None, 5_000, 8, 32, mean_squared_ctf(composition))
    with pytest.raises(
        ResourceError, match=r"^5001 volumes of \d+ px: to fit them takes \d+\.\d GB, and this machine has"
    ):
        _summed(composition, chunks(composition), work, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sums_made_slab_by_slab_are_the_same(composition: ParticleStore, num_workers: int) -> None:
    work = Pass(None, 2, 8, BOX // 2, mean_squared_ctf(composition))
    whole = _summed(composition, chunks(composition), work, num_workers)
    slabs = _summed(composition, chunks(composition), work, num_workers, slab_bytes=whole.moments.nbytes // 4)
    assert slabs.num_images == whole.num_images == COUNT
    for ours, expected in zip(slabs[1:], whole[1:], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_the_preset_bends_the_volumes_of_an_arm_that_turns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, run = store_of(folder, "motion"), RunDirectory(folder / "auto")
    words = ["train", store.path, "-o", str(run.path), "--preset", "auto", "--workers", "0", "--no-analysis"]
    assert main(words) == 0
    assert re.search(
        r"bent by 6 terms tell 320 images .* nats better than straight ones: they are bent", capsys.readouterr().out
    )
    model = trained_model(run, run.config(), store, torch.device("cpu"))
    assert isinstance(model, CurvedSubspace)
    assert len(model.curved_volumes) == 1 + model.zdim + 6
    z = torch.randn(model.zdim)
    ends = model.decode_volume(z) + model.decode_volume(-z)
    assert (ends / 2 - model.decode_volume(torch.zeros(model.zdim))).norm() > 0.01 * ends.norm() / 2, "it is straight"


def test_leading_sums_are_those_of_fewer_volumes(composition: ParticleStore) -> None:
    of_ctf = mean_squared_ctf(composition)
    subspace, radius = fit_linear(composition, chunks(composition), zdim=3)
    degrees = bending_terms(subspace.volumes[1:])
    linear = degrees[: subspace.num_components]
    bent, straight = (
        _summed(
            composition,
            chunks(composition)[:2],
            Pass(subspace, subspace.num_components, radius, BOX // 2, of_ctf, everything=True, degrees=some),
            0,
        )
        for some in (degrees, linear)
    )
    kept = bent.leading(1 + len(linear))
    for mine, its in zip(kept[1:], straight[1:], strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-4 * np.abs(its).max())
