"""Faults of all kinds strike one training, and it ends as if none had: pytest -s tests/chaos prints what each cost.

DRGN_RAY_LONG=1 runs it, with twenty faults or DRGN_RAY_CHAOS_FAULTS of them, drawn with the seed DRGN_RAY_CHAOS_SEED,
or those that DRGN_RAY_CHAOS_ONLY names.
tests/e2e/test_interruption.py is its short form.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from machines import Machines, machines
from mlflow import MlflowClient
from servers import MlflowServer
from trainings import FOR_EVER, LONG, epochs_in, last_loss, processes_below, train_command

from drgn_ray.training.run_directory import RunDirectory

SEED = int(os.environ.get("DRGN_RAY_CHAOS_SEED", "0"))
NUM_FAULTS = int(os.environ.get("DRGN_RAY_CHAOS_FAULTS", "20"))
ONLY = os.environ.get("DRGN_RAY_CHAOS_ONLY", "").split()  # names of faults
RECOVERY_SECONDS = 300


@dataclass
class World:
    """A training on two machines with an MLflow server, and what can be done to it."""

    folder: Path
    runs: Path
    store: Path
    machines: Machines
    mlflow: MlflowServer
    rng: random.Random
    run: RunDirectory = field(init=False)
    driver: subprocess.Popen[bytes] = field(init=False)

    starts: int = 0  # of the command
    num_epochs: int = FOR_EVER

    def __post_init__(self) -> None:
        self.run = RunDirectory(self.runs / "chaos")
        self.log = (self.folder / "log").open("ab")
        self.start()

    def start(self) -> None:
        """Give the command."""
        self.starts += 1
        self.driver = subprocess.Popen(
            train_command(self.store, self.run, 2, self.num_epochs),
            stdout=self.log,
            stderr=self.log,
            env=self.machines.environment
            | {"RAY_ADDRESS": self.machines.address, "MLFLOW_TRACKING_URI": self.mlflow.uri},
        )

    @property
    def told(self) -> str:
        """Everything that the command said so far."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def epochs(self) -> list[int]:
        """Epochs that are done, as the run's directory has them."""
        return epochs_in(self.run)

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes of an actor, wherever they are."""
        return [each for machine in self.machines.running for each in processes_below(machine.process, name)]

    def await_epochs(self, count: int) -> None:
        """Wait for so many epochs, and give the command again whenever it ended with a clear word."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while len(self.epochs) < count:
            if self.driver.poll() is not None:
                assert self.driver.returncode in (0, 2, -signal.SIGKILL), self.told[-3000:]
                assert "Traceback" not in self.told, self.told[-3000:]
                if self.driver.returncode == 0:
                    return
                self.start()
            assert time.monotonic() < deadline, f"waited in vain for epoch {count}: {self.told[-3000:]}"
            time.sleep(0.1)


def a_worker(world: World) -> int:
    """Process id of a training worker, wherever it is."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while not (found := world.processes("RayTrainWorker")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return world.rng.choice(found).pid


# Every fault does its harm and, after a yield, undoes it.
def a_worker_is_killed(world: World) -> Iterator[None]:
    os.kill(a_worker(world), signal.SIGKILL)
    yield


def a_worker_hangs(world: World) -> Iterator[None]:
    os.kill(a_worker(world), signal.SIGSTOP)
    yield


def the_controller_is_killed(world: World) -> Iterator[None]:
    """The process in which Ray Train looks after the workers; what it held is to be freed."""
    (controller,) = world.processes("TrainController")
    controller.kill()
    yield


def the_driver_is_killed(world: World) -> Iterator[None]:
    world.driver.kill()
    yield


def a_raylet_is_killed(world: World) -> Iterator[None]:
    world.machines.second.kill_raylet()
    yield
    world.machines.second.process.wait(60)
    world.machines.second.start()


def a_machine_loses_power(world: World) -> Iterator[None]:
    world.machines.second.kill()
    yield
    world.machines.second.start()


def a_machine_is_preempted(world: World) -> Iterator[None]:
    """Told twenty seconds before, as clouds do."""
    world.machines.drain_second(seconds=20)
    yield
    world.machines.second.kill()
    world.machines.second.start()


def the_network_is_cut(world: World) -> Iterator[None]:
    """For shorter than Ray needs to give the machine up."""
    assert world.machines.cable is not None
    world.machines.cable.pull()
    yield
    world.machines.cable.plug_in()


def the_network_is_cut_for_long(world: World) -> Iterator[None]:
    """Until Ray has given the machine up, which starts again when it finds that it is alone."""
    assert world.machines.cable is not None
    world.machines.cable.pull()
    yield
    world.machines.await_cpus(2)
    world.machines.cable.plug_in()
    world.machines.second.process.wait(120)
    world.machines.second.start()


def the_head_loses_power(world: World) -> Iterator[None]:
    world.machines.stop()
    yield
    world.driver.wait(120)
    world.machines.start()


def the_store_is_away(world: World) -> Iterator[None]:
    away = world.store.with_name("away")
    world.store.rename(away)
    yield
    away.rename(world.store)


def the_disk_is_full(world: World) -> Iterator[None]:
    filler = world.runs / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 17, 4096, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    yield
    filler.unlink()


def mlflow_is_away(world: World) -> Iterator[None]:
    world.mlflow.stop()
    yield
    world.mlflow.start()


def the_newest_checkpoint_is_damaged(world: World) -> Iterator[None]:
    newest = sorted(world.run.checkpoints.glob("slice_*"))[-1] / "model.safetensors"
    with newest.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\xff" * 8)
    os.kill(a_worker(world), signal.SIGKILL)
    yield


Fault = Callable[[World], Iterator[None]]
FAULTS: list[Fault] = [
    the_newest_checkpoint_is_damaged,
    the_driver_is_killed,
    a_worker_is_killed,
    mlflow_is_away,
    a_worker_hangs,
    the_controller_is_killed,
    a_raylet_is_killed,
    a_machine_loses_power,
    a_machine_is_preempted,
    the_network_is_cut,
    the_network_is_cut_for_long,
    the_head_loses_power,
    the_store_is_away,
    the_disk_is_full,
]
ENDING = (the_driver_is_killed, the_head_loses_power)  # after which the command is given again
HARM_SECONDS = 12  # that a fault lasts, if it is one that passes


def drawn(rng: random.Random) -> list[Fault]:
    """Every fault once, as far as there are so many, and then others at random; or those that are named."""
    if ONLY:
        assert {*ONLY} <= {fault.__name__ for fault in FAULTS}
        return [fault for fault in FAULTS if fault.__name__ in ONLY]
    faults = rng.sample(FAULTS, k=len(FAULTS))[:NUM_FAULTS]
    return faults + rng.choices(FAULTS, k=NUM_FAULTS - len(faults))


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, which can be filled, where one may be mounted."""
    runs = tmp_path / "runs"
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(runs)], check=False)
    yield runs
    if os.path.ismount(runs):
        subprocess.run(["umount", "--lazy", str(runs)], check=True)


