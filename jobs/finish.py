"""What follows training: embed every particle, analyse, compare, and copy all of it to MLflow."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from drgn_ray.analysis.analyze import Analysis, analyze
from drgn_ray.analysis.chimerax import write_gallery, write_series
from drgn_ray.analysis.consensus import resolutions, write_reconstruction
from drgn_ray.analysis.explorer import MOST_CLUSTERS, by_category, of_particles, write_explorer
from drgn_ray.analysis.states import all_particles
from drgn_ray.analysis.surface import Framed, framed, write_movie
from drgn_ray.analysis.umap import umap, write_umap
from drgn_ray.config import RunConfig
from drgn_ray.distributed.backproject import back_project
from drgn_ray.distributed.decode import decode_folders
from drgn_ray.distributed.embed import embed
from drgn_ray.distributed.states import compare_states
from drgn_ray.distributed.tasks import beside
from drgn_ray.errors import RunError
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.model import Model
from drgn_ray.particles.backproject import Assignment, Method, half_maps
from drgn_ray.particles.loader import stream_rows
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.fsc import GOLD_STANDARD, HALF
from drgn_ray.tracking.run import TrackedRun
from drgn_ray.tracking.summary import one_volume_summary, summary
from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.compare import MOST_IMAGES, Comparison, compare
from drgn_ray.training.embed import Latents, trained_epochs, trained_model, trained_start, trained_zdim
from drgn_ray.training.loop import particle_order
from drgn_ray.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)
EXPLORER = "explorer.html"
RESOLUTIONS = {"resolution_0.5": HALF, "resolution_0.143": GOLD_STANDARD}  # metrics of MLflow, Å


def finish_run(
    run: RunDirectory,
    tracked: TrackedRun,
    *,
    ksample: int | None = None,
    num_pcs: int | None = None,
    with_umap: bool = False,
) -> list[str]:
    """Analyse a run as befits its model; lines on where the results are."""
    config = run.config()
    if not trained_zdim(run, config, ParticleStore(config.particles)):
        return reconstruct_run(run, tracked)
    analysis = analyze_run(run, tracked, ksample=ksample, num_pcs=num_pcs, with_umap=with_umap)
    return [f"explorer {analysis.folder / EXPLORER}", f"volumes  {analysis.kmeans_folder}"]


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
    run: RunDirectory,
    tracked: TrackedRun,
    *,
    ksample: int | None = None,
    num_pcs: int | None = None,
    with_umap: bool = False,
) -> Analysis:
    """Embed every particle, analyse, and copy all of it to MLflow."""
    config = run.config()
    store = ParticleStore(config.particles)
    if not os.access(run.path, os.W_OK):
        raise RunError(str(run.path), "there is no permission to write here", "analyse a copy of the run")
    latents = embed(run, store)
    if not np.isfinite(latents.z).all():
        raise RunError(str(run.path), "its latents are no numbers", "train again, with a smaller --lr")
    latents.save(run.latents_file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, position = trained_model(run, config, store, device), load_position(run.checkpoints)
    folder = run.analysis(trained_epochs(run, config, store))
    ksample = min(20, len(latents.z)) if ksample is None else ksample
    num_pcs = min(2, *latents.z.shape) if num_pcs is None else num_pcs
    analysis = analyze(latents, position, folder, ksample=ksample, num_pcs=num_pcs)
    with beside(partial(umap, latents.z)) if with_umap else nullcontext() as coordinates:
        decode_folders(run, analysis.volumes)
        write_gallery(analysis.kmeans_folder, folder / "view_kmeans.cxc")
        shown = dict(zip(analysis.volumes, framed([*analysis.volumes]), strict=True))
        for component in range(num_pcs):
            along = folder / f"pc{component + 1}"
            write_series(along, folder / f"movie_{along.name}.cxc")
            write_movie(shown[along], folder / f"movie_{along.name}.mp4")
        explore(run, store, latents, analysis, shown, None if coordinates is None else coordinates())
    comparison = compare_run(run, config, store, model)
    supported = compare_states(run, store, model, latents, analysis.clusters.particles)
    if supported is not None:
        supported.write(folder)
    tracked.artifacts(folder, folder.name)
    for file in (run.latents_file, run.latents_file.with_suffix(".parquet"), run.config_file):
        tracked.artifacts(file)
    if comparison is not None:
        logger.info("on %d held-out images the model is %s", comparison.num_images, comparison.verdict)
        gains = {"model": comparison.model, "linear": comparison.linear}
        tracked.metrics({f"held_out/{name}": each.mean for name, each in gains.items()}, position.images_seen)
    if supported is not None:
        logger.info("%s: %s", supported.about, supported)
        named = {name.replace(" ", "_"): float(supported.scores(name).mean()) for name in supported.curves}
        tracked.metrics({f"states_fsc/{name}": score for name, score in named.items()}, position.images_seen)
    explorer = tracked.link_to(f"{folder.name}/{EXPLORER}")
    tracked.note(summary(run, store.info, position, analysis, comparison, supported, model.describe(), explorer))
    return analysis


def explore(
    run: RunDirectory,
    store: ParticleStore,
    latents: Latents,
    analysis: Analysis,
    shown: Mapping[Path, Framed],
    coordinates: Float32[np.ndarray, "N 2"] | None,
) -> None:
    """Write the explorer of an analysis, and UMAP's coordinates if there are any."""
    by = [
        by_category("k-means", analysis.clusters.labels, MOST_CLUSTERS),
        by_category("Gaussian mixture", analysis.mixture.labels),
        *of_particles(store.columns, latents.source_row),
    ]
    folders, volumes = {_group_name(folder): folder for folder in shown}, [*shown.values()]
    if coordinates is not None:
        write_umap(analysis.folder, latents.source_row, coordinates)
    write_explorer(analysis.folder / EXPLORER, run.path, latents, analysis.pca, by, folders, volumes, coordinates)


def _group_name(folder: Path) -> str:
    name = folder.name
    return f"PC{name[2:]}" if name.startswith("pc") else "k-means centres" if "kmeans" in name else "Gaussian means"


def compare_run(run: RunDirectory, config: RunConfig, store: ParticleStore, model: Model) -> Comparison | None:
    """Compare a run's model with one volume for all, and with the linear subspace that it started from if it did."""
    linear = model if isinstance(model, LinearSubspace) else trained_start(run, store)
    chunks = particle_order(config, store).val_chunks()[: MOST_IMAGES // store.chunk_size]
    if linear is None or not len(chunks):
        return None
    linear = linear.to(model.observer.k.device)
    return compare(model, linear, partial(stream_rows, store, chunks, store.chunk_size))
