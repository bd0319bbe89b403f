"""What a run came from: settings, versions, particles and command, in MLflow and in a script that trains it again."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import yaml

from drgn_ray import __version__
from drgn_ray.config import RunConfig
from drgn_ray.particles.store import ParticleStore
from drgn_ray.patience import write_whole
from drgn_ray.tracking.run import TrackedRun
from drgn_ray.training.run_directory import RunDirectory

_REPRODUCES = """\
# In one process (--workers 0) on the same kind of machine the result is the same to the bit; with several workers the
# order in which images come is not promised, and the held-out loss is the same within a hundredth."""
_OF_POPULATION = """\
# It took over weights of other trials, with other settings before: this trains anew with its last ones."""


def tell_command(tracked: TrackedRun, job: str | None) -> None:
    """Tell MLflow the command that this process runs, and the id of the Ray job whose log is of it."""
    program = Path(sys.argv[0])
    first = ["python", "-m", f"jobs.{program.stem}"] if program.suffix == ".py" else [program.name]
    tracked.set_tag("drgn_ray.command", shlex.join([*first, *sys.argv[1:]]))
    if job is not None:
        tracked.set_tag("drgn_ray.job", job)


def tell_origin(
    tracked: TrackedRun, run: RunDirectory, config: RunConfig, store: ParticleStore, *, of_population: bool = False
) -> None:
    """Write ``reproduce.sh`` for a run as it is configured now, and tell MLflow what it comes from.

    Parameters
    ----------
    of_population
        Whether it takes over weights of other runs, which the script cannot.
    """
    _write_script(run, config, store, _OF_POPULATION if of_population else _REPRODUCES)
    tracked.set_tag("drgn_ray.versions", _versions())
    tracked.set_tag("drgn_ray.store_digest", store.digest)
    tracked.particles(config.particles, store.digest)
    tracked.artifacts(run.script)


def _versions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "ray", "zarr"))
    return f"drgn_ray {__version__}, Python {platform.python_version()}, {packages}"


def _write_script(run: RunDirectory, config: RunConfig, store: ParticleStore, how_well: str) -> None:
    settings = yaml.safe_dump(config.model_dump(exclude={"particles"}), sort_keys=False)
    write_whole(
        run.script,
        f"""#!/usr/bin/env bash
# Trains the run {shlex.quote(str(run.path))} again: bash reproduce.sh OUTPUT
# It was trained with {_versions()},
# on the store with the digest {store.digest},
# whose table has the checksum {store.info.table_sha256}, made by
#   {" ".join(store.info.command.split())}
{how_well}
set -euo pipefail
settings=$(mktemp --suffix .yaml)
trap 'rm -f "$settings"' EXIT
cat > "$settings" <<'SETTINGS'
{settings}SETTINGS
drgn-ray train {shlex.quote(config.particles)} -o "${{1:?say where the new run is to be}}" --config "$settings"
""",
    )
