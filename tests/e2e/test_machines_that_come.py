"""A cluster that grows from nothing: a head without CPUs, whose autoscaler starts machines when they are asked for."""

from __future__ import annotations

import subprocess
import sys

from servers import WAIT_SECONDS, own_head

KINDS = {
    "cpu": {"resources": {"CPU": 3}, "min_workers": 0, "max_workers": 1},
    "gpu": {"resources": {"CPU": 2, "GPU": 1}, "min_workers": 0, "max_workers": 1},
}
DRIVER = """
import ray
from drgn_ray.distributed import cluster
from drgn_ray.errors import ResourceError

with cluster.connected():
    print(ray.cluster_resources().get("CPU"), ray.cluster_resources().get("GPU"))
    cluster.await_machines("GPU", 1)
    print(ray.cluster_resources()["GPU"])
    cluster.PATIENCE_SECONDS = 3
    try:
        cluster.await_machines("GPU", 2)
    except ResourceError as error:
        print(error)
"""


def test_machines_come_when_they_are_asked_for_and_no_one_waits_for_ever() -> None:
    with own_head(0, KINDS) as head:
        here = head.environment | {"RAY_ADDRESS": head.address}
        done = subprocess.run(
            [sys.executable, "-c", DRIVER], env=here, capture_output=True, text=True, timeout=WAIT_SECONDS
        )
    assert done.returncode == 0, done.stderr
    first, gpus, refusal = done.stdout.splitlines()
    assert first in ("3.0 None", "2.0 1.0")  # whichever it starts for a CPU
    assert gpus == "1.0"
    assert refusal.startswith("2 GPU: in 0.05 minutes 1 came; give the same command again")
