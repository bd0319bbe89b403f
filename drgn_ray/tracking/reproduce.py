"""``reproduce.sh``: settings, versions and particles that a run came from, as a script that trains it again."""

from __future__ import annotations

import platform
import shlex
from importlib.metadata import version

import yaml

from drgn_ray import __version__
from drgn_ray.config import RunConfig
from drgn_ray.particles.store import StoreInfo
from drgn_ray.training.run_directory import RunDirectory


def write_script(run: RunDirectory, config: RunConfig, info: StoreInfo) -> None:
    """Write the script for a run as it is configured now."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "ray", "zarr"))
    settings = yaml.safe_dump(config.model_dump(exclude={"particles"}), sort_keys=False)
    run.script.write_text(
        f"""#!/usr/bin/env bash
# Trains the run {shlex.quote(str(run.path))} again: bash reproduce.sh OUTPUT
# It was trained with drgn_ray {__version__}, Python {platform.python_version()}, {packages},
# on the store whose table has the checksum {info.table_sha256}, made by
#   {" ".join(info.command.split())}
# In one process (--workers 0) on the same kind of machine the result is the same to the bit.
set -euo pipefail
settings=$(mktemp --suffix .yaml)
trap 'rm -f "$settings"' EXIT
cat > "$settings" <<'SETTINGS'
{settings}SETTINGS
drgn-ray train {shlex.quote(config.particles)} -o "${{1:?say where the new run is to be}}" --config "$settings"
"""
    )
