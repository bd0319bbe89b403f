"""What an epoch changed is measured on latents and volumes that are known."""

from __future__ import annotations

import pytest
import torch

from drgn_ray.config import ModelConfig
from drgn_ray.models import build_model
from drgn_ray.models.model import Model
from drgn_ray.training.convergence import Convergence

NAMES = {"convergence/volume_change", "convergence/volume_resolution", "convergence/latent_change"}


def network(seed: int) -> Model:
    torch.manual_seed(seed)
    settings = ModelConfig(zdim=2, enc_dim=8, enc_layers=1, dec_dim=8, dec_layers=1, pe_dim=4)
    return build_model(settings, box_size=16, data_sign=-1, hartley_std=1.0, ctf=False).eval()


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


def test_the_first_epoch_is_compared_with_nothing(z: torch.Tensor) -> None:
    assert Convergence(2.0).since_last(network(0), z) == {}


def test_nothing_changed_is_no_change(z: torch.Tensor) -> None:
    convergence = Convergence(2.0)
    convergence.since_last(network(0), z)
    found = convergence.since_last(network(0), z)
    assert found.keys() == NAMES
    assert found["convergence/volume_change"] == found["convergence/latent_change"] == 0
    assert found["convergence/volume_resolution"] == pytest.approx(2 * 2.0)  # Nyquist


def test_latents_that_move_by_a_tenth_of_their_spread(z: torch.Tensor) -> None:
    convergence = Convergence(2.0)
    z = (z - z.mean(dim=0)) / (z - z.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    step = torch.tensor([0.06, 0.08])
    convergence.since_last(network(0), z)
    assert convergence.since_last(network(0), z + step)["convergence/latent_change"] == pytest.approx(0.1, rel=1e-4)


def test_volumes_that_become_twice_as_strong_correlate_as_before(z: torch.Tensor) -> None:
    convergence, model = Convergence(2.0), network(0)
    convergence.since_last(model, z)
    once = model.decode_slices
    model.decode_slices = lambda *given: tuple(2 * each for each in once(*given))  # type: ignore[method-assign]
    found = convergence.since_last(model, z)
    assert found["convergence/volume_change"] == pytest.approx(1, rel=1e-5)
    assert found["convergence/volume_resolution"] == pytest.approx(4.0)


def test_another_network_has_other_volumes(z: torch.Tensor) -> None:
    convergence = Convergence(2.0)
    convergence.since_last(network(0), z)
    found = convergence.since_last(network(1), z)
    assert found["convergence/volume_change"] > 0.5
    assert found["convergence/volume_resolution"] > 8
