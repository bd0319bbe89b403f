"""Which point of its space a sweep tries next: TPE of Optuna, which learns from the trials that there are.

A study is built anew for every question, from what the sweep's directory says, with a seed of the sweep's and of the
trial's number.  So there is nothing to keep, and a sweep that was interrupted asks what it would have asked.

Tree-structured Parzen estimator: Bergstra et al. 2011, doi:10.48550/arXiv.2304.11127 for the form that Optuna has.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from drgn_ray.errors import ConfigError
from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.compare import gain
from drgn_ray.training.sweep import Distribution, Sweep, Trial, rounded
from drgn_ray.training.sweep_directory import CONSENSUS, SweepDirectory

logger = logging.getLogger(__name__)
MOST_AT_RANDOM = 10  # first trials, or a third of all: Optuna's default, and less for a small sweep
_DIRECTION = {"gain": StudyDirection.MAXIMIZE, "minutes": StudyDirection.MINIMIZE}
TRIES = 200  # points that are asked for until one can be trained and is new


class Tried(NamedTuple):
    """A trial as the sampler looks at it.

    Attributes
    ----------
    chosen
        Its point of the space.
    state
        How it ended (see `Outcome`); None: it did not yet.
    gains
        After every epoch, nats an image.
    minutes
        Of training.
    """

    chosen: Mapping[str, Any]
    state: str | None = None
    gains: Mapping[int, float] = {}
    minutes: float = 0.0


def num_at_random(sweep: Sweep) -> int:
    """Count the first trials, which are drawn at random for the others to learn from."""
    return min(MOST_AT_RANDOM, math.ceil(sweep.num_trials / 3))


def tried(directory: SweepDirectory) -> list[Tried]:
    """Say what came of the trials of a sweep so far."""
    consensus = next(iter(directory.bounds(CONSENSUS).values()), np.zeros(0))
    found = []
    for trial in directory.trials():
        gains = {epoch: gain(bounds, consensus).mean for epoch, bounds in directory.bounds(trial.name).items()}
        outcome, history = directory.outcome(trial.name), load_position(directory.run(trial.name).checkpoints).history
        minutes = history[-1]["perf/total_seconds"] / 60 if history else 0.0
        found.append(Tried(trial.chosen, outcome and outcome.state, gains, minutes))
    return found


def ask(sweep: Sweep, known: Sequence[Tried], make: Callable[[Mapping[str, Any]], Trial]) -> Trial:
    """Choose the next point and make its trial.

    Parameters
    ----------
    known
        All trials before it.
    make
        Makes the trial at a point, or raises a `ConfigError`; then another point is asked for.

    Raises
    ------
    ConfigError
        No point of many can be trained and is new.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (seed,) = np.random.SeedSequence((sweep.seed, len(known))).generate_state(1)
    # Its defaults are for trials beside each other: it keeps away from points that are being tried.
    sampler = optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=num_at_random(sweep))
    study = optuna.create_study(sampler=sampler, directions=[_DIRECTION[name] for name in sweep.objectives])
    space = {name: _distribution(each) for name, each in sweep.space.items()}
    study.add_trials([_frozen(sweep, space, each) for each in known])
    passed, why = [each.chosen for each in known], "all were tried before"
    for _ in range(TRIES):
        params = study.ask(space).params
        chosen = {name: _value(each, params[name]) for name, each in sweep.space.items()}
        if chosen not in passed:
            try:
                return make(chosen)
            except ConfigError as error:
                passed.append(chosen)
                why = f"the last: {error.source}, {error.found}"
                logger.info("%s is passed over: %s", error.source, error.found)
        # What is passed over stays in this study as if it were being tried: a failure would be asked for again.
    raise ConfigError("space", f"no point of {TRIES} can be trained and is new ({why})", "mend or widen the space")


def _distribution(each: Distribution) -> BaseDistribution:
    if each.choice is not None:
        return CategoricalDistribution(range(len(each.values)))  # by index: values may be lists, and groups have names
    if each.integer is not None:
        return IntDistribution(*each.integer)
    low, high = each.uniform or each.loguniform or (0, 1)
    return FloatDistribution(low, high, log=each.loguniform is not None)


def _value(each: Distribution, param: Any) -> Any:
    if each.choice is not None:
        return each.values[param]
    return param if each.integer is not None else rounded(param)


def _param(each: Distribution, value: Any) -> Any:
    if each.choice is not None:
        return each.values.index(value)
    return each.within(value)


def _frozen(sweep: Sweep, space: Mapping[str, BaseDistribution], known: Tried) -> FrozenTrial:
    params = {name: _param(sweep.space[name], value) for name, value in known.chosen.items()}
    here = {"params": params, "distributions": dict(space)}
    if known.state is None:
        return optuna.create_trial(state=TrialState.RUNNING, **here)
    if known.state == "finished":
        values = {"gain": known.gains[max(known.gains)], "minutes": known.minutes}
        return optuna.create_trial(values=[values[name] for name in sweep.objectives], **here)
    seen = {} if known.state == "failed" else dict(known.gains)  # without any it is the worst
    return optuna.create_trial(state=TrialState.PRUNED, intermediate_values=seen, **here)
