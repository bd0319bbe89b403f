"""Whether machines, storage and MLflow are fit to train: what `drgn-ray doctor` prints, and training asks at its start.

Each machine is looked at by a task of its own that reserves nothing; one that does not answer is a finding too.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from drgn_ray import __version__
from drgn_ray.distributed.cluster import await_machines, connected
from drgn_ray.distributed.tasks import is_cluster_there
from drgn_ray.errors import ResourceError, StoreError, UserError
from drgn_ray.particles.store import ParticleStore
from drgn_ray.text import counted

logger = logging.getLogger(__name__)
HERE = "this machine"
PATIENCE_SECONDS = 60.0  # for a machine to answer: a process starts there and imports, over a slow network perhaps
LEAST_FREE = 2 << 30  # bytes for checkpoints, latents and volumes
LEAST_SHARED = 1 << 30  # bytes of /dev/shm, where Ray has not said what it wants
MOST_USED = 0.95  # of the disk of Ray's own files: beyond, it makes no objects there

Nodes = list[Mapping[str, float]]


class Finding(NamedTuple):
    """What a check found.

    Attributes
    ----------
    remedy
        What to type or do; None where all is well.
    stops
        Whether training would fail or hang, and not only be slower or less safe.
    """

    what: str
    said: str
    remedy: str | None = None
    stops: bool = True

    def __str__(self) -> str:
        state = "ok" if self.remedy is None else "wrong"
        return f"{self.what:9} {state:6} {self.said}" + ("" if self.remedy is None else f"; {self.remedy}")


class Machine(NamedTuple):
    """What a machine says of itself.

    Attributes
    ----------
    auth_mode
        ``RAY_AUTH_MODE`` of its processes.
    known_gpus, seen_gpus
        GPUs that Ray counts, and that torch can use.
    shared_memory, wanted_shared
        Bytes of /dev/shm, and of Ray's object store, which should fit there.
    disk_used
        Share of the disk of Ray's own files.
    runs, store
        Why the folder of runs cannot be written to, and the store not be read; empty where they can, or none is named.
    """

    name: str
    versions: Mapping[str, str]
    auth_mode: str
    known_gpus: int
    seen_gpus: int
    shared_memory: int
    wanted_shared: int
    disk_used: float
    runs: str
    store: UserError | None


class Place(NamedTuple):
    """Where a machine is looked at, and what Ray says it has."""

    name: str
    known_gpus: int | None
    wanted_shared: int
    session: str


def preflight(store: str, folder: Path, plan: Callable[[Nodes], object], own_cpus: int, awaited_gpus: int = 0) -> None:
    """Look at what a training is about to use; silent where all is well, and a warning for what only slows it down.

    Without a cluster this is the machine we are on, on which Ray is not started for it.

    Parameters
    ----------
    awaited_gpus
        GPUs that the cluster is waited for to have, before it is looked at.

    Raises
    ------
    ResourceError
        The training would fail, or wait for ever.
    """
    if awaited_gpus and is_cluster_there():
        with connected():
            await_machines("GPU", awaited_gpus)
    wrong = [finding for finding in examine(store, folder, plan, own_cpus) if finding.remedy is not None]
    first = next((finding for finding in wrong if finding.stops), None)
    for finding in wrong:
        if finding is not first:
            logger.warning("%s: %s; %s", finding.what, finding.said, finding.remedy)
    if first is not None:
        raise ResourceError(first.what, first.said, f"{first.remedy} (`drgn-ray doctor` checks again)")


def examine(
    store: str | None, folder: Path | None, plan: Callable[[Nodes], object], own_cpus: int | None = None
) -> list[Finding]:
    """Look at all machines of the cluster, where there is one, or else at this one.

    Parameters
    ----------
    store
        Particle store that all machines should read.
    folder
        Folder of runs that all machines should see.
    plan
        Fits the trainers on machines ("CPU", "GPU" of each), or raises.
    own_cpus
        Logical CPUs that a Ray of our own would get.
    """
    if is_cluster_there():
        with connected(), _shared(folder) as shared:
            alive = [node for node in ray.nodes() if node["Alive"]]
            driver = look(Place(HERE, 0, 0, gettempdir()), shared, store)
            others, silent = _ask(alive, shared, store)
            nodes = [node["Resources"] for node in alive]
            machines = [driver, *others]
            judged = judge(machines, _unseen(machines, shared), store, folder)
            return [_answering(others, silent), _cpus(plan, nodes), *judged]
    with _shared(folder) as shared:
        here = look(Place(HERE, None, LEAST_SHARED, os.environ.get("RAY_TMPDIR", gettempdir())), shared, store)
        nodes: Nodes = [{"CPU": float(own_cpus or os.cpu_count() or 1), "GPU": float(here.seen_gpus)}]
        return [_cpus(plan, nodes), *judge([here], _unseen([here], shared), store, folder)]


def _shared(folder: Path | None) -> AbstractContextManager[str | None]:
    """Make a folder within that of the runs, for as long as machines write into it; None where that cannot be."""
    if folder is not None:
        with suppress(OSError):
            return TemporaryDirectory(prefix=".drgn_ray_doctor_", dir=nearest(folder), ignore_cleanup_errors=True)
    return nullcontext()


def _unseen(machines: Sequence[Machine], shared: str | None) -> list[str] | None:
    """Machines whose files are not seen here, though they were written; None where nothing can be written here."""
    if shared is None:
        return None
    return [each.name for each in machines if not each.runs and not _mark(shared, each.name).is_file()]


def nearest(folder: Path) -> Path:
    """Find the folder itself, or the nearest above it that there is."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())


