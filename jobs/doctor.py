"""Check machines, store, storage and MLflow before a training does: a line a check, with what to type if it is wrong.

drgn-ray doctor particles.zarr -o runs

On a cluster: ray job submit --working-dir . -- python -m jobs.doctor /data/particles.zarr -o /data/runs
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from jobs.cli import exit_with, parse, run_command

if TYPE_CHECKING:
    from pathlib import Path

    from drgn_ray.distributed.preflight import Finding


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``doctor``."""

    store: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")] = None
    """A particle store, which all machines should read."""
    runs: Annotated[str | None, tyro.conf.arg(name="outdir", aliases=["-o"], metavar="RUNS")] = None
    """The folder that holds runs, or will, which all machines should write to."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "doctor", __doc__)
    return run_command(lambda: _examine(arguments))


def _examine(arguments: Arguments) -> None:
    from pathlib import Path

    from drgn_ray.errors import ResourceError

    store = arguments.store
    if store is not None and "://" not in store:
        store = os.path.abspath(store)  # workers are elsewhere
    folder = None if arguments.runs is None else Path(arguments.runs).absolute()
    findings = [*_of_machines(store, folder), _of_mlflow(folder)]
    for finding in findings:
        print(finding)
    if wrong := [finding.what for finding in findings if finding.remedy is not None]:
        raise ResourceError(
            "doctor", f"{len(wrong)} of {len(findings)} checks found something wrong", f"mend {', '.join(wrong)}"
        )


def _of_machines(store: str | None, folder: Path | None) -> list[Finding]:
    """Check the cluster, or a Ray of our own."""
    from functools import partial

    from drgn_ray.config import ResourcesConfig
    from drgn_ray.distributed.cluster import connected
    from drgn_ray.distributed.preflight import Finding, examine
    from drgn_ray.distributed.trainer import plan_resources
    from drgn_ray.errors import ResourceError

    address = os.environ.get("RAY_ADDRESS")
    try:
        with connected():
            said = "of its own, on this machine (RAY_ADDRESS is not set)" if address is None else address
            return [Finding("ray", said), *examine(store, folder, partial(plan_resources, ResourcesConfig()))]
    except ResourceError as error:
        return [Finding("ray", f"{error.source}: {error.found}", error.remedy)]


def _of_mlflow(folder: Path | None) -> Finding:
    """Check that MLflow takes a run, with a metric and an artifact."""
    from pathlib import Path

    from drgn_ray.distributed.preflight import Finding
    from drgn_ray.errors import UserError
    from drgn_ray.tracking.run import try_tracking

    try:
        return Finding("mlflow", try_tracking(folder or Path()))
    except UserError as error:
        return Finding("mlflow", f"{error.source}: {error.found}", error.remedy)


if __name__ == "__main__":
    exit_with(main)
