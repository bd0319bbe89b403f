"""Training on Ray Train: one worker a GPU, or several CPU workers, fed by Ray Data."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from drgn_ray import config as settings
from drgn_ray.distributed.cluster import (
    alive_nodes,
    await_machines,
    connected,
    resource_picture,
    user_error_in,
    workers_that_fit,
)
from drgn_ray.distributed.follow import following
from drgn_ray.distributed.groups import remove_abandoned
from drgn_ray.distributed.network import NetworkConfig
from drgn_ray.distributed.reader import slice_dataset, stream_batches
from drgn_ray.errors import ResourceError, RunError
from drgn_ray.particles.store import ParticleStore, reopen
from drgn_ray.text import counted
from drgn_ray.training.checkpoint import load_position, set_damaged_aside
from drgn_ray.training.embed import pending_start
from drgn_ray.training.loop import BackedOff, Diverged, Trainer, Worker, particle_order
from drgn_ray.training.report import MakeReporter
from drgn_ray.training.run_directory import LogFile, RunDirectory

logger = logging.getLogger(__name__)
MAX_FAILURES = 3
ITS_DEATH = (ActorDiedError, OutOfMemoryError)  # of Ray Train's controller
HUNG_SECONDS = 60  # after which a worker that does not answer is ended, and all begin again from the checkpoint
RESIZE_SECONDS = 30.0  # from one look at how many workers fit to the next
COLLECTIVE_SECONDS = 600.0  # for which workers wait for each other's gradients, if Ray did not notice before
# More than a CPU that each worker takes, so that a machine's last one is never a worker's: reading needs half of it.
SLIVER = 0.001
_BOOKKEEPING = ".ray_train_"


@dataclass(frozen=True)
class Resources:
    """What each training worker reserves, and how many there are."""

    num_workers: int
    cpus: int
    use_gpu: bool
    max_workers: int | None = None

    def __str__(self) -> str:
        most = f" to {self.max_workers}" if self.max_workers else ""
        return f"workers: {self.num_workers}{most}, each with CPUs: {self.cpus}{', GPUs: 1' if self.use_gpu else ''}"


def plan_resources(resources: settings.ResourcesConfig, nodes: list[Mapping[str, float]]) -> Resources:
    """Fit the workers on the machines, with a CPU a machine left for Ray Data, which would otherwise starve silently.

    Parameters
    ----------
    nodes
        Resources of every machine that is alive ("CPU", "GPU").
    """
    num_workers, most = resources.num_workers, resources.max_workers
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    use_gpu = gpus > 0
    if use_gpu and gpus < num_workers:
        raise ResourceError(
            f"--workers {num_workers}", f"the cluster has {counted(gpus, 'GPU')}", f"pass at most {gpus}"
        )
    spare = [max(int(node.get("CPU", 0)) - 1, 0) for node in nodes]
    cpus = resources.cpus_per_worker
    if cpus is None:
        count = min(most or num_workers, max(workers_that_fit(1, nodes), num_workers))
        cpus = next(c for c in range(max([*spare, 1]), 0, -1) if c == 1 or workers_that_fit(c, nodes) >= count)
    fitting = workers_that_fit(cpus, nodes)
    if fitting < num_workers:
        total = sum(int(node.get("CPU", 0)) for node in nodes)
        raise ResourceError(
            f"--workers {num_workers}",
            f"with {counted(cpus, 'CPU')} a worker and one CPU a machine left for reading,"
            f" {counted(fitting, 'worker')} can be on {counted(len(nodes), 'machine')} with {counted(total, 'CPU')}",
            f"pass at most {fitting}" if fitting else "pass --workers 0 to train in one process without Ray",
        )
    return Resources(num_workers, cpus, use_gpu, most)


def own_cpus(resources: settings.ResourcesConfig) -> int:
    """CPUs of a Ray of our own on this machine: those it has, or what workers need and one for reading besides."""
    num_workers = resources.max_workers or resources.num_workers
    return max(os.cpu_count() or 1, num_workers * (resources.cpus_per_worker or 1) + 1)


def train_on_ray(
    config: settings.RunConfig, store: ParticleStore, run: RunDirectory, make_reporter: MakeReporter
) -> None:
    """Train what is left of a run with as many workers as its settings say, see `drgn_ray.distributed.train`."""
    with connected(num_cpus=own_cpus(config.resources)):
        if config.resources.awaited_gpus:
            await_machines("GPU", config.resources.awaited_gpus)
        resources = plan_resources(config.resources, alive_nodes())
        logger.info("starting %s", resources)
        _fit(config, store, run, make_reporter, resources)


def _fit(
    config: settings.RunConfig,
    store: ParticleStore,
    run: RunDirectory,
    make_reporter: MakeReporter,
    resources: Resources,
) -> None:
    """Train until it is done, or until workers fail `MAX_FAILURES` times without a slice in between."""
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(HUNG_SECONDS))
    drop_bookkeeping(run)
    while True:
        remove_abandoned()  # what a controller that died still holds, or a trial whose process was killed
        before = load_position(run.checkpoints).next_slice
        # Ray Train wants a folder that all machines see, though checkpoints are ours.
        with tempfile.TemporaryDirectory(prefix=_BOOKKEEPING, dir=run.path) as bookkeeping:
            trainer = _trainer(config, store, run, make_reporter, resources, bookkeeping)
            try:
                with following(run.log_file, partial(_room, resources)):
                    ended = trainer.fit().return_value
                if not isinstance(ended, BackedOff):
                    break
            except (ray.train.TrainingFailedError, *ITS_DEATH) as error:  # workers died, or Ray Train itself
                mistake = user_error_in(error) or _unplaced(error, resources)
                if mistake or load_position(run.checkpoints).next_slice == before:
                    raise mistake or _unconnected(error) or _died(error, run) or error from None
                logger.warning("workers or Ray Train died, and the training went on in between: it does so again")
            except SystemExit:  # what Ray Train makes of Ctrl-C
                raise KeyboardInterrupt from None
    if ended is not None:
        raise ended


def _trainer(
    config: settings.RunConfig,
    store: ParticleStore,
    run: RunDirectory,
    make_reporter: MakeReporter,
    resources: Resources,
    bookkeeping: str,
) -> _Trainer:
    order = particle_order(config, store)

    def remaining_slices() -> ray.data.Dataset:  # evaluated again whenever the workers start again
        run.await_storage()
        with run.log_to_file():
            set_damaged_aside(run.checkpoints)
        return slice_dataset(store, order, load_position(run.checkpoints).next_slice)

    num_workers, most = resources.num_workers, resources.max_workers
    return _Trainer(
        _train_worker,
        train_loop_config={
            "config": config.model_dump(),
            "run": str(run.path),
            "make_reporter": make_reporter,
            "cpus": resources.cpus,
        },
        datasets={"train": remaining_slices},
        torch_config=NetworkConfig(timeout_s=COLLECTIVE_SECONDS),  # type: ignore[arg-type]
        scaling_config=ScalingConfig(
            num_workers=(num_workers, most) if most else num_workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus + SLIVER} | ({"GPU": 1} if resources.use_gpu else {}),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name=run.path.name,
            storage_path=bookkeeping,
            callbacks=[_SaysFailures(run)],
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),
        ),
    )


class _SaysFailures(UserCallback):
    """Says, in the process that starts workers again, why it does."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """See `UserCallback`."""
        for rank, error in worker_exceptions.items():
            self.run.log_line(f"worker {rank} failed ({_last_line(error)}); all begin again from the last checkpoint")


def _last_line(error: Exception) -> str:
    return next(reversed(str(error).strip().splitlines()), type(error).__name__)


class _Trainer(TorchTrainer):
    """Without Ray's actor that removes placement groups of dead processes: see `drgn_ray.distributed.groups`."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]


