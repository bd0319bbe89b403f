"""Ray Tune over the trials of a sweep: each one process and one run directory, stopped early by ASHA.

Trials hold their own state (checkpoints, bounds, outcome), so going on needs nothing of Tune's: what trials told before
is told to the scheduler, and those that have not ended are submitted again.  A trial is a single actor
(`resources.num_workers` is 0), or one that reserves nothing and trains on Ray Train (`drgn_ray.distributed.groups`).
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from drgn_ray.analysis.sweep_figures import write_figures
from drgn_ray.config import FEW_DIMENSIONS, ModelConfig, ResourcesConfig, RunConfig, TrainingConfig
from drgn_ray.distributed import groups
from drgn_ray.distributed.cluster import alive_nodes, await_machines, connected
from drgn_ray.distributed.linear import train_linear
from drgn_ray.distributed.scheduler import scheduler_of
from drgn_ray.distributed.searcher import Names
from drgn_ray.distributed.trainer import drop_bookkeeping, own_cpus
from drgn_ray.distributed.trial import EPOCH, GAIN, reference_of, train_trial
from drgn_ray.errors import ResourceError
from drgn_ray.particles.store import ParticleStore
from drgn_ray.patience import write_whole
from drgn_ray.text import counted
from drgn_ray.tracking.run import ERROR, TrackedRun
from drgn_ray.tracking.summary import sweep_note
from drgn_ray.training.checkpoint import has_checkpoint
from drgn_ray.training.compare import one_volume
from drgn_ray.training.leaderboard import RankBy, leaderboard, markdown, unended
from drgn_ray.training.objective import held_out_bounds
from drgn_ray.training.report import LogReporter
from drgn_ray.training.sweep import Sweep, Trial
from drgn_ray.training.sweep_directory import CONSENSUS, LINEAR, Outcome, SweepDirectory

logger = logging.getLogger(__name__)
PUBLISH_SECONDS = 30.0  # between two leaderboards
MAX_FAILURES = 2  # of a trial's process, before it is left for the next call
_BOOKKEEPING = ".ray_tune_"
_NEXT_TO_NOTHING = {"memory": 1.0}  # bytes: Tune wants something, and a share of a CPU would cost a reader the whole
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # which write every result three times
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends us, and not what Tune happens to do
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # tracebacks of what a line of ours says
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints tables however quiet it is told to be
}


class Slots(NamedTuple):
    """What the actor of each trial reserves (nothing, where workers do), and how many fit on the machines."""

    cpus: int
    gpus: float
    count: int


def plan_slots(cpus: int, gpus: float | None, nodes: Sequence[Mapping[str, float]], num_workers: int = 0) -> Slots:
    """Fit trials on machines.

    Parameters
    ----------
    cpus
        Of a trial, or of each of its workers.
    gpus
        Of a trial in one process; None: one GPU where there are any.
    nodes
        Resources of every machine that is alive ("CPU", "GPU").
    num_workers
        Of a trial; 0: one process.
    """
    if num_workers:
        if gpus is not None:
            raise ResourceError(f"--gpus-per-trial {gpus:g}", "each worker of a trial takes a GPU", "leave it out")
        return Slots(0, 0.0, groups.at_once(num_workers, cpus, nodes))
    gpus = float(any(node.get("GPU", 0) for node in nodes)) if gpus is None else gpus
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise ResourceError(f"--gpus-per-trial {gpus:g}", "it is a share of a GPU, or a count", "pass 0.5 or 1, say")
    count = sum(_fitting(cpus, gpus, node) for node in nodes)
    if not count:
        largest = counted(max((node.get("CPU", 0) for node in nodes), default=0), "CPU")
        most = counted(max((node.get("GPU", 0) for node in nodes), default=0), "GPU")
        raise ResourceError(
            f"a trial of {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}",
            f"no machine has as much (the most are {largest} and {most})",
            "pass a smaller --gpus-per-trial, or resources.cpus_per_worker under base",
        )
    return Slots(cpus, gpus, count)


def _fitting(cpus: int, gpus: float, node: Mapping[str, float]) -> int:
    by_cpu = int(node.get("CPU", 0) // cpus)
    return min(by_cpu, int(node.get("GPU", 0) / gpus + 1e-9)) if gpus else by_cpu


def run_sweep(directory: SweepDirectory, sweep: Sweep, parent: TrackedRun, gpus_per_trial: float | None = None) -> None:
    """Train what is left of a sweep, which its directory knows; trials tell MLflow and the directory how they do.

    Raises
    ------
    ResourceError
        No machine has what a trial needs.
    """
    trials = directory.trials()
    names = Names(directory, sweep)
    if not names.num_left:
        logger.info("all %d trials have ended already", len(trials))
        return
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    resources = trials[0].config.resources
    with connected(num_cpus=own_cpus(resources) if resources.num_workers else None):
        if resources.awaited_gpus:
            await_machines("GPU", resources.awaited_gpus)
        cpus, nodes = resources.cpus_per_worker or 1, alive_nodes()
        slots = plan_slots(cpus, gpus_per_trial, nodes, resources.num_workers)
        _fit_reference(directory, trials[0].config)
        logger.info(
            "%d of %d trials to train, %d at a time, each with %sCPUs: %d%s",
            names.num_left,
            sweep.num_trials,
            min(slots.count, names.num_left),
            f"workers: {resources.num_workers}, each with " if resources.num_workers else "",
            cpus,
            f", GPUs: {slots.gpus:g}" if slots.gpus else "",
        )
        try:
            _tune(directory, sweep, names, parent, slots)
        finally:
            for trial in directory.trials():
                if directory.outcome(trial.name) is None and directory.run(trial.name).mlflow_file.exists():
                    TrackedRun(directory.run(trial.name)).end("KILLED")


def _tune(directory: SweepDirectory, sweep: Sweep, names: Names, parent: TrackedRun, slots: Slots) -> None:
    longest = sweep.most_epochs
    for left_over in directory.path.glob(f"{_BOOKKEEPING}*"):  # of a driver that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the files that loggers would write
    work = tune.with_parameters(train_trial, directory=directory, longest=longest)
    reserved: dict[str, float] = {"cpu": slots.cpus, "gpu": slots.gpus} if slots.cpus else _NEXT_TO_NOTHING
    at_once = names.num_left if sweep.scheduler == "pbt" else slots.count  # a population takes turns
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)  # else trials start one after the other
    with tempfile.TemporaryDirectory(prefix=_BOOKKEEPING, dir=directory.path) as bookkeeping:
        tuner = tune.Tuner(
            tune.with_resources(work, reserved),
            tune_config=tune.TuneConfig(
                search_alg=names,
                num_samples=names.num_left,
                scheduler=scheduler_of(directory, sweep, longest),
                max_concurrent_trials=at_once,
                reuse_actors=bool(slots.cpus),  # starting a process takes seconds; but a group ends only with its own
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=bookkeeping,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                callbacks=[_Follower(directory, parent), *([] if slots.cpus else [groups.Cleaner()])],
                verbose=0,
            ),
        )
        tuner.fit()
        groups.await_end()
    for run in directory.runs():
        drop_bookkeeping(run)


def _fit_reference(directory: SweepDirectory, config: RunConfig) -> None:
    """Fit the subspace whose noise all trials are judged with, and judge it and its mean."""
    if directory.bounds(LINEAR):
        return
    store, run = ParticleStore(config.particles), directory.reference
    of_it = RunConfig(
        particles=config.particles,
        data=config.data,
        model=ModelConfig(model="linear", zdim=FEW_DIMENSIONS),
        training=TrainingConfig(seed=config.training.seed),
        resources=ResourcesConfig(num_workers=int(ray.cluster_resources().get("CPU", 0))),
    )
    logger.info("a linear subspace comes first: its noise is that which all trials are judged with")
    run.begin(of_it)
    if not has_checkpoint(run.checkpoints):
        with run.log_to_file():
            train_linear(of_it, store, run, LogReporter(run, 1))
    linear = reference_of(directory, config, store)
    directory.save_bounds(CONSENSUS, 0, held_out_bounds(one_volume(linear), linear, config, store))
    directory.save_bounds(LINEAR, 0, held_out_bounds(linear, linear, config, store))


class _Follower(tune.Callback):
    """Hears in the driver how trials do: lines in the log, outcomes, the leaderboard in the directory and in MLflow."""

    def __init__(self, directory: SweepDirectory, parent: TrackedRun) -> None:
        self.directory, self.parent = directory, parent
        self.has_news, self.published_at = False, -PUBLISH_SECONDS

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Say how an epoch went."""
        if GAIN not in result:
            return
        ours = self.directory.trial(trial.config["trial"])
        epoch = min(result[EPOCH], ours.config.num_epochs)
        logger.info(
            "%s  epoch %d/%d  %+.3f nats an image over one volume",
            ours.name,
            epoch,
            ours.config.num_epochs,
            result[GAIN],
        )

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Keep the outcome of a trial."""
        ours = self.directory.trial(trial.config["trial"])
        run = self.directory.run(ours.name)
        outcome = self.directory.outcome(ours.name)
        if outcome is None:
            epochs = max(self.directory.bounds(ours.name), default=0)
            done = epochs >= ours.config.num_epochs
            outcome = Outcome("finished" if done else "stopped", f"after {epochs} of {ours.config.num_epochs} epochs")
            self.directory.end(ours.name, outcome)
        tracked = TrackedRun(run)
        tracked.set_tag("drgn_ray.outcome", f"{outcome.state}: {outcome.why}")
        tracked.end("FAILED" if outcome.state == "failed" else "FINISHED")
        logger.info("%s  %s %s", ours.name, outcome.state, outcome.why)
        self.has_news = True

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Publish what ended since, once in a while: figures are megabytes, and trials may take seconds."""
        if self.has_news and time.monotonic() - self.published_at >= PUBLISH_SECONDS:
            publish(self.directory, self.directory.trials(), self.parent)
            self.has_news, self.published_at = False, time.monotonic()

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Say why a trial's process ended; the next call tries it again."""
        name = trial.config["trial"]
        error = _last_line(trial)
        logger.warning("%s  failed, and goes on when the same command is given again: %s", name, error)
        if self.directory.run(name).mlflow_file.exists():
            tracked = TrackedRun(self.directory.run(name))
            tracked.set_tag(ERROR, error[:500])
            tracked.end("FAILED")

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Say that a trial's process ended, and another goes on with it."""
        logger.warning("%s  goes on from its last checkpoint: %s", trial.config["trial"], _last_line(trial))


def _last_line(trial: TuneTrial) -> str:
    error = trial.get_error()  # None where its machine went
    return str(error).strip().splitlines()[-1] if error else "its process ended"


def publish(
    directory: SweepDirectory, trials: Sequence[Trial], parent: TrackedRun, rank_by: RankBy = "gain"
) -> pd.DataFrame:
    """Write the leaderboard, and show it on the page of the sweep."""
    table = leaderboard(directory, trials, rank_by)
    text, listed = markdown(directory, table, rank_by), table.to_csv(index=False, float_format="%.6g")
    for name, content in {"leaderboard.csv": listed, "leaderboard.md": text}.items():
        write_whole(directory.path / name, content)
    parent.note(sweep_note(parent, text))
    for file in (directory.path / "leaderboard.csv", *write_figures(directory, trials, table)):
        parent.artifacts(file)
    ended, gains = len(table) - len(unended(table)), table["gain"].dropna().tolist()
    if gains:
        parent.metrics({"sweep/best_gain": max(gains), "sweep/trials_ended": ended}, ended)
    return table
