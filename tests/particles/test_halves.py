"""Which half map an image belongs to."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from drgn_ray.particles.backproject import half_maps


def columns(half_set: list[int], particle: list[int] | None = None, **others: list[int]) -> dict[str, np.ndarray]:
    count = len(half_set)
    made = {"half_set": half_set, "particle": particle or list(range(count)), "source_row": list(range(count))}
    return {name: np.array(values) for name, values in (made | others).items()}


def test_half_sets_of_the_source_are_kept() -> None:
    assert half_maps(columns([2, 2, 1, 2, 1])).tolist() == [1, 1, 0, 1, 0]


def test_particles_take_turns_where_one_has_no_half_set() -> None:
    assert half_maps(columns([1, 2, 0, 1, 1])).tolist() == [0, 1, 0, 1, 0]
    assert half_maps(columns([0] * 4)).tolist() == [0, 1, 0, 1]


def test_particles_take_turns_where_all_are_in_the_same_half_set() -> None:
    """A table of one half has no second half map otherwise."""
    assert half_maps(columns([1] * 4)).tolist() == [0, 1, 0, 1]


def test_the_tilts_of_a_particle_stay_together() -> None:
    particle = [4, 4, 7, 7, 7, 9, 4]
    assert half_maps(columns([0] * 7, particle)).tolist() == [0, 0, 1, 1, 1, 0, 0]


@given(st.lists(st.integers(0, 12), min_size=2, max_size=60))
def test_halves_hold_as_many_particles_but_for_one_and_no_particle_is_in_both(particle: list[int]) -> None:
    half = half_maps(columns([0] * len(particle), particle))
    sides = [{number for number, mine in zip(particle, half, strict=True) if mine == side} for side in (0, 1)]
    assert not sides[0] & sides[1]
    assert len(sides[0]) - len(sides[1]) in (0, 1)


def test_cryodrgn_takes_every_other_image_of_the_table_whatever_its_particle_or_half_set() -> None:
    given_columns = columns([1, 1, 1, 2, 2], [0, 0, 0, 1, 1])
    assert half_maps(given_columns, like_cryodrgn=True).tolist() == [0, 1, 0, 1, 0]


def test_cryodrgn_counts_in_the_order_of_the_table_and_only_what_is_used() -> None:
    shuffled = columns([0] * 5, source_row=[8, 2, 5, 1, 9])
    assert half_maps(shuffled, like_cryodrgn=True).tolist() == [1, 1, 0, 0, 0]
    used = np.array([True, False, True, True, True])
    half = half_maps(shuffled, used=used, like_cryodrgn=True)
    assert half[used].tolist() == [0, 1, 0, 1]
