"""A Ray cluster of several machines on one: a head and a second raylet, each of which can be killed and started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from servers import WAIT_SECONDS, end, free_ports
from trainings import processes_below

RAY = Path(sys.executable).with_name("ray")


class Machine:
    """What `ray start --block` runs."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.command, self.environment = command, environment
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self) -> None:
        """End all its processes at once, as a machine does whose power fails."""
        end(self.process)

    def kill_raylet(self) -> None:
        """Kill the raylet alone; what it started notices that itself."""
        (raylet,) = processes_below(self.process, "raylet/raylet")
        raylet.kill()


class Cable:
    """A network of a second machine's own (a Linux namespace), with a cable to this one, which can be pulled.

    Packets are then lost and no one is told, as when a switch fails.
    """

    def __init__(self) -> None:
        self.name = f"dr{os.getpid()}"
        high, low = divmod(os.getpid() % 512, 256)  # so that two tests at once have two networks
        self.here, self.there = (f"198.{18 + high}.{low}.{host}" for host in (1, 2))  # of RFC 2544, for tests
        self.bridge, self.plug = f"{self.name}b", f"{self.name}p"

    def lay(self) -> None:
        for command in (
            f"netns add {self.name}",
            f"link add {self.bridge} type bridge",
            f"link add {self.plug} type veth peer name eth0 netns {self.name}",
            f"addr add {self.here}/24 dev {self.bridge}",
            f"link set {self.bridge} up",
            f"link set {self.plug} up",
            f"-n {self.name} addr add {self.there}/24 dev eth0",
            f"-n {self.name} link set eth0 up",
            f"-n {self.name} link set lo up",
        ):
            _ip(command)
        self.plug_in()

    def plug_in(self) -> None:
        _ip(f"link set {self.plug} master {self.bridge}")

    def pull(self) -> None:
        _ip(f"link set {self.plug} nomaster")

    def there_runs(self, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def remove(self) -> None:
        """Remove what there is of it."""
        for command in (f"netns del {self.name}", f"link del {self.bridge}"):
            with suppress(OSError, subprocess.CalledProcessError):
                _ip(command)


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@contextmanager
def a_cable() -> Iterator[Cable | None]:
    """Lay a cable, or None where networks may not be made."""
    cable = Cable()
    try:
        cable.lay()
    except (OSError, subprocess.CalledProcessError):
        cable.remove()
        yield None
        return
    try:
        yield cable
    finally:
        cable.remove()


class Machines:
    """A head and a second machine, of two CPUs each, joined by a cable where there is one.

    Parameters
    ----------
    folder
        Where Ray's own files go.
    object_store_bytes
        Of each machine; None: as Ray chooses.
    """

    head: Machine
    second: Machine

    def __init__(self, folder: Path, cable: Cable | None, object_store_bytes: int | None) -> None:
        self.cable = cable
        self.host = cable.here if cable else "127.0.0.1"
        self.port, client, agent = free_ports(3)
        self.address = f"{self.host}:{self.port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            **{"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"},
        }
        common = ["--block", "--num-cpus", "2"]
        if object_store_bytes is not None:
            common += ["--object-store-memory", str(object_store_bytes)]
        self.lead = [str(RAY), "start", "--head", *common, "--node-ip-address", self.host, "--port", str(self.port)]
        self.lead += ["--temp-dir", str(folder), "--include-dashboard", "false"]
        self.lead += ["--ray-client-server-port", str(client), "--dashboard-agent-listen-port", str(agent)]
        join = [str(RAY), "start", *common, "--address", self.address]
        join += ["--node-ip-address", cable.there if cable else self.host]
        self.join = cable.there_runs(join) if cable else join
        self.running: list[Machine] = []

    def start(self) -> None:
        """Start both, for the first time or again."""
        self.head = Machine(self.lead, self.environment)
        self.running = [self.head]
        self.await_cpus(2)
        self.second = Machine(self.join, self.environment)
        self.running.append(self.second)
        self.await_cpus(4)

    def drain_second(self, seconds: int) -> None:
        """Announce that the second machine will be gone, as a cloud does."""
        heads = set(
            self._ask("[n['NodeID'] for n in ray.nodes() if n['Alive'] and 'node:__internal_head__' in n['Resources']]")
        )
        alive = set(self._ask("[n['NodeID'] for n in ray.nodes() if n['Alive']]"))
        (second,) = alive - heads
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "it is wanted elsewhere"]
        command = [str(RAY), "drain-node", "--address", self.address, "--node-id", second, *why]
        command += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def await_cpus(self, count: int) -> None:
        """Wait until Ray counts so many."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := self.num_cpus()) != count:
            assert time.monotonic() < deadline, f"{found} CPUs, not {count}"
            time.sleep(0.5)

    def num_cpus(self) -> int:
        """CPUs of the machines that are alive, as the head says."""
        return int(self._ask("ray.cluster_resources().get('CPU', 0)") or 0)

    def _ask(self, expression: str) -> Any:
        code = "import json, ray; ray.init(logging_level='ERROR', log_to_driver=False); "
        code += f"print('\\nanswer', json.dumps({expression}), flush=True)"  # among what Ray prints
        environment = self.environment | {"RAY_ADDRESS": self.address}
        command = [sys.executable, "-c", code]
        said = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS
        )
        answers = [line for line in said.stdout.splitlines() if line.startswith("answer ")]
        return json.loads(answers[0].removeprefix("answer ")) if said.returncode == 0 else None

    def stop(self) -> None:
        for machine in self.running[::-1]:
            if machine.process.poll() is None:
                machine.kill()


@contextmanager
def machines(folder: Path | None = None, object_store_bytes: int | None = None) -> Iterator[Machines]:
    """Start them, with Ray's own files in a folder (None: one for them), and leave nothing."""
    place = folder or Path(tempfile.mkdtemp(prefix="dr_", dir="/tmp"))
    with a_cable() as cable:
        both = Machines(place, cable, object_store_bytes)
        try:
            both.start()
            yield both
        finally:
            both.stop()
            if folder is None:
                shutil.rmtree(place, ignore_errors=True)
