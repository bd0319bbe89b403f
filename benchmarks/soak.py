"""Whether memory stays flat in a long training: of driver, workers, what reads for them, Ray's store of objects.

python -m benchmarks.soak STORE --minutes 60

A network is trained by two workers on a Ray of its own, in as many epochs as there is time for; every ten seconds it
is written down what all processes hold for themselves alone (unique set size), and how many files they have open. Of
Ray's store of objects it is the memory that was ever touched. Printed is what each had after a tenth of the time and
at the end, and the line that fits between; `--figure` draws it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from benchmarks.common import DRGN_RAY, environment, print_table

NETWORK = "--zdim 4 --enc-dim 64 --dec-dim 64 --val-fraction 0.05 -b 64 -n 100000 --no-analysis"
PARTS = {
    "driver": r"from jobs\.cli import main",
    "training workers": r"^ray::\S*TrainWorker",
    "controller and reading": r"^ray::",
    "raylet": r"raylet/raylet",
    "GCS": r"gcs_server",
}
STORE = "object store, touched"
FILES = "open files"


def main() -> int:
    """Train, write down, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="a particle store")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between measurements")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="a file for what was measured")
    parser.add_argument("--figure", type=Path, help="a PNG file")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak_", dir="/tmp"))  # Ray's sockets need a short path
    try:
        samples, epochs = _soak(arguments, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"epochs": epochs, "samples": samples}))
    _print(samples, epochs)
    if arguments.figure:
        _draw(samples, arguments.figure)
    return 0


def _soak(arguments: argparse.Namespace, folder: Path) -> tuple[list[dict[str, float]], int]:
    import ray

    ray.init(
        address="local",
        num_cpus=2 * arguments.workers,  # of which as many read
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=str(folder / "ray"),
    )
    words = [*DRGN_RAY, "train", str(arguments.store.resolve()), "-o", str(folder / "run"), *NETWORK.split()]
    words += ["--workers", str(arguments.workers), "--cpus-per-worker", "1"]
    surroundings = environment(OMP_NUM_THREADS="1") | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    samples: list[dict[str, float]] = []
    start = time.monotonic()
    with (folder / "log").open("wb") as log:
        driver = subprocess.Popen(words, env=surroundings, stdout=log, stderr=log)
        try:
            while time.monotonic() < start + 60 * arguments.minutes:
                time.sleep(arguments.every)
                if driver.poll() is not None:
                    raise SystemExit(f"the training ended:\n{(folder / 'log').read_text()[-3000:]}")
                samples.append({"minutes": (time.monotonic() - start) / 60, **_measured()})
        finally:
            driver.kill()
            driver.wait()
    ray.shutdown()
    epochs = re.findall(r"^epoch (\d+)/\d+ done", (folder / "log").read_text(), re.MULTILINE)
    return samples, len(epochs)


def _measured() -> dict[str, float]:
    """MiB of every part, and files that they have open."""
    found: dict[str, float] = defaultdict(float)
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with suppress(psutil.NoSuchProcess, FileNotFoundError):
            words = " ".join(process.cmdline())
            part = next((part for part, pattern in PARTS.items() if re.search(pattern, words)), None)
            if part is None:
                continue
            found[part] += process.memory_full_info().uss / 2**20
            found[FILES] += process.num_fds()
            if part == "raylet":
                files = [
                    file.stat()
                    for file in Path(f"/proc/{process.pid}/fd").iterdir()
                    if "/plasma" in str(file.readlink())
                ]
                found[STORE] = sum({file.st_ino: file.st_blocks * 512 for file in files}.values()) / 2**20
    return dict(found)


def _print(samples: list[dict[str, float]], epochs: int) -> None:
    minutes = np.array([sample["minutes"] for sample in samples])
    settled = minutes >= minutes[-1] / 10
    print(f"{epochs} epochs in {minutes[-1]:.0f} minutes; MiB (and files)")
    rows = []
    for part in [*PARTS, STORE, FILES]:
        values = np.array([sample.get(part, 0.0) for sample in samples])[settled]
        slope = np.polyfit(minutes[settled], values, 1)[0] * 60
        spread = [f"{each:,.0f}" for each in (values[0], np.median(values), values.max(), values[-1])]
        rows.append([part, *spread, f"{slope:+,.1f}"])
    print_table(["part", "after a tenth", "median", "most", "at the end", "an hour, by a line"], rows)


def _draw(samples: list[dict[str, float]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    minutes = [sample["minutes"] for sample in samples]
    for part in [*PARTS, STORE]:
        axes.plot(minutes, [sample.get(part, np.nan) for sample in samples], label=part, linewidth=1)
    axes.set(xlabel="minutes", ylabel="MiB", ylim=(0, None), title="Memory of a training by two workers")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
