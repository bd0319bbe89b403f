"""What benchmarks print of work and memory is what the models do."""

from __future__ import annotations

import pytest

from benchmarks.scaling import Cost, cost, step_seconds
from benchmarks.train_table import ZDIM, measure
from drgn_ray.config import ModelConfig
from drgn_ray.models import build_model


def test_the_formula_counts_the_operations_and_gradients_of_a_step() -> None:
    by_formula = cost(48, 2, 32)
    settings = ModelConfig(zdim=ZDIM, enc_dim=48, enc_layers=2, dec_dim=48, dec_layers=2)
    model = build_model(settings, box_size=32, data_sign=-1, hartley_std=1.0, ctf=True)
    assert by_formula.parameters == pytest.approx(sum(each.numel() for each in model.parameters()), rel=0.02)
    one = {"width": 48, "layers": 2, "size": 32, "batch_size": 2, "precision": "fp32"}
    measured = measure(**one, seconds=0.1)  # type: ignore[arg-type]
    assert by_formula.flop / 1e9 == pytest.approx(measured["gflop_per_image"], rel=0.02)
    assert 0 < measured["share_of_peak"] < 1
    assert measured["images_per_second"] > 0


def test_an_all_reduce_that_the_backward_pass_hides_costs_nothing() -> None:
    one = Cost(flop=1e12, parameters=1_000_000)
    alone = step_seconds(one, 64, 1, 1e9)
    assert step_seconds(one, 64, 8, 1e12) == alone
    sent = 2 * 7 / 8 * 4e6 / 1e6  # seconds over a link of 1 MB/s
    assert step_seconds(one, 64, 8, 1e6) == pytest.approx(alone / 3 + sent)
