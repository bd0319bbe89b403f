"""Back-projection shared by workers: the same sums however many there are, and one sentence from whichever fails."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drgn_ray.distributed import backproject
from drgn_ray.distributed.backproject import back_project
from drgn_ray.errors import StoreError
from drgn_ray.particles.backproject import Assignment, Method, PartialSums, half_maps
from drgn_ray.particles.store import ParticleStore, StoreWriter


@pytest.fixture
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tasks of the 300 images, a chunk each."""
    monkeypatch.setattr(backproject, "IMAGES_A_TASK", 1)
    run_tasks = backproject.run_tasks

    def counted(tasks: Iterator[partial], **how: Any) -> Iterator[PartialSums]:
        every = list(tasks)
        assert len(every) == 5
        return run_tasks(iter(every), **how)

    monkeypatch.setattr(backproject, "run_tasks", counted)


def assignment(store: ParticleStore, num_volumes: int = 1) -> Assignment:
    """Of the first volume all images count alike, of the others at random."""
    weight = np.random.default_rng(0).random((num_volumes, len(store)), np.float32)
    weight[0] = 1
    return Assignment(weight, half_maps(store.columns))


def sums_of(store: ParticleStore, num_workers: int | None, num_volumes: int = 1, sym: str = "C1") -> np.ndarray:
    return np.stack(list(back_project(store, assignment(store, num_volumes), Method(sym), num_workers)))


def assert_same_sums(some: np.ndarray, others: np.ndarray) -> None:
    for volume, other in zip(some, others, strict=True):
        assert np.abs(volume).max() > 0
        assert np.allclose(volume, other, rtol=0, atol=1e-6 * np.abs(other).max())


@pytest.fixture(scope="module")
def at_once(store_path: Path) -> np.ndarray:
    """Sums of a single task."""
    return sums_of(ParticleStore(store_path), 0)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 4, None])
def test_any_number_of_workers_adds_up_the_same_sums(
    num_workers: int | None, store_path: Path, at_once: np.ndarray, many_tasks: None, ray_here: None
) -> None:
    sums = sums_of(ParticleStore(store_path), num_workers)
    assert sums.shape[:2] == (1, 2)
    assert_same_sums(sums, at_once)


def test_the_symmetry_goes_to_the_workers(store_path: Path, many_tasks: None, ray_here: None) -> None:
    store = ParticleStore(store_path)
    on_workers = sums_of(store, 2, sym="D2")
    assert_same_sums(on_workers, sums_of(store, 0, sym="D2"))
    assert on_workers[..., 2].sum() == pytest.approx(4 * sums_of(store, 0)[..., 2].sum(), rel=0.02)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_volumes_made_in_several_passes_are_those_of_one(
    num_workers: int,
    store_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    many_tasks: None,
    ray_here: None,
) -> None:
    store = ParticleStore(store_path)
    in_one = sums_of(store, 0, num_volumes=3)
    monkeypatch.setattr(backproject, "SUMS_BYTES", 2 * in_one[0].astype(np.float32).nbytes)
    with caplog.at_level("INFO", logger="drgn_ray.progress"):
        in_two = sums_of(store, num_workers, num_volumes=3)
    assert f"of {2 * len(store):,} images" in caplog.text, "every image was read twice"
    assert len(in_two) == 3
    assert_same_sums(in_two, in_one)
    assert not np.allclose(in_one[1], in_one[2], rtol=0, atol=1e-3 * in_one.max())


def test_images_of_weight_zero_are_in_no_sum(store_path: Path) -> None:
    store = ParticleStore(store_path)
    some, none = np.ones((2, 1, len(store)), np.float32)
    some[:, 150:] = 0
    none[:, :150] = 0
    half = half_maps(store.columns)
    parts = [next(back_project(store, Assignment(weight, half), Method(), 0)) for weight in (some, none)]
    assert_same_sums(parts[0] + parts[1], sums_of(store, 0)[0])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("row", [3, 217])
def test_an_image_that_is_no_numbers_is_named_whichever_worker_finds_it(
    row: int, num_workers: int, store_path: Path, tmp_path: Path, many_tasks: None, ray_here: None
) -> None:
    broken = with_broken_image(ParticleStore(store_path), row, tmp_path / "broken.zarr")
    with pytest.raises(StoreError, match=rf"broken\.zarr, row {row}.*: this image holds values that are no numbers"):
        sums_of(broken, num_workers)


def test_an_image_that_is_no_numbers_does_no_harm_where_it_does_not_count(store_path: Path, tmp_path: Path) -> None:
    broken = with_broken_image(ParticleStore(store_path), 217, tmp_path / "broken.zarr")
    chosen = assignment(broken)
    chosen.weight[:, 217] = 0
    assert np.isfinite(next(back_project(broken, chosen, Method(), 0))).all()


def with_broken_image(store: ParticleStore, row: int, path: Path) -> ParticleStore:
    """Write a store again with a pixel that is no number, which `drgn-ray convert` would have refused."""
    images = store.read_images(slice(0, len(store)))
    images[row, 5, 7] = np.nan
    writer = StoreWriter(str(path))
    writer.create(store.info, store.columns, store.tables())
    for shard in range(writer.num_shards):
        rows = writer.shard_rows(shard)
        writer.write_shard(shard, images[rows.start : rows.stop])
    writer.finish()
    return ParticleStore(path)
