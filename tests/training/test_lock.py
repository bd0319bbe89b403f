"""One driver works in a folder at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import WAIT_SECONDS

from drgn_ray.config import RunConfig
from drgn_ray.errors import RunError
from drgn_ray.training.lock import locked
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.training.sweep import read_sweep
from drgn_ray.training.sweep_directory import SweepDirectory


@contextmanager
def another(code: str, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    """Do something in another process until it is killed."""
    whole = f"import sys, time\n{code}\n    print('in', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", whole, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"in\n"
            yield process
        finally:
            process.kill()


CLAIMED_SWEEP = """
from drgn_ray.training.sweep_directory import SweepDirectory
with SweepDirectory(sys.argv[1]).claimed():"""
CLAIMED_RUN = """
from drgn_ray.config import RunConfig
from drgn_ray.training.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).claimed(RunConfig(particles=sys.argv[2])):"""


def test_one_driver_at_a_time_works_on_a_sweep_and_its_death_lets_the_next_one_in(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path / "sweep")
    with another(CLAIMED_SWEEP, directory.path) as first:
        with (
            pytest.raises(RunError, match="another `drgn-ray tune` is at work here; wait until that has ended"),
            directory.claimed(),
        ):
            pass
        first.kill()
        first.wait()
        with directory.claimed():
            directory.begin(read_sweep("quick"), "/particles.zarr", [])


def test_a_run_that_is_trained_is_refused_to_a_second_command(store_path: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "jobs.train", str(store_path), "-o", str(run.path), "--workers", "0"]
    with another(CLAIMED_RUN, run.path, store_path) as first:
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS)
        assert second.returncode == 2
        expected = f"drgn-ray: {run.path}: another `drgn-ray train` is at work here; wait until that has ended"
        assert second.stderr.startswith(expected)
        first.kill()
        first.wait()
        with run.claimed(RunConfig(particles=str(store_path))):
            pass


def test_a_trial_of_a_sweep_at_work_is_refused_to_train(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path / "sweep")
    with directory.claimed():
        directory.begin(read_sweep("quick"), "/particles.zarr", [])
    with (
        another(CLAIMED_SWEEP, directory.path),
        pytest.raises(RunError, match="sweep: another `drgn-ray tune` is at work here"),
        directory.run("trial_1").claimed(RunConfig(particles="/particles.zarr")),
    ):
        pass


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with (
        pytest.raises(RunError, match="holds something that is not a run"),
        RunDirectory(tmp_path).claimed(RunConfig(particles="/particles.zarr")),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_where_files_cannot_be_locked_work_goes_on_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)  # as file systems are that are mounted without
    with locked(tmp_path / "run", "train"):
        assert "files cannot be locked here ([Errno 38] Function not implemented); start no second" in caplog.text
