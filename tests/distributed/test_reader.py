"""Ray Data reads what the order says: the slices one after the other, every row once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ray.data.context import DataContext

from drgn_ray.distributed.reader import SLICE_COLUMN, slice_dataset, stream_batches
from drgn_ray.particles.loader import ahead, stream_slice
from drgn_ray.particles.order import ParticleOrder
from drgn_ray.particles.store import ParticleStore


def order_of(store: ParticleStore) -> ParticleOrder:
    return ParticleOrder(len(store), store.chunk_size, seed=3, val_fraction=0.2, slices_per_epoch=2)


def test_each_execution_is_the_next_slice_with_the_rows_of_the_plain_loader(store_path: Path, ray_here: None) -> None:
    store = ParticleStore(store_path)
    order = order_of(store)
    dataset = slice_dataset(store, order, first_slice=1)
    for slice_index in (1, 2, 3):
        rows = np.concatenate([batch["source_row"] for batch in dataset.iter_batches(batch_size=32)])
        plain = np.concatenate([batch["source_row"].numpy() for batch in stream_slice(store, order, slice_index, 32)])
        assert np.array_equal(np.sort(rows), np.sort(plain))


def test_rows_carry_their_own_images_and_slice(store_path: Path, ray_here: None) -> None:
    store = ParticleStore(store_path)
    for batch in slice_dataset(store, order_of(store), first_slice=5).iter_batches(batch_size=64):
        assert (batch[SLICE_COLUMN] == 5).all()
        for row, image in zip(batch["source_row"], batch["images"], strict=True):
            assert np.array_equal(image, store.read_images(slice(row, row + 1))[0])


def test_a_worker_that_gets_another_slice_than_it_asked_for_stops(store_path: Path, ray_here: None) -> None:
    store = ParticleStore(store_path)
    shard = slice_dataset(store, order_of(store), first_slice=0).iterator()
    with pytest.raises(AssertionError, match="gave slice"):
        list(stream_batches(shard, slice_index=1, batch_size=16))


def test_a_thread_may_take_the_batches_ahead(store_path: Path, ray_here: None) -> None:
    store = ParticleStore(store_path)
    order = order_of(store)
    shard = slice_dataset(store, order, first_slice=0).iterator()
    for slice_index in (0, 1):
        plain = np.concatenate([batch["source_row"].numpy() for batch in stream_slice(store, order, slice_index, 16)])
        batches = list(ahead(stream_batches(shard, slice_index, batch_size=16)))
        assert [len(batch["images"]) for batch in batches[:-1]] == [16] * (len(batches) - 1)
        rows = np.concatenate([batch["source_row"].numpy() for batch in batches])
        assert np.array_equal(np.sort(rows), np.sort(plain))


def test_ray_still_counts_executions_as_the_source_needs_it() -> None:
    assert DataContext()._execution_idx == 0
