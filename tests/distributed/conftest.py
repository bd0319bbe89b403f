"""One Ray of our own for the tests of this folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray on this machine with four logical CPUs, in a short temporary folder (sockets have short paths)."""
    import ray

    folder = tempfile.mkdtemp(prefix="dr_", dir="/tmp")
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
