"""Convert a large set of white noise on Ray: speed, peak memory, and the same store after three kills.

python -m benchmarks.convert_large --short

Converts once in one go, and once more with the driver and all of Ray killed (SIGKILL) at three random moments and the
same command started again; each moment is drawn from the time that follows the first shard a call writes.  Both
conversions run the same command with the same relative -o in two folders, so nothing may differ between the two
stores: the same files with the same bytes, metadata included.

Memory is the sum of the processes' proportional set sizes (PSS: pages shared by n processes count 1/n in each), read
every 0.2 s while the command runs without kills; a shorter peak can go unseen.  Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import filecmp
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import starfile

from benchmarks.common import DRGN_RAY, environment, print_table, write_stack

STORE = "particles.zarr"
NUM_KILLS = 3
POLL_SECONDS = 0.2
MIB = 1 << 20
# 32 shards of 32 MiB; at 128 px and float16 they would be four, for which few kills find anything to interrupt.
SHORT = {"num_images": 4000, "box_size": 256, "dtype": "float32"}
PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Uninterrupted:
    """What was measured on the conversion in one go.

    Attributes
    ----------
    seconds
        The whole command, start-up included.
    writing
        Seconds since the first shard was begun to be written.
    driver_mib, servers_mib, total_mib
        Peak memory of the driver with Ray's workers, of Ray's servers, and of all together at one moment, MiB.
    """

    seconds: float = 0.0
    writing: float = 0.0
    driver_mib: float = 0.0
    servers_mib: float = 0.0
    total_mib: float = 0.0

    def see_memory(self, driver_mib: float, servers_mib: float) -> None:
        """Raise the peaks to what is used now."""
        self.driver_mib = max(self.driver_mib, driver_mib)
        self.servers_mib = max(self.servers_mib, servers_mib)
        self.total_mib = max(self.total_mib, driver_mib + servers_mib)


def main() -> int:
    """Run the benchmark; return 1 if the stores differ or memory is over the limit."""
    arguments = _parse()
    print(f"seed {arguments.seed}", flush=True)
    rng = np.random.default_rng(arguments.seed)
    _adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="convert_large_", dir=arguments.folder) as name:
        folder = Path(name)
        star = write_particles(folder / "source", arguments, rng)
        num_bytes = sum(path.stat().st_size for path in star.parent.glob("*.mrcs"))
        words = ["convert", str(star), "-o", STORE, "--dtype", arguments.dtype, "--workers", str(arguments.workers)]
        whole, killed = folder / "whole", folder / "killed"
        measured = convert_in_one_go(words, whole)
        print(f"in one go: {measured.seconds:.1f} s", flush=True)
        redone = [kill_once(words, killed, measured, rng) for _ in range(NUM_KILLS)]
        with started(words, killed) as process:
            _check(process.wait())
        different = find_differences(whole / STORE, killed / STORE)
    for path in different:
        print(f"differs: {path}")
    _report(arguments, num_bytes, measured, redone, identical=not different)
    return int(bool(different) or measured.total_mib > arguments.memory_limit_mib)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=200_000)
    parser.add_argument("--box-size", type=int, default=128, help="px")
    parser.add_argument("--stack-images", type=int, default=2000, help="images a stack")
    parser.add_argument("--mode", type=int, choices=(2, 12), default=2, help="MRC mode: float32 or float16")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the store")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory-limit-mib", type=float, default=2048)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the particles and of the kills")
    parser.add_argument("--folder", help="where the set and both stores are put for the time (twice the set's bytes)")
    parser.add_argument("--short", action="store_true", help="4,000 images of 256 px, kept as float32")
    arguments = parser.parse_args()
    if arguments.short:
        vars(arguments).update(SHORT)
    return arguments


def write_particles(folder: Path, arguments: argparse.Namespace, rng: np.random.Generator) -> Path:
    """Write stacks of white noise and their STAR file; memory for one piece of a stack at a time."""
    folder.mkdir()
    count, side = arguments.num_images, arguments.box_size
    names = []
    for number, start in enumerate(range(0, count, arguments.stack_images)):
        in_stack = min(arguments.stack_images, count - start)
        name = f"stack{number:05d}.mrcs"
        write_stack(
            folder / name,
            in_stack,
            side,
            lambda images: rng.standard_normal((images, side, side), np.float32),
            mode=arguments.mode,
        )
        names += [f"{image:06d}@{name}" for image in range(1, in_stack + 1)]
    defocus = rng.uniform(8e3, 2e4, count)
    particles = pd.DataFrame(
        {
            "rlnImageName": names,
            "rlnAngleRot": rng.uniform(-180, 180, count),
            "rlnAngleTilt": np.degrees(np.arccos(rng.uniform(-1, 1, count))),
            "rlnAnglePsi": rng.uniform(-180, 180, count),
            "rlnOriginXAngst": rng.normal(0, 3, count),
            "rlnOriginYAngst": rng.normal(0, 3, count),
            "rlnDefocusU": defocus,
            "rlnDefocusV": defocus + rng.normal(0, 200, count),
            "rlnDefocusAngle": rng.uniform(-90, 90, count),
            "rlnOpticsGroup": 1,
            "rlnRandomSubset": rng.integers(1, 3, count),
        }
    )
    optics = pd.DataFrame(
        {
            "rlnOpticsGroup": [1],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
            "rlnImagePixelSize": [2.0],
        }
    )
    starfile.write({"optics": optics, "particles": particles}, folder / "particles.star")
    return folder / "particles.star"


@contextmanager
def started(words: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command in a folder; at the end, of whatever kind, nothing of it is left running."""
    folder.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="ray_", dir="/tmp", ignore_cleanup_errors=True) as ray_folder,  # short paths
        open(folder / "log.txt", "ab") as log,
    ):
        process = subprocess.Popen(
            [*DRGN_RAY, *words], cwd=folder, env=environment(RAY_TMPDIR=ray_folder), stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            kill_all()


def convert_in_one_go(words: list[str], folder: Path) -> Uninterrupted:
    """Convert and watch the memory."""
    measured = Uninterrupted()
    start = writing_since = time.monotonic()
    with started(words, folder) as process:
        while process.poll() is None:
            measured.see_memory(*memory_mib(process.pid))
            if not shard_files(folder / STORE):
                writing_since = time.monotonic()
            time.sleep(POLL_SECONDS)
        measured.seconds = time.monotonic() - start
        measured.writing = time.monotonic() - writing_since
        _check(process.returncode)
    return measured


def kill_once(words: list[str], folder: Path, measured: Uninterrupted, rng: np.random.Generator) -> int:
    """Start the command, kill it at a random moment while it writes shards; return how many begun ones that redoes.

    These are the shards of which a file is there, but no record that it is done.  Shards whose images were only read
    so far are redone too, but leave nothing to count: a worker has one shard at a time.
    """
    store = folder / STORE
    pending = 1 - len(done_shards(store)) / len(shard_files(folder.with_name("whole") / STORE))
    pause = rng.uniform(0, pending / 2 * measured.writing)
    before = shard_files(store)
    start = time.monotonic()
    with started(words, folder) as process:
        while process.poll() is None and not shard_files(store) - before:
            time.sleep(0.01)
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            kill_all()
        else:
            raise SystemExit(f"it ended (exit code {process.returncode}) before it could be killed; run again")
    done = done_shards(store)
    begun = {int(path.parts[-3]) for path in shard_files(store)} - done
    print(f"killed after {time.monotonic() - start:.1f} s: {len(done)} shards done, {len(begun)} begun", flush=True)
    return len(begun)


def shard_files(store: Path) -> set[Path]:
    """Find the files of shards, half-written ones (``.partial``) included."""
    return set((store / "images/c").glob("*/0/*"))


def done_shards(store: Path) -> set[int]:
    """Find the shards that an unfinished store records as done."""
    return {int(path.stem) for path in (store / "progress").glob("*.done")}


def _adopt_orphans() -> None:
    """Become the parent of processes whose parent dies, so that all that a command started stays our descendant."""
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def kill_all() -> None:
    """Kill every process that descends from this one, and those they start meanwhile."""
    while alive := psutil.Process().children(recursive=True):
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(alive)


def memory_mib(driver: int) -> tuple[float, float]:
    """Measure the memory of the driver with Ray's workers, and of Ray's servers, MiB."""
    used = [0.0, 0.0]
    for process in psutil.Process().children(recursive=True):
        try:
            is_server = process.pid != driver and not _is_worker(process)
            used[is_server] += process.memory_full_info().pss / MIB
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
            continue
    return used[0], used[1]


def _is_worker(process: psutil.Process) -> bool:
    words = process.cmdline()
    return any(word.startswith("ray::") or word.endswith("default_worker.py") for word in words)


def find_differences(one: Path, other: Path) -> list[str]:
    """Compare two folders byte by byte; return the files that differ or that only one has."""
    names = [{str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} for root in (one, other)]
    same, _, _ = filecmp.cmpfiles(one, other, names[0] & names[1], shallow=False)
    return sorted((names[0] | names[1]) - set(same))


def _check(code: int) -> None:
    if code:
        raise SystemExit(f"the conversion ended with exit code {code}")


def _report(
    arguments: argparse.Namespace, num_bytes: int, measured: Uninterrupted, redone: list[int], *, identical: bool
) -> None:
    print_table(
        [
            "images",
            "box, px",
            "bytes",
            "seconds",
            "images/s",
            "driver and workers, MiB",
            "Ray's servers, MiB",
            "total, MiB",
            "shards redone after each kill",
            "identical",
        ],
        [
            [
                f"{arguments.num_images:,}",
                str(arguments.box_size),
                f"{num_bytes:,}",
                f"{measured.seconds:.1f}",
                f"{arguments.num_images / measured.seconds:,.0f}",
                f"{measured.driver_mib:,.0f}",
                f"{measured.servers_mib:,.0f}",
                f"{measured.total_mib:,.0f}",
                ", ".join(map(str, redone)),
                "yes" if identical else "no",
            ]
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