def _room(resources: Resources) -> str:
    """Say whether the machines that are alive have room for the workers."""
    alive = alive_nodes()
    fitting = workers_that_fit(resources.cpus, alive, resources.use_gpu)
    if fitting >= resources.num_workers:
        return resource_picture()
    return (
        f"{fitting} of {resources.num_workers} workers fit on the machines that are alive, beside a CPU each for"
        " reading; start those that are missing, or stop this and pass fewer --workers"
    )


def drop_bookkeeping(run: RunDirectory) -> None:
    """Delete what Ray Train left in a run whose process was killed."""
    for left_over in run.path.glob(f"{_BOOKKEEPING}*"):
        shutil.rmtree(left_over, ignore_errors=True)


def _unplaced(error: Exception, resources: Resources) -> ResourceError | None:
    """Say what is free, if the workers found no place: Ray Train tries four times for a minute each, and gives up."""
    failure = getattr(error, "controller_failure", None)
    if type(failure).__name__ != "WorkerGroupStartupTimeoutError":
        return None
    return ResourceError(
        f"{counted(resources.num_workers, 'worker')} of {counted(resources.cpus, 'CPU')}"
        f"{' and a GPU' if resources.use_gpu else ''} each",
        f"no place came free in {MAX_FAILURES + 1} attempts; {resource_picture()}",
        "give the same command again when there is room, or pass fewer workers",
    )


