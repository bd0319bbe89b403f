"""Which trials of a sweep go on: ASHA, or a population, by names that a later call has again.

Li et al. 2020, arXiv:1810.05934 (ASHA), as Ray Tune has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from drgn_ray.distributed.population import Population
from drgn_ray.distributed.trial import EPOCH, GAIN, results
from drgn_ray.training.sweep import Sweep
from drgn_ray.training.sweep_cost import REDUCTION, rungs
from drgn_ray.training.sweep_directory import SweepDirectory


class _Named(NamedTuple):
    """A trial as ASHA looks at it."""

    trial_id: str


class Asha(ASHAScheduler):
    """Knows trials by our names, which a later call has again, and not by Tune's."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """See `ASHAScheduler`."""
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See `ASHAScheduler`."""
        return super().on_trial_result(tune_controller, _named(trial), result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """See `ASHAScheduler`."""
        super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """See `ASHAScheduler`."""
        super().on_trial_remove(tune_controller, _named(trial))

    def remember(self, name: str, results: Sequence[dict[str, Any]]) -> None:
        """Hear what a trial told in an earlier call; what was decided on it then stays."""
        trial: Any = _Named(name)
        super().on_trial_add(None, trial)  # type: ignore[arg-type]
        for result in results:
            super().on_trial_result(None, trial, result)  # type: ignore[arg-type]


def _named(trial: TuneTrial) -> Any:
    return _Named(trial.config["trial"])


def scheduler_of(directory: SweepDirectory, sweep: Sweep, longest: int) -> TrialScheduler:
    """Make what decides which trials go on, knowing what those of an earlier call told."""
    if sweep.scheduler == "none":
        return FIFOScheduler()
    if sweep.scheduler == "pbt":
        return Population(directory, sweep, EPOCH, GAIN)
    asha = Asha(
        time_attr=EPOCH,
        metric=GAIN,
        mode="max",
        max_t=longest,
        grace_period=rungs(longest)[0],
        reduction_factor=REDUCTION,
    )
    for trial in directory.trials():
        asha.remember(trial.name, results(directory, trial, longest))
    return asha
