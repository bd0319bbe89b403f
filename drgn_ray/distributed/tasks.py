"""Independent pieces of CPU or GPU work as Ray tasks, or here where one process is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from drgn_ray.errors import ConfigError

T = TypeVar("T")
MAX_RETRIES = 3


def run_tasks(tasks: Sequence[Callable[[], T]], *, num_workers: int | None = None, num_gpus: float = 0) -> Iterator[T]:
    """Run tasks and yield their results as they come; each must be safe to run again.

    Parameters
    ----------
    tasks
        Picklable callables without arguments.
    num_workers
        At most this many at a time; None: as many as the cluster has CPUs.  0, or a single task, runs in this process.
    num_gpus
        GPUs a task reserves.

    Raises
    ------
    UserError
        As raised by a task.
    """
    if num_workers is not None and num_workers < 0:
        raise ConfigError(f"--num-workers {num_workers}", "it is a count", "pass 0 or more")
    if num_workers == 0 or len(tasks) <= 1:
        for task in tasks:
            yield task()
        return
    import ray
    from ray.exceptions import RayTaskError

    from drgn_ray.distributed.cluster import connected, user_error_in

    with connected():
        remote = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=MAX_RETRIES)(_call)
        # Twice the CPUs keeps them busy while results are fetched; a number the user gave is kept.
        limit = num_workers or 2 * int(ray.cluster_resources()["CPU"])
        waiting, running = list(reversed(tasks)), []
        while waiting or running:
            while waiting and len(running) < limit:
                running.append(remote.remote(waiting.pop()))
            finished, running = ray.wait(running)
            try:
                yield from ray.get(finished)
            except RayTaskError as error:
                raise user_error_in(error) or error from None


def _call(task: Callable[[], T]) -> T:
    return task()
