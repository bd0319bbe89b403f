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
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple

import pandas as pd
import ray
import torch
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from torch import Tensor

from drgn_ray.analysis.sweep_figures import write_figures
from drgn_ray.config import FEW_DIMENSIONS, ModelConfig, ResourcesConfig, RunConfig, TrainingConfig
from drgn_ray.distributed import groups
from drgn_ray.distributed.cluster import await_machines, connected
from drgn_ray.distributed.linear import train_linear
from drgn_ray.distributed.population import Population, donated, go_on_from_donor
from drgn_ray.distributed.searcher import Names
from drgn_ray.distributed.train import train
from drgn_ray.distributed.trainer import drop_bookkeeping, own_cpus
from drgn_ray.errors import ResourceError, StorageError, StoreAwayError, UserError
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.model import Model
from drgn_ray.particles.store import ParticleStore, reopen
from drgn_ray.patience import write_whole
from drgn_ray.tracking.reporter import make_reporter
from drgn_ray.tracking.reproduce import tell_origin
from drgn_ray.tracking.run import TrackedRun, open_run
from drgn_ray.tracking.summary import sweep_note
from drgn_ray.training.checkpoint import Position, has_checkpoint, load_position
from drgn_ray.training.compare import gain, one_volume
from drgn_ray.training.embed import trained_model
from drgn_ray.training.leaderboard import RankBy, leaderboard, markdown, unended
from drgn_ray.training.loop import particle_order
from drgn_ray.training.objective import held_out_bounds
from drgn_ray.training.report import LogReporter, Metrics, Reporters
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.training.schedule import compared_radius
from drgn_ray.training.sweep import Sweep, Trial
from drgn_ray.training.sweep_cost import REDUCTION, rungs
from drgn_ray.training.sweep_directory import CONSENSUS, LINEAR, Outcome, SweepDirectory

