"""How long a sweep is said to take."""

from __future__ import annotations

from pathlib import Path

import pytest

from drgn_ray.config import ModelConfig, RunConfig, TrainingConfig
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.probe import probe
from drgn_ray.training.sweep_cost import epoch_seconds, expected_epochs, rungs, together


def test_trials_begin_when_those_before_them_end() -> None:
    assert together([4, 1, 1, 1, 1], slots=2) == 4
    assert together([1, 1, 1, 4], slots=2) == 5
    assert together([2, 2], slots=8) == 2


def test_a_third_of_the_trials_goes_on_at_each_rung() -> None:
    assert rungs(27)[:2] == [3, 9]
    assert expected_epochs(27, 27) == pytest.approx(3 + 6 / 3 + 18 / 9)
    assert expected_epochs(3, 27) == 3  # shorter trials are not compared
    assert expected_epochs(1, 1) == 1


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(zdim=2, enc_dim=16, enc_layers=1, dec_dim=16, dec_layers=1, pe_dim=4),
        ModelConfig(zdim=2, encoder="linear", decoder="residual", dec_dim=16, dec_layers=1, pe_dim=4),
        ModelConfig(model="homogeneous", decoder="residual", dec_dim=16, dec_layers=1, pe_dim=4),
    ],
    ids=["network", "from a subspace", "from one volume"],
)
def test_a_probe_measures_every_kind_of_network(store_path: Path, model: ModelConfig) -> None:
    training = TrainingConfig(coarse_share=0.5, points_share=0.5, precision="fp32")
    config, store = RunConfig(model=model, training=training), ParticleStore(store_path)
    cost = probe(config, store)
    assert cost.train > 0
    assert cost.judge > 0
    assert 1e8 < cost.memory < 1e11
    assert cost.train * 200 < epoch_seconds(config, store, cost) < (cost.train + cost.judge) * 300
