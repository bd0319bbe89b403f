"""Real servers on loopback, which tests start and end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

MLFLOW_SCRIPT = Path(__file__).parents[1] / "docs" / "clusters" / "mlflow_server.sh"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


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
    deadline = time.monotonic() + 60
    while not (folder / ".s.PGSQL.5432").exists():
        assert process.poll() is None, "PostgreSQL ended"
        assert time.monotonic() < deadline, "PostgreSQL did not come up"
        time.sleep(0.1)
    try:
        yield f"postgresql+psycopg2://mlflow@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)  # which is its word for an end now, and in order
        process.wait(30)
        shutil.rmtree(folder)


class MlflowServer:
    """An MLflow server as clusters have it, which can be away for a while.

    Parameters
    ----------
    database
        Where its records are; None: in a file in the folder.
    """

    def __init__(self, folder: Path, database: str | None = None) -> None:
        (port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{port}"
        self.command = ["bash", str(MLFLOW_SCRIPT), f"127.0.0.1:{port}", str(folder), "--workers", "1"]
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MLFLOW_BACKEND_STORE_URI": database or f"sqlite:///{folder}/mlflow.db",
        }
        self.start()

    def start(self) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, env=self.environment, start_new_session=True, **quiet)
        deadline = time.monotonic() + 120
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
