"""Steps that several commands share: open the tracked run, train, embed, analyse."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from drgn_ray.analysis.analyze import Analysis, analyze
from drgn_ray.analysis.consensus import resolutions, write_reconstruction
from drgn_ray.analysis.states import all_particles
from drgn_ray.config import RunConfig
from drgn_ray.distributed.backproject import back_project
from drgn_ray.distributed.embed import embed
from drgn_ray.distributed.trainer import train
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.model import Model
from drgn_ray.particles.backproject import Assignment, Method, half_maps
from drgn_ray.particles.loader import stream_rows
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.fsc import GOLD_STANDARD, HALF
from drgn_ray.tracking.reporter import make_reporter
from drgn_ray.tracking.run import TrackedRun, open_run
from drgn_ray.tracking.summary import one_volume_summary, summary
from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.compare import MOST_IMAGES, Comparison, compare
from drgn_ray.training.embed import (
    load_latents,
    trained_epochs,
    trained_model,
    trained_start,
    trained_zdim,
)
from drgn_ray.training.loop import particle_order
from drgn_ray.training.run_directory import RunDirectory
from jobs.frame import Frame, submitted_job

logger = logging.getLogger(__name__)
RESOLUTIONS = {"resolution_0.5": HALF, "resolution_0.143": GOLD_STANDARD}  # metrics of MLflow, Å


@contextmanager
def tracked_run(run: RunDirectory, config: RunConfig, frame: Frame) -> Iterator[TrackedRun]:
    """Be tracked in MLflow, which learns how it ended."""
    tracked = open_tracked(run, config, frame)
    tracked.begin()
    try:
        yield tracked
    except BaseException as error:
        tracked.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracked.end("FINISHED")


def open_tracked(run: RunDirectory, config: RunConfig, frame: Frame) -> TrackedRun:
    """Open the run's place in MLflow and print its link; its status stays as it is."""
    job = submitted_job()
    tracked = open_run(run, config, {"drgn_ray.job": job} if job else None)
    frame.link(tracked.link)
    if tracked.is_local:
        frame.result(f"see it  drgn-ray ui {run.path.parent}")
    return tracked


def train_run(run: RunDirectory, config: RunConfig) -> None:
    """Train what is left of a run."""
    train(config, run, partial(make_reporter, run, config.num_epochs))


def finish_run(
    run: RunDirectory, tracked: TrackedRun, *, ksample: int | None = None, num_pcs: int | None = None
) -> list[str]:
    """Analyse a run as befits its model; lines on where the results are."""
    config = run.config()
    if not trained_zdim(run, config, ParticleStore(config.particles)):
        return reconstruct_run(run, tracked)
    analysis = analyze_run(run, tracked, ksample=ksample, num_pcs=num_pcs)
    return [f"picture {analysis.folder / 'z_pca.png'}", f"volumes {analysis.kmeans_folder}"]


def reconstruct_run(run: RunDirectory, tracked: TrackedRun) -> list[str]:
    """Decode the volume of a run without latents, compare it with back-projection, and copy all of it to MLflow."""
    config = run.config()
    store = ParticleStore(config.particles)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, position = trained_model(run, config, store, device), load_position(run.checkpoints)
    folder = run.analysis(trained_epochs(run, config, store))
    everything = Assignment(all_particles(len(store)).weight[None], half_maps(store.columns))
    (sums,) = back_project(store, everything, Method())
    against = write_reconstruction(folder, model, store.info, sums)
    tracked.artifacts(folder, folder.name)
    tracked.artifacts(run.config_file)
    tracked.metrics(
        {f"fsc/{name}": against.resolution(against.best_name, value) for name, value in RESOLUTIONS.items()},
        position.images_seen,
    )
    tracked.note(one_volume_summary(run, store.info, position, against))
    return [f"volume  {folder / 'reconstruct.mrc'}", f"against back-projection: {resolutions(against)}"]


def analyze_run(
    run: RunDirectory, tracked: TrackedRun, *, ksample: int | None = None, num_pcs: int | None = None
) -> Analysis:
    """Embed every particle, analyse, and copy all of it to MLflow."""
    config = run.config()
    store = ParticleStore(config.particles)
    embed(run, store).save(run.latents_file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, position = trained_model(run, config, store, device), load_position(run.checkpoints)
    folder = run.analysis(trained_epochs(run, config, store))
    latents = load_latents(run.latents_file)
    ksample = min(20, len(latents.z)) if ksample is None else ksample
    num_pcs = min(2, model.zdim) if num_pcs is None else num_pcs
    analysis = analyze(latents, model, store.info, position, folder, ksample=ksample, num_pcs=num_pcs)
    comparison = compare_run(run, config, store, model)
    tracked.artifacts(folder, folder.name)
    for file in (run.latents_file, run.latents_file.with_suffix(".parquet"), run.config_file):
        tracked.artifacts(file)
    if comparison is not None:
        logger.info("on %d held-out images the model is %s", comparison.num_images, comparison.verdict)
        gains = {"model": comparison.model, "linear": comparison.linear}
        tracked.metrics({f"held_out/{name}": each.mean for name, each in gains.items()}, position.images_seen)
    tracked.note(summary(run, store.info, position, analysis, comparison))
    return analysis


def compare_run(run: RunDirectory, config: RunConfig, store: ParticleStore, model: Model) -> Comparison | None:
    """Compare a run's model with one volume for all, and with the linear subspace that it started from if it did."""
    linear = model if isinstance(model, LinearSubspace) else trained_start(run, store)
    chunks = particle_order(config, store).val_chunks()[: MOST_IMAGES // store.chunk_size]
    if linear is None or not len(chunks):
        return None
    linear = linear.to(model.observer.k.device)
    return compare(model, linear, partial(stream_rows, store, chunks, store.chunk_size))
