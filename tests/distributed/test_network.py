"""Workers listen where Ray knows their machine; tests/chaos has two machines that only so find each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from servers import WAIT_SECONDS

from drgn_ray.distributed.network import interface_of


def test_an_address_of_this_machine_is_found_on_its_interface() -> None:
    assert interface_of("127.0.0.1") == "lo"


def test_an_address_that_is_translated_on_the_way_has_no_interface_here() -> None:
    assert interface_of("192.0.2.1") is None


def test_workers_that_cannot_reach_each_other_are_one_sentence(store_path: Path, tmp_path: Path) -> None:
    small = "--workers 2 --cpus-per-worker 1 --enc-dim 16 --dec-dim 16".split()
    command = [sys.executable, "-m", "jobs.train", str(store_path), "-o", str(tmp_path / "run"), *small]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "nosuch", "OMP_NUM_THREADS": "1"}
    tried = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS)
    assert tried.returncode == 2, tried.stdout + tried.stderr
    assert "the network between workers: they cannot reach each other (" in tried.stderr
    assert "let the machines reach all ports of each other, or say on each which interface" in tried.stderr
    assert "Traceback" not in tried.stdout + tried.stderr