def _unconnected(error: Exception) -> ResourceError | None:
    """Say that workers did not find each other."""
    failure = str(getattr(error, "controller_failure", ""))
    if "_setup_torch_process_group" not in failure:
        return None
    return ResourceError(
        "the network between workers",
        f"they cannot reach each other ({failure.strip().splitlines()[-1]})",
        "let the machines reach all ports of each other, or say on each which interface to use: GLOO_SOCKET_IFNAME for"
        " CPUs, NCCL_SOCKET_IFNAME for GPUs, before `ray start`",
    )


def _died(error: Exception, run: RunDirectory) -> RunError | None:
    """Say that workers ended, if it was no exception of theirs: those are ours to mend."""
    failures = [*getattr(error, "worker_failures", {}).values()]
    ended = [failure for failure in failures if type(failure).__name__.startswith("WorkerHealthCheck")]
    if not ended:
        return None
    found = f"workers ended {MAX_FAILURES + 1} times and nothing was trained in between ({_last_line(ended[0])})"
    remedy = "see whether machines run out of memory, and give the same command again"
    return RunError(str(run.path), found, remedy)


def _train_worker(loop: Mapping[str, object]) -> Diverged | BackedOff | None:
    """Train in one worker; a divergence is returned, since Ray counts what is raised as a failure."""
    run = RunDirectory(Path(str(loop["run"])))
    run.await_storage()
    context = ray.train.get_context()
    ours = logging.getLogger("drgn_ray")  # and no one else's: Ray logs every report
    ours.setLevel(logging.INFO)
    ours.addHandler(LogFile(run.log_file) if context.get_world_rank() == 0 else logging.StreamHandler())
    config = settings.RunConfig.model_validate(loop["config"])
    torch.set_num_threads(int(loop["cpus"]))  # type: ignore[arg-type]
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    shard = ray.train.get_dataset_shard("train")
    assert shard is not None
    batch_size = config.training.batch_size // worker.world_size
    if worker.rank == 0 and config.resources.max_workers:
        logger.info("%s, each with %d images of a batch", counted(worker.world_size, "worker"), batch_size)
    store = reopen(config.particles)
    trainer = Trainer(
        config,
        store,
        run,
        lambda slice_index: stream_batches(shard, slice_index, batch_size),
        loop["make_reporter"](),  # type: ignore[operator]
        worker,
        pending_start(run, store),
    )
    try:
        trainer.fit(on_slice_end=lambda metrics: ray.train.report(dict(metrics)))
    except Diverged as error:
        return error
    except BackedOff as backed_off:
        if worker.rank == 0:
            logger.warning("%s", backed_off)
        return backed_off
    return None