def _mark(shared: str, name: str) -> Path:
    return Path(shared, f"{name.replace('/', '_')}.seen")


def _ask(
    nodes: Sequence[Mapping[str, Any]], shared: str | None, store: str | None
) -> tuple[list[Machine], dict[str, str]]:
    """Look at every machine from within; those that do not answer, and why."""
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        has = node["Resources"]
        session = str(Path(node["ObjectStoreSocketName"]).parents[1])
        place = Place(_name(node), int(has.get("GPU", 0)), int(has.get("object_store_memory", 0)), session)
        asked[task.options(scheduling_strategy=there).remote(place, shared, store)] = place.name
    answered, late = ray.wait([*asked], num_returns=len(asked), timeout=PATIENCE_SECONDS)
    machines, silent = [], {asked[each]: f"nothing in {PATIENCE_SECONDS:g} s" for each in late}
    for each in late:
        ray.cancel(each, force=True)
    for each in answered:
        try:
            machines.append(ray.get(each))
        except RayError as error:  # it died, or has no drgn_ray
            silent[asked[each]] = str(error).strip().splitlines()[-1]
    return machines, silent


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeName']}, {node['NodeID'][:6]})"


def look(place: Place, shared: str | None, store: str | None) -> Machine:
    """Look at the machine that this process is on.

    Parameters
    ----------
    shared
        Folder made by the driver, to write a file into.
    store
        Particle store to read from.
    """
    seen = _seen_gpus()
    disk = shutil.disk_usage(nearest(Path(place.session)))
    return Machine(
        name=place.name,
        versions={
            "drgn_ray": __version__,
            "ray": ray.__version__,
            "torch": version("torch"),
            "Python": platform.python_version(),
        },
        auth_mode=os.environ.get("RAY_AUTH_MODE", "not said"),
        known_gpus=seen if place.known_gpus is None else place.known_gpus,
        seen_gpus=seen,
        shared_memory=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else sys.maxsize,
        wanted_shared=place.wanted_shared,
        disk_used=1 - disk.free / max(disk.total, 1),
        runs="" if shared is None else _write(_mark(shared, place.name)),
        store=None if store is None else _read(store),
    )


def _seen_gpus() -> int:
    """GPUs that torch can use; also in a task, from which Ray hides those that it has not reserved."""
    if not Path("/dev/nvidiactl").exists():  # importing torch takes seconds
        return 0
    hidden = os.environ.pop("CUDA_VISIBLE_DEVICES") if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else None
    import torch

    seen = torch.cuda.device_count()
    if hidden is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = hidden
    return seen


def _write(file: Path) -> str:
    try:
        file.write_text(file.name)
    except OSError as error:
        return str(error.strerror)
    return ""


def _read(store: str) -> UserError | None:
    try:
        opened = ParticleStore(store)
        opened.read_images(opened.chunk_rows(0))
    except UserError as error:
        return error
    except OSError as error:
        return StoreError(store, f"it cannot be read ({error.strerror or error})", "check its permissions")
    return None


def judge(
    machines: Sequence[Machine], unseen: Sequence[str] | None, store: str | None, folder: Path | None
) -> list[Finding]:
    """Say what is wrong with machines, the first of which is the one that asks.

    Parameters
    ----------
    unseen
        Machines whose file in the folder of runs is not seen here; None where none can be made.
    store, folder
        What they were asked to read, and to write to.
    """
    findings = [versions(machines), gpus(machines), shared_memory(machines), ray_disk(machines)]
    if len(machines) > 1:
        findings.insert(1, auth_mode(machines))
    if store is not None:
        findings.append(store_read(machines, store))
    if folder is not None:
        findings += [folder_shared(machines, unseen, folder), free_space(folder)]
    return findings


def _answering(machines: Sequence[Machine], silent: Mapping[str, str]) -> Finding:
    if silent:
        said = ", ".join(f"{name} does not answer ({why})" for name, why in silent.items())
        return Finding("machines", said, "see there whether Ray's disk is full and drgn-ray installed")
    return Finding("machines", ", ".join(each.name for each in machines))


def _cpus(plan: Callable[[Nodes], object], nodes: Nodes) -> Finding:
    total = sum(int(node.get("CPU", 0)) for node in nodes)
    try:
        plan(nodes)
    except ResourceError as error:
        return Finding("cpus", f"{error.source}: {error.found}", error.remedy)
    return Finding("cpus", f"{total}, enough for trainers and one a machine for reading")


