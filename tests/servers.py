"""Real servers on loopback, which tests start and end."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import pytest

WAIT_SECONDS = 900  # for what takes seconds, on a machine that does other things beside
MLFLOW_SCRIPT = Path(__file__).parents[1] / "docs" / "clusters" / "mlflow_server.sh"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens at, of those that neither the system nor Ray's workers hand out to whoever asks."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_768), k=200):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("there are no free ports")


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        for each in [*first.children(recursive=True), first]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


@contextmanager
def own_ray(num_cpus: int) -> Iterator[None]:
    """Ray without a dashboard in this process, with logical CPUs, in a short folder (sockets have short paths)."""
    import ray

    folder = tempfile.mkdtemp(prefix="dr_", dir="/tmp")
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def own_postgres() -> Iterator[str]:
    """A PostgreSQL that listens on a socket file alone; gives the address of its database."""
    found = [shutil.which("initdb"), *map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    if not any(found):
        pytest.skip("PostgreSQL is not here (no initdb)")
    programs = Path(next(filter(None, found))).resolve().parent
    who = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}  # it refuses root
    folder = Path(tempfile.mkdtemp(prefix="dr_", dir="/tmp"))
    if who:
        shutil.chown(folder, who["user"], who["group"])
    data, quiet = str(folder / "data"), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    make = [str(programs / "initdb"), "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync"]
    subprocess.run(make, check=True, **quiet, **who)
    serve = [str(programs / "postgres"), "-D", data, "-k", str(folder), "-c", "listen_addresses=", "-F"]
    process = subprocess.Popen(serve, **quiet, **who)
    deadline = time.monotonic() + WAIT_SECONDS
    while not (folder / ".s.PGSQL.5432").exists():
        assert process.poll() is None, "PostgreSQL ended"
        assert time.monotonic() < deadline, "PostgreSQL did not come up"
        time.sleep(0.1)
    try:
        yield f"postgresql+psycopg2://mlflow@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)  # which is its word for an end now, and in order
        process.wait(WAIT_SECONDS)
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Head:
    """A head of a Ray cluster on loopback, and the environment of programs that it lets in."""

    address: str
    dashboard: str
    environment: dict[str, str]

    def ask(self, path: str) -> Any:
        """What its interface for jobs says."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = Request(f"{self.dashboard}{path}", headers={"Authorization": f"Bearer {token}"})
        with urlopen(request, timeout=60) as said:
            return json.load(said)


@contextmanager
def own_head(num_cpus: int, autoscaler: dict[str, Any] | None = None) -> Iterator[Head]:
    """A head that asks for a token, as in the recipes for clusters.

    Parameters
    ----------
    autoscaler
        Kinds of machines that its autoscaler pretends to rent: raylets on this machine.
    """
    port, dashboard, client, agent = free_ports(4)
    folder = Path(tempfile.mkdtemp(prefix="dr_", dir="/tmp"))
    (folder / "token").write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{folder}/token", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_JOB_STOP_WAIT_TIME_S"] = "60"
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"),
        *("--port", str(port), "--dashboard-port", str(dashboard), "--dashboard-host", "127.0.0.1"),
        *("--ray-client-server-port", str(client), "--dashboard-agent-listen-port", str(agent)),
        *("--num-cpus", str(num_cpus), "--temp-dir", str(folder)),
    ]
    if autoscaler is not None:
        (folder / "cluster.json").write_text(json.dumps(_pretended(f"127.0.0.1:{port}", num_cpus, autoscaler)))
        environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        command.append(f"--autoscaling-config={folder}/cluster.json")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    head = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                head.ask("/api/jobs/")
                break
            except (URLError, OSError):
                assert process.poll() is None, "the head ended"
                assert time.monotonic() < deadline, "the head did not come up"
                time.sleep(0.5)
        yield head
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _pretended(address: str, num_cpus: int, kinds: dict[str, Any]) -> dict[str, Any]:
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    head = {"resources": {"CPU": num_cpus}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "pretended",
        "provider": {"type": "fake_multinode", "gcs_address": address, "disable_node_updaters": True},
        "max_workers": 2,
        "idle_timeout_minutes": 1,
        "upscaling_speed": 1,
        "head_node_type": "head",
        "available_node_types": {"head": head, **{name: {"node_config": {}, **kind} for name, kind in kinds.items()}},
        **{f"{name}_commands": [] for name in commands},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        "file_mounts_sync_continuously": False,
    }


class MlflowServer:
    """An MLflow server as clusters have it, which can be away for a while.

    Parameters
    ----------
    database
        Where its records are; None: in a file in the folder.
    host
        Address of this machine at which it is reached.
    """

    def __init__(self, folder: Path, database: str | None = None, host: str = "127.0.0.1") -> None:
        (port,) = free_ports(1)
        self.uri = f"http://{host}:{port}"
        self.command = ["bash", str(MLFLOW_SCRIPT), f"{host}:{port}", str(folder), "--workers", "1"]
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MLFLOW_BACKEND_STORE_URI": database or f"sqlite:///{folder}/mlflow.db",
        }
        self.start()

    def start(self) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, env=self.environment, start_new_session=True, **quiet)
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.answers():
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            return urlopen(f"{self.uri}/health", timeout=2).status == 200
        except (URLError, OSError):
            return False

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
