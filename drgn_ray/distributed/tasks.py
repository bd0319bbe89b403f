"""Independent pieces of CPU or GPU work as Ray tasks, or here where one process is enough."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar, cast

from drgn_ray.errors import ConfigError, ResourceError

T = TypeVar("T")
MAX_RETRIES = 3


def run_tasks(
    tasks: Iterable[Callable[[], T]],
    *,
    num_workers: int | None = None,
    on_gpu: bool = False,
    keep: bool = False,
    memory: int = 0,
) -> Iterator[T]:
    """Run tasks and yield their results as they come; each must be safe to run again.

    Parameters
    ----------
    tasks
        Picklable callables without arguments; each is asked for when there is room for it.
    num_workers
        At most this many at a time; None: as many as the cluster has CPUs.  0, or a single task, runs in this process.
    on_gpu
        Each task reserves a GPU, where the cluster has any.
    keep
        Yield what stands for the results, which stay where they were made.  As arguments of other tasks (`partial`)
        they are the results; the caller is `connected` for as long.
    memory
        Bytes that a task reserves, so that no machine gets more of them than it has room for.

    Raises
    ------
    ResourceError
        No machine of the cluster has as much memory.
    UserError
        As raised by a task.
    """
    if num_workers is not None and num_workers < 0:
        raise ConfigError(f"--workers {num_workers}", "it is a count", "pass 0 or more")
    tasks = iter(tasks)
    first_two = list(islice(tasks, 2))
    waiting = chain(first_two, tasks)
    if num_workers == 0 or len(first_two) <= 1:
        for task in waiting:
            yield task()
        return
    import ray
    from ray.exceptions import RayTaskError

    from drgn_ray.distributed.cluster import alive_nodes, connected, user_error_in

    with connected():
        num_gpus = int(on_gpu and ray.cluster_resources().get("GPU", 0) > 0)
        nodes = alive_nodes()
        offered = [node.get("memory", 0) for node in nodes if node.get("CPU", 0) and node.get("GPU", 0) >= num_gpus]
        if memory > max(offered, default=0):  # Ray would wait for such a machine for ever
            raise ResourceError(
                f"a task that needs {memory / 1e9:.1f} GB of memory",
                f"the largest machine {'with a GPU ' * num_gpus}offers {max(offered, default=0) / 1e9:.1f} GB",
                "use larger machines, or --workers 0 on one that has as much",
            )
        remote = ray.remote(num_cpus=1, num_gpus=num_gpus, memory=memory, max_retries=MAX_RETRIES)(_call)
        # Twice the CPUs keeps them busy while results are fetched; a number the user gave is kept.
        limit = num_workers or 2 * int(ray.cluster_resources()["CPU"])
        running = [remote.remote(task) for task in islice(waiting, limit)]
        while running:
            finished, running = ray.wait(running, fetch_local=not keep)
            running += [remote.remote(task) for task in islice(waiting, len(finished))]
            try:
                yield from cast("list[T]", finished) if keep else ray.get(finished)
            except RayTaskError as error:
                raise user_error_in(error) or error from None


@contextmanager
def beside(task: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Do work of one CPU beside what this process does, where a Ray runs; what is yielded waits for its result.

    Without a Ray the work is done when its result is asked for.
    """
    if not is_cluster_there():
        yield task
        return
    import ray

    from drgn_ray.distributed.cluster import connected

    with connected():
        running = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_call).remote(task)
        yield lambda: ray.get(running)


def is_cluster_there() -> bool:
    """Whether tasks find a Ray that runs already; starting one takes seconds, which few short tasks do not pay for."""
    if "RAY_ADDRESS" in os.environ:
        return True
    if "ray" not in sys.modules:  # importing it takes a second
        return False
    import ray

    return ray.is_initialized()


def memory_here() -> int:
    """Bytes of memory that this machine, or the container that this process is in, has."""
    limit = Path("/sys/fs/cgroup/memory.max")
    of_container = limit.read_text().strip() if limit.exists() else ""
    of_machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(of_machine, int(of_container)) if of_container.isdecimal() else of_machine


def _call(task: Callable[[], T]) -> T:
    if not isinstance(task, partial):
        return task()
    import ray

    kept = [ray.get(each) if isinstance(each, ray.ObjectRef) else each for each in task.args]
    return task.func(*kept, **task.keywords)
