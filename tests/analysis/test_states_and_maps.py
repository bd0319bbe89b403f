"""Sums that make no map, and latents that are of other particles."""

from __future__ import annotations

import numpy as np
import pytest

from drgn_ray.analysis.consensus import make_maps
from drgn_ray.analysis.states import state_near_latent
from drgn_ray.errors import RunError, StoreError
from drgn_ray.training.embed import Latents


def test_a_half_of_blank_images_makes_no_map() -> None:
    sums = np.zeros((2, 19, 19, 10, 3))
    sums[..., 2] = 1  # the weights of images are there, their values are 0
    sums[0, 8:11, 8:11, :3, 0] = 1
    with pytest.raises(StoreError, match="those of a half map are blank"):
        make_maps(sums)


@pytest.fixture
def latents() -> Latents:
    return Latents(np.arange(10.0)[:, None], np.zeros((10, 1)), np.arange(10), 0)


def test_the_nearer_a_particle_the_more_it_counts(latents: Latents) -> None:
    weight = state_near_latent(latents, np.arange(10)[::-1], np.array([2.0]), 3).weight[::-1]
    assert np.flatnonzero(weight).tolist() == [1, 2, 3]
    assert weight[2] == 1
    assert weight[1] == weight[3] == pytest.approx(0.75)


@pytest.mark.parametrize("source_row", [[0, 2, 11], [3, 4, 500]])
def test_latents_of_other_particles_are_refused(latents: Latents, source_row: list[int]) -> None:
    with pytest.raises(RunError, match="it is of other particles than the run's store"):
        state_near_latent(latents, np.array(source_row), np.array([2.0]), 3)
