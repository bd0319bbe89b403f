"""A trial of a sweep, in the process that Ray Tune gives it: trained, and judged after every epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from ray import tune
from torch import Tensor

from drgn_ray.config import RunConfig
from drgn_ray.distributed import groups
from drgn_ray.distributed.population import donated, go_on_from_donor
from drgn_ray.distributed.train import train
from drgn_ray.errors import ResourceError, StorageError, StoreAwayError, UserError
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.model import Model
from drgn_ray.particles.store import ParticleStore, reopen
from drgn_ray.tracking.reporter import make_reporter
from drgn_ray.tracking.reproduce import tell_origin
from drgn_ray.tracking.run import TrackedRun, open_run
from drgn_ray.training.checkpoint import Position, load_position
from drgn_ray.training.compare import gain
from drgn_ray.training.embed import trained_model
from drgn_ray.training.loop import particle_order
from drgn_ray.training.objective import held_out_bounds
from drgn_ray.training.report import Metrics, Reporters
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.training.schedule import compared_radius
from drgn_ray.training.sweep import Trial
from drgn_ray.training.sweep_directory import CONSENSUS, Outcome, SweepDirectory

GAIN, EPOCH = "held_out/gain", "epoch"
SERVER_PATIENCE = 900  # seconds for which a trial that begins waits for MLflow


def results(directory: SweepDirectory, trial: Trial, longest: int) -> list[dict[str, float]]:
    """List what a trial told after every epoch; one that is fitted at once is at its end, and bars no beginner."""
    (consensus,) = directory.bounds(CONSENSUS).values()
    over = {epoch: gain(bounds, consensus) for epoch, bounds in directory.bounds(trial.name).items()}
    at = {epoch: longest if trial.config.model.is_fitted else epoch for epoch in over}
    return [{EPOCH: at[epoch], GAIN: each.mean, "held_out/gain_error": each.error} for epoch, each in over.items()]


def train_trial(chosen: Mapping[str, str], *, directory: SweepDirectory, longest: int) -> None:
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
    go_on_from_donor(directory, trial, tracked)
    has_workers = config.resources.num_workers > 0
    judge = _Judge(directory, trial, longest, None if has_workers else partial(_tell, directory, trial))
    try:
        tell_origin(tracked, run, config, reopen(config.particles), of_population=directory.sweep().scheduler == "pbt")
        with groups.telling(partial(results, directory, trial, longest)) if has_workers else nullcontext():
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
        return reference_of(self.directory, self.trial.config, self.store)

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
            self.tell(results(self.directory, self.trial, self.longest)[-1])

    def _log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Tell MLflow the results of some epochs."""
        told = results(self.directory, self.trial, self.longest)
        judged = dict(zip(self.directory.bounds(self.trial.name), told, strict=True))
        tracked = TrackedRun(self.directory.run(self.trial.name))
        for line in history:
            if (result := judged.get(int(line["epoch"]))) is not None:
                tracked.metrics({name: value for name, value in result.items() if name != EPOCH}, line["step"])


def reference_of(directory: SweepDirectory, config: RunConfig, store: ParticleStore) -> LinearSubspace:
    """Load the subspace whose noise all trials of a sweep are judged with."""
    found = trained_model(directory.reference, directory.reference.config(), store, _device())
    assert isinstance(found, LinearSubspace)
    return found


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
