"""Decode many volumes in parallel."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import mrcfile
import numpy as np
from jaxtyping import Float

from drgn_ray.analysis.run import TrainedRun
from drgn_ray.analysis.volumes import decode_files
from drgn_ray.distributed.tasks import is_cluster_there, run_tasks
from drgn_ray.physics.volume import Finish
from drgn_ray.progress import Progress
from drgn_ray.training.run_directory import RunDirectory

VOLUMES_A_TASK = 4
AS_DECODED = Finish()
_NAME = "vol_{:03d}.mrc"


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
    _run(_tasks(run, folders, finish), sum(map(len, folders.values())), num_workers)
    for folder, latents in folders.items():
        np.savetxt(folder / "z_values.txt", latents)


def decode_runs(
    place: Path,
    num_workers: int | None,
    runs: Sequence[TrainedRun],
    latents: Sequence[Float[np.ndarray, "n Z"]],
    finish: Finish,
) -> list[list[Float[np.ndarray, "D D D"]]]:
    """Decode latents of several runs in parallel, by way of files, so that memory holds only what is looked at.

    Parameters
    ----------
    place
        A folder that all machines see, below which the files stay.
    """
    folders = [Path(tempfile.mkdtemp(dir=place)) for _ in runs]
    tasks = [
        task
        for run, folder, z in zip(runs, folders, latents, strict=True)
        for task in _tasks(run.directory, {folder: z}, finish)
    ]
    _run(tasks, sum(map(len, latents)), num_workers)
    return [
        [np.asarray(mrcfile.mmap(folder / _NAME.format(number)).data) for number in range(len(z))]
        for folder, z in zip(folders, latents, strict=True)
    ]


def _tasks(
    run: RunDirectory, folders: Mapping[Path, Float[np.ndarray, "n Z"]], finish: Finish
) -> list[Callable[[], int]]:
    numbered = [(folder, number, z) for folder, latents in folders.items() for number, z in enumerate(latents)]
    files = [(folder / _NAME.format(number), z) for folder, number, z in numbered]
    parts = [files[start : start + VOLUMES_A_TASK] for start in range(0, len(files), VOLUMES_A_TASK)]
    particles = run.config().particles
    return [partial(decode_files, str(run.path), particles, part, finish) for part in parts]


def _run(tasks: Sequence[Callable[[], int]], num_volumes: int, num_workers: int | None) -> None:
    if num_workers is None and not is_cluster_there():
        num_workers = 0
    with Progress("decode", num_volumes, "volumes") as progress:
        for count in run_tasks(tasks, num_workers=num_workers, on_gpu=True):
            progress.update(count)
