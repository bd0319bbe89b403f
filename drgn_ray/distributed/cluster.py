"""Connecting to Ray, and what its machines have."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import ray
from ray import exceptions
from ray.util.placement_group import placement_group, remove_placement_group

from drgn_ray.errors import ResourceError, UserError

logger = logging.getLogger(__name__)
ANSWER_SECONDS = 10.0
MOST_SHOWN = 300  # characters
PATIENCE_SECONDS = 900.0  # that machines have to come: in a cloud they are rented, started and set up
SAID_SECONDS = 30.0  # between two lines of the same

# What Ray raises where a process of it is gone.
_ENDED = (
    exceptions.RayActorError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,
    exceptions.OutOfDiskError,
)
_NO_CONNECTION = (OSError, ValueError, RuntimeError, exceptions.RayError)
_SILENT: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # bars flood the logs of jobs
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay where the user's relative paths mean what they say
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning on machines without GPUs
}


@contextmanager
def connected(num_cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray: the cluster of ``RAY_ADDRESS`` (set in a job), else one of our own on this machine.

    What processes of Ray print stays in Ray's own logs; results and errors come back as values, training's lines by
    the run's log file.

    Parameters
    ----------
    num_cpus
        Logical CPUs of our own; None: what the machine has, and at least two, so that reading and training both fit.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    if "RAY_ADDRESS" in os.environ:
        _connect(os.environ["RAY_ADDRESS"])
        await_machines("CPU", 1)  # a cluster that grows from nothing has a head where no work goes
    else:
        logger.info("starting Ray on this machine (set RAY_ADDRESS to use a cluster)")
        # It warns that a new cluster of our own is protected by a token, which is as it should be.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        _start(max(os.cpu_count() or 1, 2) if num_cpus is None else num_cpus)
    _say_errors_briefly()
    if threading.current_thread() is threading.main_thread():  # Ray's handler would print a stack and abort
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    head = ray.get_runtime_context().gcs_address
    try:
        yield
    except exceptions.RayError as error:
        if mistake := user_error_in(error):
            raise mistake from None
        if not _answers(head):
            remedy = "when a cluster is there again, the same command goes on from the last checkpoint"
            raise ResourceError(f"Ray at {head}", "it does not answer any more", remedy) from error
        if not isinstance(error, _ENDED) or getattr(error, "actor_init_failed", False):  # which is ours to mend
            raise
        found = f"a process of its own ended ({shorten(str(error), MOST_SHOWN)})"
        remedy = "see whether memory, or the disk of Ray's files, is full somewhere; the same command goes on"
        raise ResourceError("Ray", found, remedy) from error
    finally:
        ray.shutdown()


def _start(num_cpus: int) -> None:
    """Start a cluster of our own on this machine, or say why that cannot be."""
    try:
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **_SILENT)
    except _NO_CONNECTION as error:
        remedy = "see what is wrong there; RAY_TMPDIR names another folder for Ray's files"
        raise ResourceError("Ray", f"it cannot start on this machine ({error})", remedy) from error


def _answers(address: str) -> bool:
    try:
        _knock(address)
    except OSError:
        return False
    return True


def _knock(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()


def _say_errors_briefly() -> None:
    """Log a line of what machines report; Ray prints pages, for each task the same, though it is told to be quiet."""
    from ray._private import worker

    news = News()

    def say(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        del ignore_prefix
        for line in map(brief, data["lines"]):
            if news.is_new(line, time.monotonic()):
                logger.warning("Ray: %s", line)

    worker.print_to_stdstream = say


class News:
    """Knows what was said in the last `SAID_SECONDS`, whatever ids and numbers were in it."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def is_new(self, line: str, now: float) -> bool:
        """Whether to say a line at a time (in seconds); if so, it is said."""
        kind = re.sub(r"[0-9a-f]{8,}|\d+", "", line)
        is_new = now - self._said.get(kind, -math.inf) >= SAID_SECONDS
        if is_new:
            self._said[kind] = now
        return is_new


