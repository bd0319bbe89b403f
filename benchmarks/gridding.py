"""Slices of several volumes and the sums of their normal equations: the compiled loops against torch's operations.

python -m benchmarks.gridding
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from benchmarks.common import print_table
from drgn_ray.physics.gridding import (
    empty_moment_sums,
    insert_moments,
    insert_moments_with_torch,
    interpolate,
    interpolate_with_torch,
)
from drgn_ray.physics.lattice import half_disc

CASES = ((64, 8), (64, 12), (64, 32), (128, 12), (128, 64))  # box size and radius
NUM_VOLUMES = (4, 9)
SECONDS = 1.0  # that each is repeated for


def images_a_second(call: Callable[[], object], num_images: int) -> float:
    """Rate of the best repetition, on one thread."""
    call()
    times, start = [], time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return num_images / min(times)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows = []
    for box_size, radius in CASES:
        points = half_disc(box_size, radius)
        count = max(2_000_000 // points.num_points // 16, 8)
        rotation = torch.tensor(Rotation.random(count, rng=np.random.default_rng(0)).as_matrix(), dtype=torch.float32)
        values = torch.randn(count, points.num_points, dtype=torch.complex64)
        weights = torch.rand(count, points.num_points)
        lattice_size = min(2 * (radius + 2), box_size)
        for num_volumes in NUM_VOLUMES:
            first = torch.randn(count, num_volumes)
            second = torch.randn(count, num_volumes * (num_volumes + 1) // 2)
            sums = empty_moment_sums(lattice_size, num_volumes)
            lattice = torch.randn(*sums.shape[:3], num_volumes, dtype=torch.complex64)
            calls = [partial(slicing, lattice, points.k, rotation) for slicing in (interpolate, interpolate_with_torch)]
            arguments = (sums, values, weights, first, second, points.k, rotation)
            calls += [partial(inserting, *arguments) for inserting in (insert_moments, insert_moments_with_torch)]
            rates = [f"{images_a_second(call, count):,.0f}" for call in calls]
            rows.append([f"{box_size}", f"{radius}", f"{num_volumes}", *rates])
    print_table(("D", "radius", "volumes", "slices", "by torch", "insertion", "by torch"), rows)


if __name__ == "__main__":
    main()
