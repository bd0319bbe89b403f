"""Trials of several workers: how many fit beside each other, how Tune hears of them, and what they leave behind.

Ray (2.60) keeps a placement group until the whole job ends, though the process that made it is dead, as that of every
trial is in the end; the next trials then wait for ever.  Ray Train has a cleaner for it, which asks the dashboard
whether that process lives, where there is none asks again for ever, and knows no groups that wait to be placed.  Ray's
control store knows who made a group and whether it lives, with or without a dashboard, so that is what we ask.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.util.placement_group import PlacementGroup, remove_placement_group

from drgn_ray.distributed.cluster import resource_picture, workers_that_fit
from drgn_ray.distributed.watch import watching
from drgn_ray.errors import ResourceError
from drgn_ray.text import counted

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0
ENDING_SECONDS = 60.0  # that processes of ended trials have to die


def at_once(num_workers: int, cpus: int, nodes: Sequence[Mapping[str, float]]) -> int:
    """Count the groups of workers that run at once, with a CPU a machine and one a group left for Ray Data.

    Parameters
    ----------
    num_workers, cpus
        Workers of a group, and CPUs of each.
    nodes
        Resources of every machine that is alive ("CPU", "GPU").

    Raises
    ------
    ResourceError
        Not even one fits.
    """
    total = sum(int(node.get("CPU", 0)) for node in nodes)
    count = min(workers_that_fit(cpus, nodes) // num_workers, total // (num_workers * cpus + 1))
    if not count:
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        raise ResourceError(
            f"a trial of {counted(num_workers, 'worker')}",
            f"with {counted(cpus, 'CPU')}{' and a GPU' if gpus else ''} each and one CPU a machine left for reading,"
            f" it does not fit on {counted(len(nodes), 'machine')} with {counted(total, 'CPU')}"
            f" and {counted(gpus, 'GPU')}",
            "pass a smaller resources.num_workers or resources.cpus_per_worker under base",
        )
    return count


@contextmanager
def telling(results: Callable[[], Sequence[Mapping[str, float]]]) -> Iterator[None]:
    """Tell Tune every result that is added, wherever it is made; all are told in the end."""
    told = len(results())

    def look() -> None:
        nonlocal told
        for result in results()[told:]:
            tune.report(dict(result))  # ends this thread, when Tune stops the trial
            told += 1

    with watching(look, POLL_SECONDS):
        yield


class _Group(NamedTuple):
    """A placement group, and whether its maker is dead."""

    placement_group: PlacementGroup
    is_abandoned: bool


def remove_abandoned() -> None:
    """Free what placement groups of this job hold whose makers are dead."""
    for group in _groups():
        if group.is_abandoned:
            remove_placement_group(group.placement_group)


class Cleaner(tune.Callback):
    """Frees in the driver what trials held that were stopped or killed, once their processes are dead."""

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """See `tune.Callback`."""
        remove_abandoned()


def await_end() -> None:
    """Wait until no placement group is left that a process of this job made; what it holds is then free."""
    deadline = time.monotonic() + ENDING_SECONDS
    while groups := _groups():
        remove_abandoned()
        if time.monotonic() > deadline:
            logger.warning("%d groups of workers whose trials ended go on; %s", len(groups), resource_picture())
            return
        time.sleep(0.1)


def _groups() -> list[_Group]:
    """List placement groups that processes of this job made (and not its driver, as Tune does), and that are there."""
    from ray._private.state import state  # the public table does not say who made a group
    from ray.core.generated import gcs_pb2

    table: Any = gcs_pb2.PlacementGroupTableData  # type: ignore[attr-defined]
    rows = map(table.FromString, state._connect_and_get_accessor().get_placement_group_table())
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    return [
        _Group(PlacementGroup(ray.PlacementGroupID(row.placement_group_id)), row.creator_actor_dead)
        for row in rows
        if row.creator_job_id == job
        and not ray.ActorID(row.creator_actor_id).is_nil()
        and not row.is_detached
        and row.state != table.REMOVED
    ]
