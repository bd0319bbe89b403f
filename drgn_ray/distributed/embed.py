"""Embed a whole store in parallel."""

from __future__ import annotations

from functools import partial

import numpy as np

from drgn_ray.distributed.tasks import run_tasks
from drgn_ray.particles.store import ParticleStore
from drgn_ray.progress import Progress
from drgn_ray.training.embed import Latents, embed_chunks, in_source_order
from drgn_ray.training.run_directory import RunDirectory

PARTICLES_A_TASK = 50_000


def embed(run: RunDirectory, store: ParticleStore, num_workers: int | None = None) -> Latents:
    """Latents of every particle of a store under a run's newest checkpoint.

    Parameters
    ----------
    num_workers
        See `run_tasks`.
    """
    num_tasks = max(1, round(len(store) / PARTICLES_A_TASK))
    bounds = np.linspace(0, store.num_chunks, num_tasks + 1).astype(int).tolist()
    tasks = [
        partial(embed_chunks, str(run.path), store.path, first, last)
        for first, last in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    parts = []
    with Progress("embed", len(store), "particles") as progress:
        for part in run_tasks(tasks, num_workers=num_workers, on_gpu=True):
            parts.append(part)
            progress.update(len(part.z))
    return in_source_order(parts)
