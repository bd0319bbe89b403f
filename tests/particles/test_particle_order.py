"""The order of particles is a function of seed and epoch, and leaves nobody out."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgn_ray.particles.order import CHUNKS_A_BLOCK, Block, ParticleOrder, default_slices

ORDER = ParticleOrder(num_particles=10_000, chunk_size=32, seed=3, val_fraction=0.1, slices_per_epoch=4)
ORDERS = st.builds(
    ParticleOrder,
    num_particles=st.integers(1, 5000),
    chunk_size=st.integers(1, 64),
    seed=st.integers(0, 2**32),
    val_fraction=st.floats(0, 0.9),
    slices_per_epoch=st.integers(1, 7),
)
HALVED = ORDERS.filter(lambda order: order.num_chunks > 3)


def chunks_of(blocks: list[Block]) -> list[int]:
    return list(chain.from_iterable(block.chunks for block in blocks))


def epoch_blocks(order: ParticleOrder, epoch: int) -> list[list[Block]]:
    """Blocks of each slice of an epoch."""
    first = epoch * order.slices_per_epoch
    return [order.slice_blocks(first + part) for part in range(order.slices_per_epoch)]


@given(ORDERS, st.integers(0, 100))
def test_an_epoch_has_every_training_chunk_exactly_once(order: ParticleOrder, epoch: int) -> None:
    seen = list(chain.from_iterable(map(chunks_of, epoch_blocks(order, epoch))))
    assert sorted(seen) == order.train_chunks().tolist()


@given(ORDERS)
def test_validation_and_training_share_no_chunk_and_miss_none(order: ParticleOrder) -> None:
    held_out, trained = order.val_chunks().tolist(), order.train_chunks().tolist()
    assert sorted(held_out + trained) == list(range(order.num_chunks))
    assert held_out == sorted(held_out)
    assert trained == sorted(trained)


@given(ORDERS)
def test_there_is_always_something_to_train_on(order: ParticleOrder) -> None:
    assert len(order.train_chunks()) >= 1


@given(ORDERS.filter(lambda order: order.val_fraction > 0 and order.num_chunks > 1))
def test_whoever_asks_for_validation_gets_some(order: ParticleOrder) -> None:
    assert len(order.val_chunks()) >= 1


def test_no_validation_is_held_out_where_none_is_asked_for() -> None:
    assert len(replace(ORDER, val_fraction=0.0).val_chunks()) == 0


def test_the_share_held_out_is_what_was_asked_for() -> None:
    assert len(ORDER.val_chunks()) == round(0.1 * ORDER.num_chunks)


@given(ORDERS)
def test_chunks_cover_every_row_once(order: ParticleOrder) -> None:
    rows = chain.from_iterable(range(order.num_particles)[order.rows_of(chunk)] for chunk in range(order.num_chunks))
    assert list(rows) == list(range(order.num_particles))
    assert order.num_rows(np.arange(order.num_chunks)) == order.num_particles


@given(ORDERS, st.integers(0, 20))
def test_slices_of_an_epoch_are_equal_up_to_one_chunk(order: ParticleOrder, epoch: int) -> None:
    sizes = [len(chunks_of(blocks)) for blocks in epoch_blocks(order, epoch)]
    assert max(sizes) - min(sizes) <= 1


@given(ORDERS, st.integers(0, 20))
def test_blocks_are_no_larger_than_a_read_should_be(order: ParticleOrder, slice_index: int) -> None:
    assert all(1 <= len(block.chunks) <= CHUNKS_A_BLOCK for block in order.slice_blocks(slice_index))


@given(ORDERS, st.integers(0, 50))
def test_the_same_seed_and_slice_give_the_same_order(order: ParticleOrder, slice_index: int) -> None:
    again = replace(order)
    for earlier in range(3):
        again.slice_blocks(earlier)
    assert again.slice_blocks(slice_index) == order.slice_blocks(slice_index)


def test_the_same_block_gives_the_same_rows() -> None:
    block = ORDER.slice_blocks(5)[0]
    np.testing.assert_array_equal(block.permutation(512), Block(block.chunks, block.seed).permutation(512))


@given(st.integers(1, 500), st.integers(0, 100))
def test_a_block_permutes_its_rows_and_drops_none(num_rows: int, seed: int) -> None:
    assert sorted(Block((0,), (seed,)).permutation(num_rows)) == list(range(num_rows))


def test_epochs_differ() -> None:
    first, second = ([chunks_of(blocks) for blocks in epoch_blocks(ORDER, epoch)] for epoch in (0, 1))
    assert first != second


def test_seeds_differ_in_the_order_of_the_same_chunks() -> None:
    first, second = (replace(ORDER, seed=seed, val_fraction=0.0) for seed in (3, 4))
    assert chunks_of(first.slice_blocks(0)) != chunks_of(second.slice_blocks(0))


def test_seeds_differ_in_what_is_held_out() -> None:
    assert replace(ORDER, seed=4).val_chunks().tolist() != ORDER.val_chunks().tolist()


def test_chunks_are_not_read_in_the_order_of_the_store() -> None:
    """Neighbours in a store come from the same micrograph; a block that held them would bias every batch."""
    chunks = np.array(chunks_of(ORDER.slice_blocks(0)))
    assert np.mean(np.diff(chunks) == 1) < 0.05


def test_rows_of_different_blocks_and_epochs_are_permuted_differently() -> None:
    blocks = [*ORDER.slice_blocks(0), *ORDER.slice_blocks(ORDER.slices_per_epoch)]
    orders = {tuple(block.permutation(512).tolist()) for block in blocks}
    assert len(orders) == len(blocks)


def test_the_split_does_not_depend_on_how_an_epoch_is_cut() -> None:
    np.testing.assert_array_equal(ORDER.val_chunks(), replace(ORDER, slices_per_epoch=1).val_chunks())


@pytest.mark.parametrize(
    ("num_particles", "slices"), [(1, 1), (300, 1), (700_000, 1), (1_000_000, 2), (10_000_000, 20)]
)
def test_long_epochs_are_cut_into_slices_of_half_a_million(num_particles: int, slices: int) -> None:
    assert default_slices(num_particles) == slices


@given(HALVED, st.integers(0, 20))
def test_halves_share_no_particle_and_miss_none_whatever_the_seeds(order: ParticleOrder, epoch: int) -> None:
    first, second = replace(order, half_set=1), replace(order, half_set=2, seed=order.seed + 1)
    assert sorted([*first.chunks(), *second.chunks()]) == list(range(order.num_chunks))
    assert abs(len(first.chunks()) - len(second.chunks())) <= 1
    for half in (first, second):
        read = list(chain.from_iterable(map(chunks_of, epoch_blocks(half, epoch))))
        assert sorted([*read, *half.val_chunks()]) == half.chunks().tolist()
