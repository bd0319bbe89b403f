"""The learning rate is a function of the images seen."""

from __future__ import annotations

import pytest

from drgn_ray.config import TrainingConfig
from drgn_ray.training.schedule import learning_rate


def test_constant_is_constant() -> None:
    training = TrainingConfig(lr=1e-3, lr_schedule="constant", warmup_epochs=0)
    assert {learning_rate(training, seen, 100) for seen in (0, 50, 1999)} == {1e-3}


def test_warm_up_rises_linearly_from_zero() -> None:
    training = TrainingConfig(lr=1e-3, lr_schedule="constant", warmup_epochs=2)
    assert [learning_rate(training, seen, 100) for seen in (0, 50, 100, 200)] == pytest.approx([0, 2.5e-4, 5e-4, 1e-3])


def test_cosine_ends_at_zero_and_is_half_in_the_middle() -> None:
    training = TrainingConfig(lr=1e-3, num_epochs=10, lr_schedule="cosine", warmup_epochs=0)
    assert [learning_rate(training, seen, 100) for seen in (0, 500, 1000)] == pytest.approx([1e-3, 5e-4, 0])