logger = logging.getLogger(__name__)
GAIN, EPOCH = "held_out/gain", "epoch"
MAX_FAILURES = 2  # of a trial's process, before it is left for the next call
SERVER_PATIENCE = 900  # seconds for which a trial that begins waits for MLflow
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
        largest = f"{max((node.get('CPU', 0) for node in nodes), default=0):g} CPUs"
        most = f"{max((node.get('GPU', 0) for node in nodes), default=0):g} GPUs"
        raise ResourceError(
            f"a trial of {cpus} CPUs and {gpus:g} GPUs",
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
        if resources.await_gpus:
            await_machines("GPU", max(resources.num_workers, 1))
        cpus, nodes = resources.cpus_per_worker or 1, [node["Resources"] for node in ray.nodes() if node["Alive"]]
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
    work = tune.with_parameters(_train_trial, directory=directory, longest=longest)
    reserved: dict[str, float] = {"cpu": slots.cpus, "gpu": slots.gpus} if slots.cpus else _NEXT_TO_NOTHING
    at_once = names.num_left if sweep.scheduler == "pbt" else slots.count  # a population takes turns
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)  # else trials start one after the other
    with tempfile.TemporaryDirectory(prefix=_BOOKKEEPING, dir=directory.path) as bookkeeping:
        tuner = tune.Tuner(
            tune.with_resources(work, reserved),
            tune_config=tune.TuneConfig(
                search_alg=names,
                num_samples=names.num_left,
                scheduler=_scheduler(directory, sweep, longest),
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


class _Named(NamedTuple):
    """A trial as ASHA looks at it."""

    trial_id: str


class _Asha(ASHAScheduler):
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


def _scheduler(directory: SweepDirectory, sweep: Sweep, longest: int) -> TrialScheduler:
    if sweep.scheduler == "none":
        return FIFOScheduler()
    if sweep.scheduler == "pbt":
        return Population(directory, sweep, EPOCH, GAIN)
    asha = _Asha(
        time_attr=EPOCH,
        metric=GAIN,
        mode="max",
        max_t=longest,
        grace_period=rungs(longest)[0],
        reduction_factor=REDUCTION,
    )
    for trial in directory.trials():
        asha.remember(trial.name, _results(directory, trial, longest))
    return asha


def _results(directory: SweepDirectory, trial: Trial, longest: int) -> list[dict[str, float]]:
    """List what a trial told after every epoch; one that is fitted at once is at its end, and bars no beginner."""
    (consensus,) = directory.bounds(CONSENSUS).values()
    over = {epoch: gain(bounds, consensus) for epoch, bounds in directory.bounds(trial.name).items()}
    at = {epoch: longest if trial.config.model.is_fitted else epoch for epoch in over}
    return [{EPOCH: at[epoch], GAIN: each.mean, "held_out/gain_error": each.error} for epoch, each in over.items()]


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
    linear = _reference(directory, config, store)
    directory.save_bounds(CONSENSUS, 0, held_out_bounds(one_volume(linear), linear, config, store))
    directory.save_bounds(LINEAR, 0, held_out_bounds(linear, linear, config, store))


def _reference(directory: SweepDirectory, config: RunConfig, store: ParticleStore) -> LinearSubspace:
    found = trained_model(directory.reference, directory.reference.config(), store, _device())
    assert isinstance(found, LinearSubspace)
    return found


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _train_trial(chosen: Mapping[str, str], *, directory: SweepDirectory, longest: int) -> None:
    """Train what is left of a trial, here or by its workers; a user's mistake (a loss that diverges) ends only it."""
    trial = directory.trial(chosen["trial"])
    if directory.outcome(trial.name) is not None:  # Tune tries again whatever fails in its callbacks
        return
    logging.getLogger("drgn_ray").setLevel(logging.INFO)
    run, config = directory.run(trial.name), trial.config
    torch.set_num_threads(config.resources.cpus_per_worker or 1)
    if not run.config_file.exists():  # the sweep's directory has checked the rest
        run.begin(config)
    tracked = open_run(run, config, parent=TrackedRun(directory.tracked), patience=SERVER_PATIENCE)
    tracked.begin()
    tell_origin(tracked, run, config, reopen(config.particles))
    go_on_from_donor(directory, trial, tracked)
    has_workers = config.resources.num_workers > 0
    judge = _Judge(directory, trial, longest, None if has_workers else partial(_tell, directory, trial))
    if has_workers:
        groups.remove_abandoned()  # of this trial, if its process was killed
    try:
        with groups.telling(partial(_results, directory, trial, longest)) if has_workers else nullcontext():
            train(config, run, partial(_listeners, run, config.num_epochs, judge))
            judge.catch_up()
    except (ResourceError, StorageError, StoreAwayError):  # no fault of the trial's, which is tried again
        raise
    except UserError as error:
        directory.end(trial.name, Outcome("failed", str(error)))


def _listeners(run: RunDirectory, num_epochs: int, judge: _Judge) -> Reporters:
    return Reporters([make_reporter(run, num_epochs), judge])


def _tell(directory: SweepDirectory, trial: Trial, result: dict[str, float]) -> None:
    tune.report(result, checkpoint=donated(directory, trial.name, int(result[EPOCH])))


class _Judge:
    """Judges a trial's model after every epoch, in the process that trains it or the first of its workers."""

    def __init__(
        self, directory: SweepDirectory, trial: Trial, longest: int, tell: Callable[[dict[str, float]], None] | None
    ) -> None:
        self.directory, self.trial, self.longest, self.tell = directory, trial, longest, tell

    @cached_property
    def store(self) -> ParticleStore:
        """Particles, opened where they are read."""
        return reopen(self.trial.config.particles)

    @cached_property
    def reference(self) -> LinearSubspace:
        """Subspace that all trials are judged with."""
        return _reference(self.directory, self.trial.config, self.store)

    def catch_up(self) -> None:
        """Judge the newest checkpoint, and log what was judged, if an interruption came before that."""
        run = self.directory.run(self.trial.name)
        history = load_position(run.checkpoints).history
        if history and int(history[-1]["epoch"]) not in self.directory.bounds(self.trial.name):
            self._judge(trained_model(run, self.trial.config, self.store, _device()), int(history[-1]["epoch"]))
        last = TrackedRun(run).last_step(GAIN)
        if last is not None:  # else what MLflow did not hear waits to be told
            self._log([line for line in history if line["step"] > last])

    def begin(self, position: Position) -> None:
        """See `Reporter.begin`."""
        del position
        self.catch_up()

    def interval(self, step: int, metrics: Metrics) -> None:
        """See `Reporter.interval`."""

    def epoch(self, step: int, metrics: Metrics, model: Model, z: Tensor) -> None:
        """See `Reporter.epoch`."""
        del z
        was_training = model.training
        self._judge(model.eval(), int(metrics[EPOCH]))
        model.train(was_training)

    def _judge(self, model: Model, epoch: int) -> None:
        device = next(chain(model.parameters(), model.buffers())).device  # a subspace is fitted on the CPU
        config = self.trial.config
        order, box_size = particle_order(config, self.store), config.model.seen_box(self.store.info.box_size)
        num_images = order.num_rows(order.train_chunks())
        radius = compared_radius(config.training, epoch * num_images - 1, num_images, box_size)  # of its last step
        bounds = held_out_bounds(model, self.reference.to(device), config, self.store, radius)
        self.directory.save_bounds(self.trial.name, epoch, bounds)
        self._log(load_position(self.directory.run(self.trial.name).checkpoints).history[-1:])
        if self.tell is not None:
            self.tell(_results(self.directory, self.trial, self.longest)[-1])

    def _log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Tell MLflow the results of some epochs."""
        results = _results(self.directory, self.trial, self.longest)
        judged = dict(zip(self.directory.bounds(self.trial.name), results, strict=True))
        tracked = TrackedRun(self.directory.run(self.trial.name))
        for line in history:
            if (result := judged.get(int(line["epoch"]))) is not None:
                tracked.metrics({name: value for name, value in result.items() if name != EPOCH}, line["step"])


class _Follower(tune.Callback):
    """Hears in the driver how trials do: lines in the log, outcomes, the leaderboard in the directory and in MLflow."""

    def __init__(self, directory: SweepDirectory, parent: TrackedRun) -> None:
        self.directory, self.parent = directory, parent

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
        publish(self.directory, self.directory.trials(), self.parent)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Say why a trial's process ended; the next call tries it again."""
        name = trial.config["trial"]
        error = _last_line(trial)
        logger.warning("%s  failed, and goes on when the same command is given again: %s", name, error)
        if self.directory.run(name).mlflow_file.exists():
            tracked = TrackedRun(self.directory.run(name))
            tracked.set_tag("drgn_ray.error", error[:500])
            tracked.end("FAILED")

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Say that a trial's process ended, and another goes on with it."""
        logger.warning("%s  goes on from its last checkpoint: %s", trial.config["trial"], _last_line(trial))


def _last_line(trial: TuneTrial) -> str:
    return (str(trial.get_error()).strip().splitlines() or ["its process ended"])[-1]


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
