"""Ray's object store, and the disk that it overflows to, are filled by another: a training ends clearly and goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import machines
from servers import WAIT_SECONDS
from trainings import LONG, epochs_in, started, train_command, wait_for

from drgn_ray.training.run_directory import RunDirectory

OBJECT_STORE_BYTES = 80_000_000  # about the least that Ray takes
# Puts objects until neither memory nor disk has room, and keeps them.
GREEDY = """
import ray, time
from ray.exceptions import RayError
ray.init(logging_level="ERROR", log_to_driver=False)
kept = []
try:
    while True:
        kept.append(ray.put(bytes(8_000_000)))
except (RayError, OSError):
    print("full", flush=True)
time.sleep(600)
"""


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 400 MB, with a short path: sockets are made there."""
    place = Path(tempfile.mkdtemp(prefix="dr_", dir="/tmp"))
    try:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(place)], check=False).returncode:
            pytest.skip("this user may not mount a file system, which could be filled")
        yield place
        subprocess.run(["umount", "--lazy", str(place)], check=True)
    finally:
        shutil.rmtree(place)


@LONG
def test_a_training_whose_object_store_is_full_ends_with_a_sentence_and_goes_on(
    store_path: Path, small_disk: Path, tmp_path: Path
) -> None:
    run, log = RunDirectory(tmp_path / "run"), tmp_path / "log"
    command = train_command(store_path, run, num_workers=2)
    with machines(small_disk, OBJECT_STORE_BYTES) as both:
        environment = both.environment | {"RAY_ADDRESS": both.address, "MLFLOW_TRACKING_URI": ""}
        with started(command, log, environment) as driver:
            wait_for(lambda: len(epochs_in(run)) >= 2, lambda: driver.poll() is None, "two epochs", log.read_text)
            with started([sys.executable, "-c", GREEDY], tmp_path / "greedy", environment) as greedy:
                said = (tmp_path / "greedy").read_text
                wait_for(lambda: "full" in said(), lambda: greedy.poll() is None, "the end of all room", said)
                assert driver.wait(WAIT_SECONDS) == 2, log.read_text()
        assert "the disk of Ray's files, is full somewhere; the same command goes on" in log.read_text()
        num_epochs = len(epochs_in(run)) + 2
        with started([*command, "-n", str(num_epochs)], log, environment) as driver:
            assert driver.wait(WAIT_SECONDS) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert epochs_in(run) == list(range(1, num_epochs + 1))
