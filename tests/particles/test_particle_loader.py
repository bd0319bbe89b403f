"""Batches hold every row once, in order, each with its own image."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgn_ray.errors import StoreError
from drgn_ray.particles.loader import read_block, rebatch, stream_rows, stream_slice
from drgn_ray.particles.order import ParticleOrder
from drgn_ray.particles.store import ParticleStore


def numbered_parts(lengths: list[int]) -> list[dict[str, np.ndarray]]:
    """Parts of a count 0, 1, 2, ... in two columns."""
    ends = np.cumsum([0, *lengths])
    rows = [np.arange(start, end) for start, end in zip(ends, ends[1:], strict=False)]
    return [{"images": np.repeat(part[:, None], 3, 1), "source_row": part} for part in rows]


@pytest.fixture
def order(numbered: ParticleStore) -> ParticleOrder:
    return ParticleOrder(len(numbered), numbered.chunk_size, seed=5, val_fraction=0.2, slices_per_epoch=3)


def rows_of(order: ParticleOrder, chunks: np.ndarray) -> list[int]:
    return sorted(chain.from_iterable(range(order.num_particles)[order.rows_of(chunk)] for chunk in chunks))


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 30))
def test_rebatching_drops_nothing_and_keeps_the_order(lengths: list[int], batch_size: int) -> None:
    batches = list(rebatch(numbered_parts(lengths), batch_size))
    seen = [row for batch in batches for row in batch["source_row"].tolist()]
    assert seen == list(range(sum(lengths)))


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 30))
def test_only_the_last_batch_is_short(lengths: list[int], batch_size: int) -> None:
    sizes = [len(batch["images"]) for batch in rebatch(numbered_parts(lengths), batch_size)]
    assert all(size == batch_size for size in sizes[:-1])
    assert all(1 <= size <= batch_size for size in sizes[-1:])


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 30))
def test_columns_stay_together(lengths: list[int], batch_size: int) -> None:
    for batch in rebatch(numbered_parts(lengths), batch_size):
        assert (batch["images"] == batch["source_row"][:, None]).all()


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_streams_every_training_row_once(numbered: ParticleStore, order: ParticleOrder, epoch: int) -> None:
    slices = range(3 * epoch, 3 * epoch + 3)
    batches = chain.from_iterable(stream_slice(numbered, order, index, 50) for index in slices)
    seen = [row // 2 for batch in batches for row in batch["source_row"].tolist()]
    assert sorted(seen) == rows_of(order, order.train_chunks())


def test_every_row_comes_with_its_own_image_and_columns(numbered: ParticleStore, order: ParticleOrder) -> None:
    for batch in stream_slice(numbered, order, 0, 50):
        row = batch["source_row"] // 2
        assert (batch["images"] == row[:, None, None]).all()
        assert (batch["defocus_u"] == row % 100).all()
        assert (batch["rotation"] == (row % 100)[:, None, None]).all()


def test_a_converted_store_streams_the_source_image_of_every_row(store_path: Path) -> None:
    """300 particles, whose rows are those of their STAR file: images by row, read without any order."""
    store = ParticleStore(store_path)
    order = ParticleOrder(len(store), store.chunk_size, seed=1, val_fraction=0.0, slices_per_epoch=1)
    images = store.read_images(slice(0, 300))
    seen = []
    for batch in stream_slice(store, order, 0, 32):
        np.testing.assert_array_equal(batch["images"].numpy(), images[batch["source_row"].numpy()])
        seen += batch["source_row"].tolist()
    assert sorted(seen) == list(range(300))


def test_batches_follow_the_order(numbered: ParticleStore, order: ParticleOrder) -> None:
    """The stream is the blocks of the slice, one after another, each in its own permutation."""
    expected = []
    for block in order.slice_blocks(1):
        rows = np.concatenate([np.arange(len(numbered))[order.rows_of(chunk)] for chunk in block.chunks])
        expected += rows[block.permutation(len(rows))].tolist()
    seen = [row // 2 for batch in stream_slice(numbered, order, 1, 37) for row in batch["source_row"].tolist()]
    assert seen == expected


def test_a_slice_streams_the_same_again(numbered: ParticleStore, order: ParticleOrder) -> None:
    first, again = (
        [row for batch in stream_slice(numbered, order, 4, 37) for row in batch["source_row"].tolist()]
        for _ in range(2)
    )
    assert first == again


def test_rows_are_not_streamed_in_the_order_of_the_store(numbered: ParticleStore, order: ParticleOrder) -> None:
    rows = np.concatenate([batch["source_row"] for batch in stream_slice(numbered, order, 0, 50)])
    assert np.mean(np.diff(rows) == 2) < 0.05


def test_held_out_chunks_stream_in_the_order_of_the_store(numbered: ParticleStore, order: ParticleOrder) -> None:
    batches = list(stream_rows(numbered, order.val_chunks(), 50))
    seen = [row // 2 for batch in batches for row in batch["source_row"].tolist()]
    assert seen == rows_of(order, order.val_chunks())


def test_a_block_is_read_whole(numbered: ParticleStore, order: ParticleOrder) -> None:
    block = order.slice_blocks(0)[0]
    rows = read_block(numbered, order, block)
    assert sorted(rows["source_row"] // 2) == rows_of(order, np.array(block.chunks))


def test_an_empty_slice_streams_nothing(numbered: ParticleStore) -> None:
    order = ParticleOrder(len(numbered), numbered.chunk_size, seed=5, val_fraction=0.0, slices_per_epoch=40)
    sizes = [sum(len(batch["images"]) for batch in stream_slice(numbered, order, index, 50)) for index in range(40)]
    assert 0 in sizes
    assert sum(sizes) == len(numbered)


def test_a_damaged_store_ends_the_stream_with_its_error(numbered: ParticleStore, order: ParticleOrder) -> None:
    for shard in Path(numbered.path).glob("images/c/*/0/0"):
        content = bytearray(shard.read_bytes())
        content[100] ^= 0xFF
        shard.write_bytes(content)
    with pytest.raises(StoreError, match="are damaged"):
        list(stream_slice(numbered, order, 0, 50))
