"""Steps that several commands share: open the tracked run, and train it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from drgn_ray.config import RunConfig
from drgn_ray.distributed.train import train
from drgn_ray.particles.store import ParticleStore
from drgn_ray.tracking.location import local_database
from drgn_ray.tracking.reporter import make_reporter
from drgn_ray.tracking.reproduce import tell_command, tell_origin
from drgn_ray.tracking.run import ERROR, TrackedRun, open_run
from drgn_ray.training.run_directory import RunDirectory
from jobs.frame import Frame, submitted_job


def check_machines(config: RunConfig, run: RunDirectory) -> None:
    """Refuse to train where machines or storage cannot; nothing is looked at for what one process does without Ray.

    MLflow is asked by what follows: a run of ours begins there, or goes on without it.
    """
    resources = config.resources
    if resources.num_workers == 0 or (config.model.is_fitted and resources.num_workers == 1):
        return
    from drgn_ray.distributed.preflight import preflight
    from drgn_ray.distributed.trainer import own_cpus, plan_resources

    plan = partial(plan_resources, resources)
    preflight(config.particles, run.path, plan, own_cpus(resources), resources.awaited_gpus)


@contextmanager
def tracked_run(run: RunDirectory, config: RunConfig, frame: Frame) -> Iterator[TrackedRun]:
    """Be tracked in MLflow, which learns how it ended."""
    tracked = open_tracked(run, config, frame)
    tracked.begin()
    with end_told(tracked):
        tell_command(tracked, submitted_job())
        tell_origin(tracked, run, config, ParticleStore(config.particles))
        yield tracked


@contextmanager
def end_told(tracked: TrackedRun) -> Iterator[None]:
    """Tell MLflow how what is done here ended."""
    try:
        yield
    except BaseException as error:
        tracked.set_tag(ERROR, " ".join(str(error).split())[:500] or type(error).__name__)
        tracked.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracked.end("FINISHED")


def open_tracked(run: RunDirectory, config: RunConfig, frame: Frame) -> TrackedRun:
    """Open the run's place in MLflow and print its link; its status stays as it is."""
    tracked = open_run(run, config)
    frame.link(served(tracked, tracked.link))
    return tracked


def served(tracked: TrackedRun, link: str) -> str:
    """Say with a link which command serves it, where runs are tracked in a file."""
    database = local_database(tracked.uri)
    return f"{link} (once `drgn-ray ui {database.parent}` runs)" if database else link


def train_run(run: RunDirectory, config: RunConfig) -> None:
    """Train what is left of a run."""
    train(config, run, partial(make_reporter, run, config.num_epochs))


def train_and_finish(run: RunDirectory, config: RunConfig, frame: Frame, *, analysis: bool) -> None:
    """Train what is left of a run that has begun, and analyse it."""
    with tracked_run(run, config, frame) as tracked:
        train_run(run, config)
        if analysis:
            from jobs.finish import finish_run

            frame.result(*finish_run(run, tracked))
