"""Population-based training: trials that are behind go on from the weights of better ones, with settings near theirs.

Jaderberg et al. 2017, arXiv:1711.09846, as Ray Tune has it.  What a trial has chosen now is in ``sweep.json``, its
weights are in its run directory; Tune only carries checkpoints from one to the other, in copies, since the giver goes
on and drops its own.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray import tune
from ray.train import Checkpoint
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining

from drgn_ray.config import write_config
from drgn_ray.tracking.run import TrackedRun
from drgn_ray.training.checkpoint import adopt_checkpoint, newest_checkpoint, read_position
from drgn_ray.training.sweep import Distribution, Sweep, Trial, rounded, with_chosen
from drgn_ray.training.sweep_directory import SweepDirectory

logger = logging.getLogger(__name__)
NUM_COMPARISONS = 5  # of a trial with the others, the last at its end, where nothing changes any more


def interval(sweep: Sweep) -> int:
    """Epochs from one comparison of a trial with the others to the next."""
    return max(1, round(sweep.most_epochs / NUM_COMPARISONS))


class Population(PopulationBasedTraining):
    """Ray's scheduler, with trials that have our names and keep their own state."""

    def __init__(self, directory: SweepDirectory, sweep: Sweep, time_attr: str, metric: str) -> None:
        rng = np.random.default_rng(sweep.seed)
        changes = {name: each.values or functools.partial(each.draw, rng) for name, each in sweep.space.items()}
        super().__init__(
            time_attr,
            metric,
            "max",
            perturbation_interval=interval(sweep),
            hyperparam_mutations=changes,  # type: ignore[arg-type]
            log_config=False,
        )
        self.directory, self.sweep = directory, sweep

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """See `PopulationBasedTraining`; where a trial goes on, it was compared before."""
        # Ray refuses searchers, which would learn from settings that change; ours but names what is there.
        super().on_trial_add(SimpleNamespace(search_alg=None), trial)  # type: ignore[arg-type]
        epoch, state = max(self.directory.bounds(trial.config["trial"]), default=0), self._trial_state[trial]
        state.last_train_time, state.last_perturbation_time = epoch, epoch - epoch % interval(self.sweep)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """See `PopulationBasedTraining`; a trial that is at its end stays as it is."""
        if result[self._time_attr] >= self.sweep.most_epochs:
            return self.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def _checkpoint_or_exploit(
        self, trial: TuneTrial, tune_controller: Any, upper_quantile: list[TuneTrial], lower_quantile: list[TuneTrial]
    ) -> None:
        """Let any of the best be a donor: Ray keeps checkpoints of those alone that were so when they told theirs."""
        for best in upper_quantile:
            state = self._trial_state[best]
            state.last_checkpoint = state.last_checkpoint or best.checkpoint
        super()._checkpoint_or_exploit(trial, tune_controller, upper_quantile, lower_quantile)

    def _get_new_config(self, trial: TuneTrial, trial_to_clone: TuneTrial) -> tuple[dict, dict]:
        """Choose settings near the donor's, for a trial that keeps its name."""
        name, theirs = trial.config["trial"], {key: trial_to_clone.config[key] for key in self.sweep.space}
        operations, chosen = {}, theirs
        while chosen == theirs:  # at an end of its range or list a setting may stay, and the trial would be a copy
            changed, operations = super()._get_new_config(trial, trial_to_clone)
            chosen = {key: _kept(each, changed[key]) for key, each in self.sweep.space.items()}
        self.directory.change(with_chosen(self.directory.trial(name), self.sweep, chosen))
        said = ", ".join(f"{key} {value}" for key, value in chosen.items())
        logger.info("%s  goes on from the weights of %s with %s", name, trial_to_clone.config["trial"], said)
        return {"trial": name, **chosen}, operations


def _kept(each: Distribution, value: Any) -> Any:
    return value if each.choice is not None else each.within(rounded(value))


def donated(directory: SweepDirectory, name: str, epoch: int) -> Checkpoint | None:
    """Offer a trial's newest checkpoint to the others, after epochs at which they are compared."""
    sweep = directory.sweep()
    if sweep.scheduler != "pbt" or epoch % interval(sweep):
        return None
    checkpoint = Checkpoint.from_directory(newest_checkpoint(directory.run(name).checkpoints))
    checkpoint.set_metadata({"trial": name})
    return checkpoint


def go_on_from_donor(directory: SweepDirectory, trial: Trial, tracked: TrackedRun) -> None:
    """Take over the checkpoint that the scheduler handed to a trial, if it is another's, and its settings of now."""
    run, checkpoint = directory.run(trial.name), tune.get_checkpoint()
    write_config(trial.config, run.config_file)
    donor = trial.name if checkpoint is None else checkpoint.get_metadata()["trial"]
    if checkpoint is None or donor == trial.name:  # its own, which are in its directory, and newer
        return
    with checkpoint.as_directory() as folder:
        epoch = read_position(Path(folder)).history[-1]["epoch"]
        directory.forget_bounds(trial.name, epoch)  # of its own model, from there on
        adopt_checkpoint(run.checkpoints, Path(folder))
        run.diverged_file.unlink(missing_ok=True)  # of its own weights
    tracked.set_tag("drgn_ray.exploited", f"{donor} after epoch {epoch}")