@pytest.fixture
def world(store_path: Path, tmp_path: Path, runs: Path) -> Iterator[World]:
    """A training that has just started."""
    store = tmp_path / "store" / "particles.zarr"
    shutil.copytree(store_path, store)
    (tmp_path / "mlflow").mkdir()
    with machines() as both:
        mlflow = MlflowServer(tmp_path / "mlflow", host=both.host)
        found = World(tmp_path, runs, store, both, mlflow, random.Random(SEED))
        try:
            yield found
        finally:
            found.driver.kill()
            mlflow.stop()


@LONG
def test_a_training_under_faults_ends_as_one_without(world: World, tmp_path: Path) -> None:
    faults = drawn(world.rng)
    if not os.path.ismount(world.runs):
        faults = [fault for fault in faults if fault is not the_disk_is_full]
    if world.machines.cable is None:
        faults = [fault for fault in faults if fault not in (the_network_is_cut, the_network_is_cut_for_long)]
    world.await_epochs(2)
    place = json.loads(world.run.mlflow_file.read_text())
    print(f"\n{'fault':36} {'said after':>12} {'epoch done after':>18} {'epochs redone':>14}")
    for fault in faults:
        print(f"{fault.__name__.replace('_', ' '):36} {struck(world, fault)}", flush=True)
    world.driver.terminate()
    assert world.driver.wait(RECOVERY_SECONDS) == 130, world.told[-3000:]
    world.num_epochs = len(world.epochs) + 2
    world.start()
    world.await_epochs(world.num_epochs)
    assert world.driver.wait(RECOVERY_SECONDS) == 0, world.told[-3000:]
    assert "Traceback" not in world.told

    assert world.epochs == list(range(1, world.num_epochs + 1))
    assert json.loads(world.run.mlflow_file.read_text()) == place
    client = MlflowClient(world.mlflow.uri)
    assert client.get_run(place["run_id"]).info.status == "FINISHED"
    logged = {point.value for point in client.get_metric_history(place["run_id"], "epoch_done")}
    assert logged == set(range(1, world.num_epochs + 1))
    assert len(client.search_runs([client.get_run(place["run_id"]).info.experiment_id])) == 1

    # As good as an undisturbed one: Ray does not promise which blocks a worker gets, and in which order.
    of_run, alone = last_loss(world.run), undisturbed(world, RunDirectory(tmp_path / "undisturbed"))
    print(f"{world.num_epochs} epochs, held-out loss {of_run:.5f}, undisturbed {alone:.5f}")
    assert of_run == pytest.approx(alone, rel=0.02)  # two workers alone change 1.5%


def struck(world: World, fault: Fault) -> str:
    """Let a fault happen, wait until two more epochs are done, and say what it cost."""
    time.sleep(world.rng.uniform(0, 4))
    before, said, start, starts = len(world.epochs), len(world.told), time.monotonic(), world.starts
    redone = epochs_redone(world.told)
    assert world.driver.poll() is None, "nothing is left that a fault could strike"
    heard: list[float] = []  # seconds

    def listen() -> None:
        while not heard and not over.wait(0.1):
            if re.search(NEWS, world.told[said:]):
                heard.append(time.monotonic() - start)

    over, listener = threading.Event(), threading.Thread(target=listen)
    listener.start()
    try:
        doing = fault(world)
        next(doing)
        time.sleep(HARM_SECONDS)
        next(doing, None)
        world.await_epochs(max(before, len(world.epochs)) + 2)
    finally:
        over.set()
        listener.join()
    back, redone = time.monotonic() - start, epochs_redone(world.told) - redone
    assert world.starts - starts == (fault in ENDING), f"the command was given {world.starts - starts} times again"
    assert redone <= 1, f"{redone} epochs were trained again"
    return f"{f'{heard[0]:.0f} s' if heard else 'not':>12} {back:>16.0f} s {redone:>14}"


def epochs_redone(told: str) -> int:
    done = re.findall(r"^epoch (\d+)/\d+ done", told, re.MULTILINE)
    return len(done) - len(set(done))


# What tells a reader of the log that something was wrong.
NEWS = (
    r"worker \d+ failed|going on at epoch|waiting for its storage|does not answer|is damaged|nothing from the workers"
    r"|Ray: "
)


def undisturbed(world: World, run: RunDirectory) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    command = train_command(world.store, run, 0, world.num_epochs)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return last_loss(run)
