"""Agreement of runs whose latents and volumes are known to agree, in part or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from drgn_ray.analysis.run_agreement import (
    ANOTHER,
    DIFFERENCES,
    SAME,
    LatentAgreement,
    VolumeAgreement,
    latent_agreement,
    latent_view,
    one_image_a_particle,
    volume_agreement,
)

COUNT, SIZE = 400, 24


def agreement(first: Float[np.ndarray, "N Z"], second: Float[np.ndarray, "N Y"]) -> LatentAgreement:
    return latent_agreement(latent_view(first), latent_view(second))


def latents(seed: int, zdim: int = 4) -> Float[np.ndarray, "N Z"]:
    return np.random.default_rng(seed).normal(size=(COUNT, zdim)).astype(np.float32)


def test_latents_that_are_a_linear_map_of_others_agree_in_every_dimension() -> None:
    z = latents(0)
    found = agreement(z, z @ np.random.default_rng(1).normal(size=(4, 4)) + 3)
    assert found.canonical == pytest.approx(np.ones(4), abs=1e-5)
    assert (found.second_from_first, found.first_from_second) == pytest.approx((1, 1), abs=1e-5)
    assert found.count_above(0.9) == 4


def test_turned_latents_have_the_same_neighbours_and_clusters() -> None:
    z = latents(0)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    assert agreement(z, z @ turn).neighbors > 0.99
    groups = 20 * np.eye(10)[np.arange(COUNT) % 10, :4] + z
    assert agreement(groups, groups @ turn).rand_index == pytest.approx(1)


def test_latents_that_know_nothing_of_each_other_are_as_permuted_ones() -> None:
    found = agreement(latents(0), latents(1, zdim=3))
    assert len(found.canonical) == 3
    assert found.count_above(0) == 0
    assert max(found.second_from_first, found.first_from_second) < 0.02
    assert found.neighbors == pytest.approx(found.neighbors_by_chance, abs=0.01)
    assert abs(found.rand_index) < 0.02


def test_two_shared_dimensions_of_four_are_counted() -> None:
    z, other = latents(0), latents(1)
    found = agreement(z, np.column_stack([z[:, :2], other[:, :2]]) @ np.random.default_rng(2).normal(size=(4, 4)))
    assert found.count_above(0) == found.count_above(0.9) == 2
    assert found.first_from_second == pytest.approx(0.5, abs=0.1)


def test_a_dimension_that_is_not_used_does_not_agree() -> None:
    z = latents(0)
    assert len(agreement(z, np.column_stack([z[:, :2], np.ones(COUNT), np.zeros(COUNT)])).canonical) == 2


def test_of_a_tilt_series_one_image_is_compared() -> None:
    columns = {"particle": np.array([7, 3, 3, 7, 3, 5]), "source_row": np.array([0, 1, 2, 3, 4, 5])}
    assert one_image_a_particle(columns).tolist() == [0, 1, 5]


def states(order: list[int], noise: float = 0, scale: float = 1) -> list[Float[np.ndarray, "D D D"]]:
    """A body that stands still and a part at several places."""
    volumes, rng = [], np.random.default_rng(5)
    for x in np.array([14, 15, 16, 17, 18, 19])[order]:
        volume = np.zeros((SIZE,) * 3)
        volume[12, 12, 9], volume[12, 14, x] = 100, 30
        volumes.append(scale * gaussian_filter(volume, 1.5) + noise * rng.normal(size=volume.shape))
    return volumes


def compared(second: list[Float[np.ndarray, "D D D"]]) -> VolumeAgreement:
    return volume_agreement(states([0, 1, 2, 3, 4, 5]), second, np.ones((SIZE,) * 3))


def test_volumes_of_the_same_states_agree_on_any_grey_scale_and_those_of_others_less() -> None:
    found = compared(states([0, 1, 2, 3, 4, 5], scale=7))
    assert found.curves[SAME] == pytest.approx(np.ones(SIZE // 2 + 1))
    assert found.curves[DIFFERENCES][1:] == pytest.approx(np.ones(SIZE // 2))
    assert found.curves[ANOTHER][1:9].mean() < 0.95
    assert found.difference_correlation == pytest.approx(1)
    assert 0 < found.permuted < 0.9


def test_changes_that_have_nothing_in_common_are_within_what_permuted_particles_reach() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 8, SIZE, SIZE, SIZE))
    found = volume_agreement([*first], [*second], np.ones((SIZE,) * 3))
    assert abs(found.difference_correlation) < 0.05
    assert found.difference_correlation <= found.permuted + 0.02
    assert found.permuted < 0.1


def test_the_same_molecule_with_other_changes_agrees_as_much_as_another_particle_does() -> None:
    found = compared(states([3, 4, 5, 0, 1, 2]))
    assert found.curves[SAME][1:5].min() > 0.8, "mostly it is the body"
    assert found.curves[ANOTHER] == pytest.approx(np.ones(SIZE // 2 + 1)), "in which order they really are"
    assert found.difference_correlation < 0


def test_the_correlation_of_differences_is_that_of_all_voxels() -> None:
    second = states([0, 1, 2, 3, 4, 5], noise=0.05)
    first = states([0, 1, 2, 3, 4, 5])
    expected = np.corrcoef((first - np.mean(first, axis=0)).ravel(), (second - np.mean(second, axis=0)).ravel())[0, 1]
    assert compared(second).difference_correlation == pytest.approx(expected)


def test_a_run_whose_volume_never_changes_agrees_with_no_change() -> None:
    assert compared([np.mean(states([0, 5]), axis=0)] * 6).difference_correlation == pytest.approx(0, abs=1e-6)