def brief(message: str) -> str:
    """Find the line of a message of Ray's that tells most: the last where it has a traceback, else the first."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or [""]
    return lines[-1 if "Traceback (most recent" in message else 0][:MOST_SHOWN]


def await_machines(resource: str, count: int) -> None:
    """Wait until the cluster has so many CPUs or GPUs; where it has an autoscaler, this is asked for them.

    Raises
    ------
    ResourceError
        They did not come in `PATIENCE_SECONDS`.
    """
    if _has(resource) >= count:
        return
    asked = placement_group([{resource: 1}] * count)  # which no other command's takes the place of
    start = said = time.monotonic()
    logger.info("waiting for machines with %d %s in all; there are %g", count, resource, _has(resource))
    try:
        while _has(resource) < count:
            time.sleep(1)
            now = time.monotonic()
            if now - start > PATIENCE_SECONDS:
                raise ResourceError(
                    f"{count} {resource}",
                    f"in {PATIENCE_SECONDS / 60:g} minutes {_has(resource):g} came",
                    "give the same command again, ask for fewer, or see in `ray status` what the cluster may have",
                )
            if now - said > SAID_SECONDS:
                said = now
                logger.info("still waiting: %g of %d %s are there", _has(resource), count, resource)
    finally:
        remove_placement_group(asked)  # else machines would stay when all is done


def _has(resource: str) -> float:
    return ray.cluster_resources().get(resource, 0)


def _connect(address: str) -> None:
    """Connect to a cluster, or say why not; where nothing listens, Ray itself would try for minutes and exit."""
    name, alone = f"RAY_ADDRESS={address}", "or unset RAY_ADDRESS to use this machine alone"
    knocks = re.fullmatch(r"[^/]+:\d+", address) is not None  # and not the client's ray://, or auto
    try:
        if knocks:
            _knock(address)
    except OSError as error:
        raise ResourceError(name, f"Ray does not answer there ({error})", f"start it there, {alone}") from error
    try:
        ray.init(**_SILENT)
    except _NO_CONNECTION as error:
        found = "what answers there does not let us in" if knocks else "Ray cannot be reached"
        raise ResourceError(
            name,
            f"{found} ({shorten(str(error), MOST_SHOWN)})",
            f"say the cluster's RAY_AUTH_MODE and token (RAY_AUTH_TOKEN_PATH), have its version of Ray, {alone}",
        ) from error


def workers_that_fit(cpus: int, nodes: Sequence[Mapping[str, float]], use_gpu: bool | None = None) -> int:
    """Count the workers of so many CPUs that fit beside a CPU a machine for reading.

    Parameters
    ----------
    use_gpu
        Whether each takes a GPU too; None: where there are any.
    """
    if use_gpu is None:
        use_gpu = any(node.get("GPU", 0) for node in nodes)
    by_cpu = [max(int(node.get("CPU", 0)) - 1, 0) // cpus for node in nodes]
    return sum(
        min(most, int(node.get("GPU", 0))) if use_gpu else most for most, node in zip(by_cpu, nodes, strict=True)
    )


def alive_nodes() -> list[Mapping[str, float]]:
    """List what each machine that is alive has ("CPU", "GPU", ...)."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def resource_picture() -> str:
    """Say what the cluster has, and what of it is free."""
    return f"the cluster has {_counts(ray.cluster_resources())}, of which are free {_counts(ray.available_resources())}"


def _counts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


def user_error_in(error: BaseException) -> UserError | None:
    """Find the user's mistake that a Ray error carries from another process, if it does."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, UserError) and not isinstance(current, exceptions.RayError):
            return current
        named = [getattr(current, name, None) for name in ("cause", "controller_failure")]
        waiting += [e for e in (*named, current.__cause__, current.__context__) if e]
        failures = getattr(current, "worker_failures", None) or {}
        waiting += [e for e in failures.values() if isinstance(e, BaseException)]
    return None
