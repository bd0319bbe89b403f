"""What the benchmarks share: the command line of this checkout, stacks written piece by piece, Markdown tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import mrcfile
import numpy as np
from jaxtyping import Float32

ROOT = Path(__file__).parents[1]
BATCH = 256
DRGN_RAY = [sys.executable, "-c", "from jobs.cli import main; raise SystemExit(main())"]


def environment(**changes: str) -> dict[str, str]:
    """Environment of a command of this checkout, on a Ray of its own even where ``RAY_ADDRESS`` names a cluster."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def write_stack(
    path: Path,
    num_images: int,
    box_size: int,
    make_images: Callable[[int], Float32[np.ndarray, "n D D"]],
    *,
    mode: int = 2,
) -> None:
    """Write an MRC stack in pieces of `BATCH` images, which `make_images` makes given their number."""
    with mrcfile.new_mmap(path, (num_images, box_size, box_size), mrc_mode=mode) as file:
        file.set_image_stack()
        for start in range(0, num_images, BATCH):
            count = min(BATCH, num_images - start)
            file.data[start : start + count] = make_images(count)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")
