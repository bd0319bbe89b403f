"""Decode many volumes in parallel."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import mrcfile
import numpy as np
from jaxtyping import Float, Float32

from drgn_ray.analysis.run import TrainedRun
from drgn_ray.analysis.volumes import decode_files, decode_part, volume_name
from drgn_ray.distributed.tasks import is_cluster_there, run_tasks
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.volume import Finish
from drgn_ray.progress import Progress
from drgn_ray.training.run_directory import RunDirectory

T = TypeVar("T")
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
    _write(_writing(run, folders, finish), sum(map(len, folders.values())), num_workers)
    for folder, latents in folders.items():
        np.savetxt(folder / "z_values.txt", latents)


def decode_runs(
    place: Path,
    num_workers: int | None,
    runs: Sequence[TrainedRun],
    latents: Sequence[Float[np.ndarray, "n Z"]],
    finish: Finish,
) -> list[list[Float[np.ndarray, "D D D"]]]:
    """Decode latents of several runs by way of files, so that memory holds only what is looked at.

    Parameters
    ----------
    place
        A folder that all machines see, below which the files stay.
    """
    folders = [Path(tempfile.mkdtemp(dir=place)) for _ in runs]
    tasks = [
        task
        for run, folder, z in zip(runs, folders, latents, strict=True)
        for task in _writing(run.directory, {folder: z}, finish)
    ]
    _write(tasks, sum(map(len, latents)), num_workers)
    return [
        [np.asarray(mrcfile.mmap(folder / volume_name(number)).data) for number in range(len(z))]
        for folder, z in zip(folders, latents, strict=True)
    ]


def decode_volumes(
    run: RunDirectory, z: Float[np.ndarray, "n Z"], finish: Finish, num_workers: int | None = None
) -> Float32[np.ndarray, "n d d d"]:
    """Decode latents into memory; for `num_workers` see `decode_folders`."""
    config = run.config()
    side = finish.side(ParticleStore(config.particles).info.box_size)
    volumes = np.empty((len(z), side, side, side), np.float32)
    tasks = [
        partial(decode_part, str(run.path), config.particles, start, z[start : start + VOLUMES_A_TASK], finish)
        for start in range(0, len(z), VOLUMES_A_TASK)
    ]
    with Progress("decode", len(z), "volumes") as progress:
        for start, part in _run(tasks, num_workers):
            volumes[start : start + len(part)] = part
            progress.update(len(part))
    return volumes


def _writing(
    run: RunDirectory, folders: Mapping[Path, Float[np.ndarray, "n Z"]], finish: Finish
) -> list[Callable[[], int]]:
    """Tasks that write some volumes each, and return how many."""
    numbered = [(folder, number, z) for folder, latents in folders.items() for number, z in enumerate(latents)]
    files = [(folder / volume_name(number), z) for folder, number, z in numbered]
    parts = [files[start : start + VOLUMES_A_TASK] for start in range(0, len(files), VOLUMES_A_TASK)]
    particles = run.config().particles
    return [partial(decode_files, str(run.path), particles, part, finish) for part in parts]


def _write(tasks: Sequence[Callable[[], int]], num_volumes: int, num_workers: int | None) -> None:
    with Progress("decode", num_volumes, "volumes") as progress:
        for count in _run(tasks, num_workers):
            progress.update(count)


def _run(tasks: Sequence[Callable[[], T]], num_workers: int | None) -> Iterator[T]:
    if num_workers is None and not is_cluster_there():
        num_workers = 0
    return run_tasks(tasks, num_workers=num_workers, on_gpu=True)
