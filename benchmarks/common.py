"""What the benchmarks share: commands that are timed in turn, stacks written piece by piece, Markdown tables."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from jaxtyping import Float32

ROOT = Path(__file__).parents[1]
BATCH = 256
DRGN_RAY = [sys.executable, "-c", "from jobs.cli import main; raise SystemExit(main())"]


def environment(**changes: str) -> dict[str, str]:
    """Environment of a command of this checkout, on a Ray of its own even where ``RAY_ADDRESS`` names a cluster."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def environment_of_others() -> dict[str, str]:
    """Environment of a program that is not ours."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def parse_against_cryodrgn(parser: argparse.ArgumentParser, *, cores: int, workers: list[int]) -> argparse.Namespace:
    """Add what every comparison with cryoDRGN asks, with these defaults, and parse the command line."""
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=cores, help="cores the programs may use")
    parser.add_argument("--workers", type=int, nargs="+", default=workers, help="each is timed; 0 is without Ray")
    parser.add_argument("--cryodrgn", default=os.environ.get("DRGN_RAY_CRYODRGN"), help="path of cryodrgn")
    parser.add_argument("--folder", help="where particles and results are put for the time")
    arguments = parser.parse_args()
    if arguments.cryodrgn is None:
        parser.error("pass --cryodrgn PATH, or set DRGN_RAY_CRYODRGN")
    return arguments


def run_measured(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], name: str
) -> tuple[float, resource.struct_rusage]:
    """Run a command in a folder; return the seconds it took, and what it and its children used."""
    with tempfile.TemporaryFile() as log:
        start = time.monotonic()
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{name} ended with exit code {process.returncode}:\n{log.read().decode()}")
    return seconds, usage


@dataclass
class Contestant:
    """A command that is timed, and what was measured.

    Attributes
    ----------
    output
        File or folder it writes, removed before each run.
    startups, seconds
        Times of the command on few images and on many.
    peak_mib
        Largest resident memory of its (first) process in any run on many images.
    """

    name: str
    words: list[str]
    output: str
    environment: dict[str, str]
    startups: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    def run(self, folder: Path) -> tuple[float, float]:
        """Run the command in a folder; return the seconds it took and its peak memory, MiB."""
        output = folder / self.output
        if output.is_dir():
            shutil.rmtree(output)
        output.unlink(missing_ok=True)
        os.sync()
        seconds, usage = run_measured(self.words, folder, self.environment, self.name)
        return seconds, usage.ru_maxrss / 1024

    def measure(self, few: Path, many: Path) -> None:
        """Run on few images, then on many."""
        self.startups.append(self.run(few)[0])
        seconds, peak = self.run(many)
        self.seconds.append(seconds)
        self.peak_mib = max(self.peak_mib, peak)

    @property
    def work(self) -> float:
        """Median seconds without the start-up."""
        return median(self.seconds) - median(self.startups)


def print_times(contestants: Sequence[Contestant], num_images: int) -> None:
    """Print a table of times, with speeds as ratios to the first contestant's."""
    first = contestants[0]
    print_table(
        ["command", "min s", "median s", "images/s", "speed", "start-up s", "speed without start-up", "peak MiB"],
        [
            [
                one.name,
                f"{min(one.seconds):.2f}",
                f"{median(one.seconds):.2f}",
                f"{num_images / median(one.seconds):,.0f}",
                f"{median(first.seconds) / median(one.seconds):.2f}x",
                f"{median(one.startups):.2f}",
                f"{first.work / one.work:.2f}x",
                f"{one.peak_mib:,.0f}",
            ]
            for one in contestants
        ],
    )


def read_through(path: Path) -> None:
    """Read a file once, so that it is in the page cache."""
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass


def write_stack(
    path: Path,
    num_images: int,
    box_size: int,
    make_images: Callable[[int], Float32[np.ndarray, "n D D"]],
    *,
    mode: int = 2,
) -> None:
    """Write an MRC stack in pieces of `BATCH` images, which `make_images` makes given their number."""
    import mrcfile  # which a machine without stacks need not have

    with mrcfile.new_mmap(path, (num_images, box_size, box_size), mrc_mode=mode) as file:
        file.set_image_stack()
        for start in range(0, num_images, BATCH):
            count = min(BATCH, num_images - start)
            file.data[start : start + count] = make_images(count)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(markdown_table(head, rows))