def versions(machines: Sequence[Machine]) -> Finding:
    """Whether all machines have the same software as the one that asks."""
    ours = machines[0].versions
    other = {
        each.name: ", ".join(
            f"{what} {has} not {ours[what]}" for what, has in each.versions.items() if has != ours[what]
        )
        for each in machines
    }
    said = _by_machine(other)
    if said:
        return Finding("versions", said, "install the same on all machines")
    return Finding("versions", ", ".join(f"{what} {has}" for what, has in ours.items()))


def auth_mode(machines: Sequence[Machine]) -> Finding:
    """Whether ``RAY_AUTH_MODE`` is said everywhere, and the same."""
    modes = {each.name: each.auth_mode for each in machines}
    if len(set(modes.values())) == 1 and "not said" not in modes.values():
        return Finding("auth", f"RAY_AUTH_MODE is {machines[0].auth_mode}")
    remedy = "export RAY_AUTH_MODE=token (or disabled, in a network of your own) before every `ray start` and job"
    return Finding("auth", f"RAY_AUTH_MODE is {_by_machine(modes)}", remedy, stops=False)


def gpus(machines: Sequence[Machine]) -> Finding:
    """Whether torch can use the GPUs that Ray counts."""
    unusable = {
        each.name: f"Ray counts {counted(each.known_gpus, 'GPU')} and torch sees {each.seen_gpus}"
        for each in machines
        if each.seen_gpus < each.known_gpus
    }
    if unusable:
        remedy = "install torch for its CUDA driver there, or start Ray there with fewer --num-gpus"
        return Finding("gpus", _by_machine(unusable), remedy)
    total = sum(each.known_gpus for each in machines)
    unknown = {
        each.name: f"{counted(each.seen_gpus, 'GPU')} of which Ray knows none" for each in machines if each.seen_gpus
    }
    if unknown and not total:
        return Finding("gpus", _by_machine(unknown), "start Ray there with --num-gpus", stops=False)
    return Finding("gpus", str(total) if total else "none: training is on CPUs")


def shared_memory(machines: Sequence[Machine]) -> Finding:
    """Whether Ray's object store fits in shared memory."""
    small = {
        each.name: f"/dev/shm has {_gb(each.shared_memory)} of the {_gb(each.wanted_shared)} that Ray puts there"
        for each in machines
        if each.shared_memory < each.wanted_shared
    }
    if small:
        remedy = "start the container with a larger --shm-size, a third of the memory, say"
        return Finding("shm", _by_machine(small), remedy, stops=False)
    return Finding("shm", f"/dev/shm has {_gb(min(each.shared_memory for each in machines))}")


def ray_disk(machines: Sequence[Machine]) -> Finding:
    """Whether Ray may still put objects on disk."""
    full = {
        each.name: f"the disk of Ray's own files is {each.disk_used:.0%} full"
        for each in machines
        if each.disk_used > MOST_USED
    }
    if full:
        remedy = "delete something, or start Ray there with --temp-dir on another disk"
        return Finding("ray_disk", _by_machine(full), remedy, stops=False)
    most = max(each.disk_used for each in machines)
    return Finding("ray_disk", f"at most {most:.0%} full (beyond {MOST_USED:.0%}, Ray makes no objects there)")


def store_read(machines: Sequence[Machine], store: str) -> Finding:
    """Whether the store is whole, and read from every machine."""
    if (error := machines[0].store) is not None:
        return Finding("store", f"{store}: {error.found}", error.remedy)
    said = _by_machine({each.name: each.store.found for each in machines if each.store is not None})
    if said:
        return Finding("store", f"{store}: {said}", "mount its folder under this path on all machines")
    return Finding("store", f"{store} is whole and read")


def folder_shared(machines: Sequence[Machine], unseen: Sequence[str] | None, folder: Path) -> Finding:
    """Whether every machine writes to the same folder of runs."""
    if unseen is None:
        return Finding("runs", f"{nearest(folder)} cannot be written to", "mend its permissions, or pass another -o")
    trouble = {each.name: each.runs for each in machines} | dict.fromkeys(unseen, "what it writes is not seen here")
    said = _by_machine(trouble)
    if said:
        return Finding("runs", f"{folder}: {said}", "pass a folder that all machines mount under the same path")
    return Finding("runs", f"{folder} is written to")


def free_space(folder: Path) -> Finding:
    """Whether there is room for checkpoints and results."""
    free = shutil.disk_usage(nearest(folder)).free
    if free < LEAST_FREE:
        return Finding(
            "disk", f"{_gb(free)} are free for {folder}", "delete something, or pass another -o", stops=False
        )
    return Finding("disk", f"{_gb(free)} are free")


def _by_machine(said: Mapping[str, str]) -> str:
    """Say what there is to say of machines, those of which the same is said together."""
    names: dict[str, list[str]] = {}
    for name, what in said.items():
        if what:
            names.setdefault(what, []).append(name)
    return ", ".join(f"{what} on {' and '.join(every)}" for what, every in names.items())


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
