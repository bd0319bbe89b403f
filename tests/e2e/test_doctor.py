"""What is wrong with a cluster is said before a training would find out: two real machines, one of them ill."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import ray
from servers import WAIT_SECONDS, end, free_ports

from jobs.cli import main

WITHOUT_THEM = "unshare --mount sh -c 'for it in {}; do mount -t tmpfs none $it; done; exec {}'"


class Cluster(NamedTuple):
    address: str
    ill: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def places(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store in a folder of its own, and a folder of runs."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "runs").mkdir()
    return Path(shutil.copytree(store_path, folder / "data" / "particles.zarr")), folder / "runs"


@pytest.fixture(scope="module")
def cluster(places: tuple[Path, Path]) -> Iterator[Cluster]:
    """Two machines; the second, `ill`, sees neither folder and claims a GPU."""
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("there is no permission to give a process mounts of its own (unshare --mount)")
    port, client = free_ports(2)
    folder = tempfile.mkdtemp(prefix="dr_", dir="/tmp")
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    kept["RAY_USAGE_STATS_ENABLED"] = "0"
    start = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--node-ip-address", "127.0.0.1"]
    start += ["--num-cpus", "2", "--object-store-memory", "200000000"]
    head = [*start, "--head", "--port", str(port), "--node-name", "well", "--temp-dir", folder]
    head += ["--ray-client-server-port", str(client)]
    ill = [*start, "--address", f"127.0.0.1:{port}", "--node-name", "ill", "--num-gpus", "1"]
    unseen = shlex.join([str(places[0].parent), str(places[1])])
    processes = [run([*head, "--include-dashboard", "false"], kept | {"RAY_AUTH_MODE": "disabled"})]
    wait_until_open(port)
    processes.append(run(shlex.split(WITHOUT_THEM.format(unseen, shlex.join(ill))), kept))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        ray.init(log_to_driver=False)
        deadline = time.monotonic() + WAIT_SECONDS
        while len(ray.nodes()) < 2:
            assert time.monotonic() < deadline, "the second machine did not come up"
            time.sleep(0.1)
        ray.shutdown()
        yield Cluster(f"127.0.0.1:{port}", processes[1])
    for process in processes[::-1]:
        end(process)
    shutil.rmtree(folder, ignore_errors=True)


def run(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_until_open(port: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert time.monotonic() < deadline, "the head did not come up"
        time.sleep(0.1)


def test_doctor_says_what_is_wrong_with_which_machine(
    cluster: Cluster, places: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    store, runs = places

    assert main(["doctor", str(store), "-o", str(runs)]) == 2

    out, errors = capfd.readouterr()
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert f" ok     {cluster.address}" in lines["ray"]
    assert "(well, " in lines["machines"]
    assert "(ill, " in lines["machines"]
    for check in ("versions", "shm", "disk", "mlflow"):
        assert lines[check].split()[1] == "ok", lines[check]
    for check, found in (
        ("auth", "RAY_AUTH_MODE is disabled on this machine and"),
        ("gpus", "Ray counts 1 GPU and torch sees 0 on"),
        ("store", "there is no particle store here on"),
        ("runs", "No such file or directory on"),
    ):
        assert lines[check].split()[1] == "wrong", lines[check]
        assert found in lines[check]
        assert "(ill, " in lines[check]
        assert "; " in lines[check]  # and what to type
    assert "mend auth, gpus, store, runs" in errors
    assert list(runs.iterdir()) == []


def test_a_training_is_refused_where_a_machine_sees_neither_particles_nor_runs(
    cluster: Cluster, places: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    store, runs = places

    assert main(["train", str(store), "-o", str(runs / "a"), "--workers", "1"]) == 2

    out, errors = capfd.readouterr()
    assert "Ray counts 1 GPU and torch sees 0 on" in errors
    assert f"store: {store}: there is no particle store here on" in out
    assert f"runs: {runs / 'a'}: No such file or directory on" in out


def test_a_machine_that_hangs_is_named_and_waited_for_no_longer(
    cluster: Cluster, places: tuple[Path, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drgn_ray.distributed.preflight.PATIENCE_SECONDS", 30.0)
    (raylet,) = (each for each in psutil.Process(cluster.ill.pid).children() if each.name() == "raylet")
    raylet.suspend()
    try:
        assert main(["doctor", str(places[0])]) == 2
    finally:
        raylet.resume()
    (line,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("machines"))
    assert "wrong  " in line
    assert re.search(r"\(ill, \w+\) does not answer", line), line


def test_a_cluster_that_is_not_there_is_said_at_once(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")

    assert main(["doctor"]) == 2

    assert "Connection refused" in capfd.readouterr().out
