"""Curved subspaces: orthonormal polynomials, moments of them, volumes that bend."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from drgn_ray.models.curved import CurvedSubspace, bending_terms, bent, hermite
from drgn_ray.models.em import Posterior, Subspace
from drgn_ray.physics.observation import Observer

SIZE = 16
OBSERVE = partial(Observer, box_size=SIZE, data_sign=1, hartley_std=1.0, window=False, ctf=False)


def test_the_polynomials_are_uncorrelated_and_of_variance_1_under_the_prior() -> None:
    degrees = torch.tensor([[1, 0], [0, 1], [2, 0], [1, 1], [3, 0], [4, 0], [2, 2]])
    z = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = hermite(z, degrees)
    assert torch.equal(values[:, 0], torch.ones(len(z), dtype=torch.float64))
    assert torch.allclose(values.T @ values / len(z), torch.eye(8, dtype=torch.float64), atol=0.06)


def test_the_polynomials_are_hermites() -> None:
    z = torch.tensor([[0.5], [-2.0]])
    degrees = torch.tensor([[2], [3]])
    expected = torch.stack([torch.ones(2), (z[:, 0] ** 2 - 1) / 2**0.5, (z[:, 0] ** 3 - 3 * z[:, 0]) / 6**0.5], dim=1)
    assert torch.allclose(hermite(z, degrees), expected)


def test_moments_of_linear_terms_are_those_of_the_posterior() -> None:
    """Averaged over many images with one posterior, since an image's own are of a few samples."""
    mean, root = torch.tensor([1.0, 0.5, -1.0]), torch.tensor([[1e-2, 0, 0], [0, 0.5, 0], [0, 0.2, 0.3]])
    count = 20_000
    found = Posterior(mean.expand(count, 3), (root @ root.T).expand(count, 3, 3), torch.zeros(count))
    made = bent(found, torch.eye(2, dtype=torch.int64), torch.Generator().manual_seed(0))
    second = made.covariance + made.mean[:, :, None] * made.mean[:, None, :]
    assert torch.allclose(made.mean.mean(dim=0), mean, atol=1e-2)
    assert torch.allclose(second.mean(dim=0), root @ root.T + torch.outer(mean, mean), atol=2e-2)


def test_terms_begin_with_each_dimension_and_go_on_with_the_strongest() -> None:
    volumes = torch.ones(3, SIZE, SIZE, SIZE) * torch.tensor([1.0, 0.5, 0.01])[:, None, None, None]
    degrees = bending_terms(volumes).tolist()
    assert degrees[:4] == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [2, 0, 0]]
    assert [1, 1, 0] in degrees
    assert all(term[2] == 0 for term in degrees[3:]), "hardly anything happens along the third"


def test_a_straight_start_decodes_what_the_linear_subspace_decodes_and_a_bend_changes_it() -> None:
    volumes = torch.randn(3, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    model = CurvedSubspace(observe=OBSERVE)
    model.start_from(Subspace(volumes, torch.ones(SIZE // 2 + 1), 1e-4), 5)
    z = torch.tensor([0.3, -1.2])
    assert torch.allclose(model.decode_volume(z), volumes[0] + 0.3 * volumes[1] - 1.2 * volumes[2], atol=1e-5)
    straight, bend = model.decode_volume(z), torch.randn(SIZE, SIZE, SIZE)
    model.bend(torch.tensor([[1, 0], [0, 1], [0, 2]]), torch.cat([volumes, bend[None]]))
    added = model.decode_volume(z) - straight
    assert torch.allclose(added, (1.44 - 1) / 2**0.5 * bend, atol=1e-4)


@pytest.mark.parametrize("num_components", [0, 2])
def test_a_model_comes_back_from_its_state_whatever_its_dimension(num_components: int) -> None:
    volumes = torch.randn(1 + num_components, SIZE, SIZE, SIZE)
    model, other = CurvedSubspace(observe=OBSERVE), CurvedSubspace(observe=OBSERVE)
    model.start_from(Subspace(volumes, torch.ones(SIZE // 2 + 1), 1e-4), 5)
    other.load_state_dict(model.state_dict())
    assert (other.zdim, int(other.radius)) == (num_components, 5)
    z = torch.randn(num_components)
    assert torch.equal(other.decode_volume(z), model.decode_volume(z))
