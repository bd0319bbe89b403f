"""Train a run: fit what is fitted, then step by step in this process or on Ray Train."""

from __future__ import annotations

import logging

import torch

from drgn_ray import config as settings
from drgn_ray.distributed.linear import fit_start, train_linear
from drgn_ray.errors import ConfigError, StoreError
from drgn_ray.particles.loader import stream_slice
from drgn_ray.particles.store import ParticleStore, reopen
from drgn_ray.training.checkpoint import load_position, set_damaged_aside
from drgn_ray.training.embed import pending_start
from drgn_ray.training.loop import BackedOff, Trainer, Worker, particle_order
from drgn_ray.training.report import MakeReporter
from drgn_ray.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def check(config: settings.RunConfig, store: ParticleStore) -> None:
    """Refuse settings that these particles and workers cannot be trained with."""
    particle_order(config, store)
    radius, half = config.model.dec_radius, store.info.box_size // 2
    if radius is not None and radius > half:
        raise ConfigError(
            f"--dec-radius {radius}", f"images of {2 * half} px have {half} shells", f"pass at most {half}"
        )
    if config.model.downsample is not None and config.model.downsample > store.info.box_size:
        raise ConfigError(
            f"--downsample {config.model.downsample}",
            f"images of {store.path} have {store.info.box_size} px",
            "pass a smaller one, or leave it out",
        )
    if not store.info.hartley_std:
        raise StoreError(store.path, "its images are blank", "extract them again, and convert those")
    resources, batch_size = config.resources, config.training.batch_size
    workers, most = resources.num_workers, resources.max_workers
    if most is not None and batch_size < most:
        raise ConfigError(f"--batch-size {batch_size}", f"{most} workers would share it", f"pass at least {most}")
    if most is None and not config.model.is_fitted and batch_size % max(workers, 1):
        raise ConfigError(
            f"--batch-size {batch_size}",
            f"it cannot be shared equally by {workers} workers",
            f"pass a multiple of {workers}",
        )


def train(config: settings.RunConfig, run: RunDirectory, make_reporter: MakeReporter) -> None:
    """Train what is left of a run.

    Parameters
    ----------
    make_reporter
        Called in the first worker's process.
    """
    with run.log_end():
        _train(config, run, make_reporter)


def _train(config: settings.RunConfig, run: RunDirectory, make_reporter: MakeReporter) -> None:
    store = reopen(config.particles)
    check(config, store)
    run.await_storage()
    set_damaged_aside(run.checkpoints)
    workers, order = config.resources.num_workers, particle_order(config, store)
    position = load_position(run.checkpoints)
    if position.store_digest not in ("", store.digest):
        remedy = "bring that back, or pass another -o"
        raise StoreError(store.path, f"it is not the store that {run.path} was trained on", remedy)
    if position.next_slice >= config.num_epochs * order.slices_per_epoch:
        logger.info("all %d epochs are trained already", config.num_epochs)
        return
    with run.log_to_file():
        if config.model.is_fitted:
            train_linear(config, store, run, make_reporter())
            return
        fit_start(config, store, run)
        if workers == 0:
            _train_here(config, store, run, make_reporter)
    if workers:
        from drgn_ray.distributed.trainer import train_on_ray  # Ray Train takes a second to import

        train_on_ray(config, store, run, make_reporter)


def _train_here(
    config: settings.RunConfig, store: ParticleStore, run: RunDirectory, make_reporter: MakeReporter
) -> None:
    worker = Worker(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    order = particle_order(config, store)
    batch_size = config.training.batch_size
    stream = lambda index: stream_slice(store, order, index, batch_size)  # noqa: E731
    while True:
        try:
            Trainer(config, store, run, stream, make_reporter(), worker, pending_start(run, store)).fit()
            return
        except BackedOff as backed_off:
            logger.warning("%s", backed_off)
