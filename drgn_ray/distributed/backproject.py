"""Back-project a store in parallel: partial sums on every worker, one reduction here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from jaxtyping import Float

from drgn_ray.distributed.tasks import is_cluster_there, run_tasks
from drgn_ray.particles.backproject import Assignment, Method, accumulate
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.symmetry import point_group
from drgn_ray.progress import Progress

IMAGES_A_TASK = 4_000
MOST_TASKS = 128  # so that the reduction does not grow with the number of particles
WORK_BOX = 128  # px, of the images counted above; others count by their pixels, and as often as a group has rotations
FEW_IMAGES = 50_000  # which one process inserts before a Ray of our own has started
SUMS_BYTES = 1 << 28  # of a task's float32 sums, of which it holds four times as much; else in several passes


def back_project(
    store: ParticleStore, assignment: Assignment, method: Method, num_workers: int | None = None
) -> Iterator[Float[np.ndarray, "2 S S H 3"]]:
    """Yield the sums of each volume of an assignment, in order; as many are made at a time as memory has room for.

    The tasks are cut by the store, not by the workers, and summed in float64, so their number and order change nothing
    that float32 shows.

    Parameters
    ----------
    assignment
        Over all rows of the store.
    num_workers
        Tasks at a time; None: as many as the cluster has CPUs, or none (this process) where images are few and no
        cluster is there.
    """
    if num_workers is None and _work(store, method) <= FEW_IMAGES and not is_cluster_there():
        num_workers = 0
    side = store.info.box_size + 3
    at_once = max(SUMS_BYTES // (2 * side * side * (side // 2 + 1) * 3 * 4), 1)
    num_volumes = len(assignment.weight)
    num_passes = -(-num_volumes // at_once)
    with Progress("back-project", num_passes * len(store), "images") as progress:
        for first in range(0, num_volumes, at_once):
            weight = assignment.weight[first : first + at_once]
            yield from _reduced(store, Assignment(weight, assignment.half), method, num_workers, progress)


def _reduced(
    store: ParticleStore, assignment: Assignment, method: Method, num_workers: int | None, progress: Progress
) -> Float[np.ndarray, "v 2 S S H 3"]:
    num_tasks = min(max(_work(store, method) // IMAGES_A_TASK, 1), MOST_TASKS, store.num_chunks)
    bounds = np.linspace(0, store.num_chunks, num_tasks + 1).astype(int).tolist()
    ranges = list(zip(bounds[:-1], bounds[1:], strict=True))

    def tasks() -> Iterator[partial]:
        for first, last in ranges:
            rows = slice(store.chunk_rows(first).start, store.chunk_rows(last - 1).stop)
            mine = Assignment(assignment.weight[:, rows], assignment.half[rows])
            yield partial(accumulate, store.absolute_path, first, last, mine, method)

    total: Float[np.ndarray, "v 2 S S H 3"] | None = None
    for part in run_tasks(tasks(), num_workers=num_workers, on_gpu=True):
        total = part.sums.astype(np.float64) if total is None else np.add(total, part.sums, out=total)
        progress.update(part.num_images)
    assert total is not None
    return total


def _work(store: ParticleStore, method: Method) -> int:
    """Images of `WORK_BOX` that would cost as much."""
    return int(len(store) * len(point_group(method.sym)) * (store.info.box_size / WORK_BOX) ** 2)
