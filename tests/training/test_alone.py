"""One driver works in a folder at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drgn_ray.config import RunConfig
from drgn_ray.errors import RunError
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.training.sweep import read_sweep
from drgn_ray.training.sweep_directory import SweepDirectory


def test_one_driver_at_a_time_works_on_a_sweep_and_its_death_lets_the_next_one_in(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path / "sweep")
    code = (
        "import sys, time; from drgn_ray.training.sweep_directory import SweepDirectory\n"
        "with SweepDirectory(sys.argv[1]).alone(): print('in', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(directory.path)], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"in\n"
        with pytest.raises(RunError, match="another `drgn-ray tune` is at work here; wait until that has ended"):
            directory.alone().__enter__()
        first.kill()
    with directory.alone():
        directory.begin(read_sweep("quick"), "/particles.zarr", [])


def test_a_run_that_is_given_twice_is_trained_by_the_first(store_path: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "jobs.train", str(store_path), "-o", str(run.path), "--workers", "0"]
    with run.alone():
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    expected = f"drgn-ray: {run.path}: another `drgn-ray train` is at work here; wait until that has ended"
    assert second.stderr.startswith(expected)
    assert not run.config_file.exists()
    run.begin(RunConfig(particles=str(store_path)))  # what the lock leaves is in nobody's way
