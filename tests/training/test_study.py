"""What a search by Optuna asks for: points that are better and better, none twice, the same after an interruption."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from drgn_ray.errors import ConfigError
from drgn_ray.training.study import Tried, ask, num_at_random, tried
from drgn_ray.training.sweep import Sweep, Trial, trial_at
from drgn_ray.training.sweep_directory import CONSENSUS, Outcome, SweepDirectory

BEST_LR = 2e-3
SWEEP = """
space:
  training.lr: {loguniform: [1.0e-5, 1.0e-1]}
  size: {choice: {small: {model.dec_dim: 64}, large: {model.dec_dim: 128}}}
num_samples: 36
search: optuna
"""


def sweep_of(text: str) -> Sweep:
    return Sweep.model_validate(yaml.safe_load(text))


def next_trial(sweep: Sweep, known: list[Tried]) -> Trial:
    return ask(sweep, known, lambda chosen: trial_at(sweep, "/p.zarr", 10_000, len(known) + 1, chosen))


def trained(chosen: Mapping[str, Any]) -> Tried:
    """A trial of known gain: large is better by one, and so is a learning rate for every factor of ten it is nearer."""
    if chosen["training.lr"] > 0.03:
        return Tried(chosen, "failed")
    gain = (chosen["size"] == "large") - abs(math.log10(chosen["training.lr"] / BEST_LR))
    return Tried(chosen, "finished", {1: gain - 1, 2: gain}) if gain > -1 else Tried(chosen, "stopped", {1: gain - 1})


def missed(known: list[Tried]) -> float:
    """Factors of ten that learning rates are away from the best, on average."""
    return float(np.mean([abs(math.log10(each.chosen["training.lr"] / BEST_LR)) for each in known]))


def test_later_trials_are_nearer_to_the_best_point() -> None:
    at_random, learned = [], []
    for seed in range(4):
        sweep, known = sweep_of(f"{SWEEP}\nseed: {seed}"), []
        while len(known) < sweep.num_trials:
            known.append(trained(next_trial(sweep, known).chosen))
        at_random += known[: num_at_random(sweep)]
        learned += known[num_at_random(sweep) :]
    assert missed(learned) < 0.65 * missed(at_random)
    assert np.mean([each.chosen["size"] == "large" for each in learned]) > 0.7
    assert np.mean([each.state == "failed" for each in learned]) < 0.2


def test_with_minutes_as_an_objective_quick_trials_are_asked_for_too() -> None:
    """Where large gains more and takes longer, both are on the front; alone, gain asks for large only."""
    share = {}
    for objectives in ("[gain]", "[gain, minutes]"):
        sweep, known = sweep_of(f"{SWEEP}\nobjectives: {objectives}\nscheduler: none"), []
        while len(known) < sweep.num_trials:
            chosen = next_trial(sweep, known).chosen
            minutes = 9.0 if chosen["size"] == "large" else 1.0
            found = trained(chosen)
            known.append(Tried(chosen, "finished", found.gains, minutes) if found.gains else found)
        share[objectives] = np.mean([each.chosen["size"] == "small" for each in known[num_at_random(sweep) :]])
    assert share["[gain]"] < 0.4 < share["[gain, minutes]"] < 0.8


def test_what_is_asked_next_follows_from_the_directory_alone(tmp_path: Path) -> None:
    sweep, known, directory = sweep_of(SWEEP), [], SweepDirectory(tmp_path / "sweep")
    directory.begin(sweep, "/p.zarr", [])
    directory.save_bounds(CONSENSUS, 0, np.zeros(2))
    while len(known) < 15:
        trial = next_trial(sweep, known)
        assert next_trial(sweep, tried(SweepDirectory(directory.path))) == trial
        directory.add(trial)
        known.append(trained(trial.chosen) if len(known) % 5 else Tried(trial.chosen))  # some came to no end
        for epoch, gain in known[-1].gains.items():
            directory.save_bounds(trial.name, epoch, np.full(2, gain))
        if known[-1].state is not None:
            directory.end(trial.name, Outcome(known[-1].state))
    assert [each.state for each in tried(directory)] == [each.state for each in known]


def test_choices_are_tried_once_each_and_impossible_ones_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    text = """
        space:
          model.decoder: {choice: [coordinate, residual, basis]}
          model.zdim: {choice: [2, 4]}
          enc: {choice: {plain: {}, wide: {model.enc_dim: 64}}}
        base: {model.pe_type: geom_ft}
        num_samples: 8
        search: optuna
        """
    sweep, known = sweep_of(text), []
    while len(known) < 8:  # of 12; a basis decoder has no pe_type
        chosen = next_trial(sweep, known).chosen
        known.append(Tried(chosen, "finished", {1: float(chosen["model.zdim"])}))
    assert len({tuple(each.chosen.items()) for each in known}) == 8
    assert {each.chosen["model.decoder"] for each in known} == {"coordinate", "residual"}
    assert "is passed over: a basis decoder has no pe_type" in caplog.text
    with pytest.raises(ConfigError, match="space: no point of 200 can be trained and is new"):
        next_trial(sweep, known)


def test_a_value_that_rounding_brought_out_of_its_range_is_known_all_the_same() -> None:
    sweep = sweep_of("{space: {training.lr: {uniform: [0.0012349, 0.0012351]}}, num_samples: 3, search: optuna}")
    known = [Tried(next_trial(sweep, []).chosen, "finished", {1: 0.0})]
    known.append(Tried(next_trial(sweep, known).chosen, "finished", {1: 0.0}))
    assert {each.chosen["training.lr"] for each in known} == {1.23e-3, 1.24e-3}
