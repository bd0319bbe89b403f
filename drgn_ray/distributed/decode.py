"""Decode many volumes in parallel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from drgn_ray.analysis.volumes import decode_files
from drgn_ray.distributed.tasks import is_cluster_there, run_tasks
from drgn_ray.physics.volume import Finish
from drgn_ray.progress import Progress
from drgn_ray.training.run_directory import RunDirectory

VOLUMES_A_TASK = 4
AS_DECODED = Finish()


def decode_folders(
    run: RunDirectory,
    folders: Mapping[Path, Float[np.ndarray, "n Z"]],
    finish: Finish = AS_DECODED,
    num_workers: int | None = None,
) -> None:
    """Write ``vol_000.mrc``, ``vol_001.mrc``, ... and their latents in ``z_values.txt`` into each folder.

    Parameters
    ----------
    folders
        Each with its latents.
    num_workers
        See `run_tasks`; None: as many as a cluster that is there has CPUs, else none: a Ray of our own takes seconds.
    """
    files = [
        (folder / f"vol_{number:03d}.mrc", z) for folder, latents in folders.items() for number, z in enumerate(latents)
    ]
    parts = [files[start : start + VOLUMES_A_TASK] for start in range(0, len(files), VOLUMES_A_TASK)]
    particles = run.config().particles
    tasks = [partial(decode_files, str(run.path), particles, part, finish) for part in parts]
    if num_workers is None and not is_cluster_there():
        num_workers = 0
    with Progress("decode", len(files), "volumes") as progress:
        for count in run_tasks(tasks, num_workers=num_workers, on_gpu=True):
            progress.update(count)
    for folder, latents in folders.items():
        np.savetxt(folder / "z_values.txt", latents)
