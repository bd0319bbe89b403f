"""Which trials a sweep has, and in which order Ray Tune trains them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.search import Searcher

from drgn_ray.distributed.train import check
from drgn_ray.errors import ConfigError
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.study import Tried, ask, num_at_random, tried
from drgn_ray.training.sweep import Sweep, Trial, check_names, draw_trials, trial_at
from drgn_ray.training.sweep_directory import SweepDirectory

logger = logging.getLogger(__name__)


def first_trials(sweep: Sweep, store: ParticleStore) -> list[Trial]:
    """Draw the trials that are known before anything starts: all, or those that Optuna begins with.

    Raises
    ------
    ConfigError
        Settings that there are not, do not go together, or cannot be trained with these particles.
    """
    if sweep.search == "optuna":
        check_names(sweep)
        trials: list[Trial] = []
        while len(trials) < num_at_random(sweep):
            trials.append(ask(sweep, [Tried(each.chosen) for each in trials], _maker(sweep, store, len(trials) + 1)))
    else:
        trials = draw_trials(sweep, store.absolute_path, len(store))
        for trial in trials:
            _check(trial, store)
    if not trials[0].config.data.val_fraction:
        raise ConfigError("data.val_fraction: 0", "trials are judged on held-out particles", "leave it out")
    return trials


def _maker(sweep: Sweep, store: ParticleStore, number: int) -> Callable[[Mapping[str, Any]], Trial]:
    return lambda chosen: _check(trial_at(sweep, store.absolute_path, len(store), number, chosen), store)


def _check(trial: Trial, store: ParticleStore) -> Trial:
    try:
        check(trial.config, store)
    except ConfigError as error:
        raise ConfigError(f"{trial.name}, {error.source}", error.found, error.remedy) from error
    return trial


class Names(Searcher):
    """Names to Tune the trials that have not ended, then those that Optuna is asked for as slots get free.

    Trials keep their own state, so Tune knows nothing of them but their names.
    """

    def __init__(self, directory: SweepDirectory, sweep: Sweep) -> None:
        super().__init__()
        trials = directory.trials()
        self.directory, self.sweep = directory, sweep
        self.waiting = [trial for trial in trials if directory.outcome(trial.name) is None]
        self.num_left = len(self.waiting) + sweep.num_trials - len(trials)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Name the next trial, which the directory knows before it starts."""
        if self.waiting:
            return self._named(self.waiting.pop(0))
        known = tried(self.directory)
        store = ParticleStore(self.directory.trials()[0].config.particles)
        try:
            trial = ask(self.sweep, known, _maker(self.sweep, store, len(known) + 1))
        except ConfigError as error:  # which ends the search, and no trial that is running
            logger.warning("the search ends after %d trials: %s", len(known), error)
            return self.FINISHED
        self.directory.add(trial)
        return self._named(trial)

    def _named(self, trial: Trial) -> dict[str, Any]:
        return {"trial": trial.name, **(trial.chosen if self.sweep.scheduler == "pbt" else {})}  # which pbt changes

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See `Searcher`; the directory knows already."""
