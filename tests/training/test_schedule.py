"""The learning rate is a function of the images seen."""

from __future__ import annotations

import pytest

from drgn_ray.config import TrainingConfig
from drgn_ray.training.schedule import compared_radius, is_early, learning_rate


def test_constant_is_constant() -> None:
    training = TrainingConfig(lr=1e-3, lr_schedule="constant", warmup_epochs=0)
    assert {learning_rate(training, seen, 100) for seen in (0, 50, 1999)} == {1e-3}


def test_warm_up_rises_linearly_from_zero() -> None:
    training = TrainingConfig(lr=1e-3, lr_schedule="constant", warmup_epochs=2)
    assert [learning_rate(training, seen, 100) for seen in (0, 50, 100, 200)] == pytest.approx([0, 2.5e-4, 5e-4, 1e-3])


def test_cosine_ends_at_zero_and_is_half_in_the_middle() -> None:
    training = TrainingConfig(lr=1e-3, num_epochs=10, lr_schedule="cosine", warmup_epochs=0)
    assert [learning_rate(training, seen, 100) for seen in (0, 500, 1000)] == pytest.approx([1e-3, 5e-4, 0])


def test_training_is_coarse_for_its_share_and_then_compares_all() -> None:
    training = TrainingConfig(num_epochs=10, coarse_share=0.25)
    assert [compared_radius(training, seen, 100, 64) for seen in (0, 249, 250, 1000)] == [16, 16, None, None]
    assert compared_radius(TrainingConfig(), 0, 100, 64) is None


def test_the_first_third_of_a_training_is_early() -> None:
    training = TrainingConfig(num_epochs=3)
    assert [is_early(training, seen, 100) for seen in (0, 99, 100, 299)] == [True, True, False, False]
