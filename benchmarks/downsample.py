"""Downsample a stack with `cryodrgn downsample` and with `drgn-ray convert`, in turn and on the same cores.

python -m benchmarks.downsample --cryodrgn PATH

The stack is read once before, so that both find it in the page cache, and what was written is on the disk before the
next command starts.  Start-up is the time of the same command on 16 images; a conversion of so few starts no Ray, so
Ray's own start stays in the times of --workers 1 and more.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
from scipy.spatial.transform import Rotation

from benchmarks.common import (
    BATCH,
    DRGN_RAY,
    Contestant,
    environment,
    environment_of_others,
    parse_against_cryodrgn,
    print_times,
    read_through,
    write_stack,
)
from drgn_ray.particles.store import ParticleStore

FEW = 16
LARGEST_DIFFERENCE = 1e-4  # of the standard deviation; float32 rounds at about 1e-6 of it
MRCS, STORE = "downsampled.mrcs", "downsampled.zarr"


def main() -> int:
    """Run the benchmark; return 1 if the two programs' images differ."""
    arguments = _parse()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    contestants = [_cryodrgn(arguments), *(_drgn_ray(workers, arguments) for workers in arguments.workers)]
    with tempfile.TemporaryDirectory(prefix="downsample_", dir=arguments.folder) as name:
        few, many = Path(name, "few"), Path(name, "many")
        write_source(few, FEW, arguments.box_size)
        write_source(many, arguments.num_images, arguments.box_size)
        read_through(many / "stack.mrcs")
        for _ in range(arguments.repeats):
            for contestant in contestants:
                contestant.measure(few, many)
        difference = largest_difference(many / MRCS, many / STORE)
    _report(arguments, contestants)
    print(f"\nlargest difference: {difference:.1e} of the standard deviation")
    return int(difference > LARGEST_DIFFERENCE)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=4000)
    parser.add_argument("--box-size", type=int, default=256, help="px")
    parser.add_argument("-D", dest="target", type=int, default=128, help="box size to downsample to, px")
    return parse_against_cryodrgn(parser, cores=2, workers=[0, 2])


def _cryodrgn(arguments: argparse.Namespace) -> Contestant:
    words = [arguments.cryodrgn, "downsample", "stack.mrcs", "-D", str(arguments.target), "-o", MRCS]
    return Contestant("cryodrgn downsample", words, MRCS, environment_of_others())


def _drgn_ray(workers: int, arguments: argparse.Namespace) -> Contestant:
    settings = ["-D", str(arguments.target), "--dtype", "float32", "--workers", str(workers), "-o", STORE]
    words = ["convert", "stack.mrcs", "--poses", "pose.pkl", "--no-ctf", "--apix", "1", *settings]
    return Contestant(f"drgn-ray convert --workers {workers}", [*DRGN_RAY, *words], STORE, environment())


def write_source(folder: Path, num_images: int, box_size: int) -> None:
    """Write a stack of a white blob in noise, and random poses."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    axis = np.linspace(-1, 1, box_size, endpoint=False, dtype=np.float32)
    blob = np.exp(-8 * (axis[:, None] ** 2 + axis**2))
    write_stack(
        folder / "stack.mrcs",
        num_images,
        box_size,
        lambda count: blob + rng.standard_normal((count, box_size, box_size), np.float32),
    )
    poses = Rotation.random(num_images, random_state=rng).as_matrix(), np.zeros((num_images, 2))
    (folder / "pose.pkl").write_bytes(pickle.dumps(poses))


def largest_difference(mrcs: Path, store_path: Path) -> float:
    """Compare the two programs' images; return the largest difference over the standard deviation."""
    store = ParticleStore(store_path)
    largest = 0.0
    with mrcfile.mmap(mrcs) as file:
        assert file.data.shape == store.images.shape, (file.data.shape, store.images.shape)
        for start in range(0, len(store), BATCH):
            rows = slice(start, min(start + BATCH, len(store)))
            ours, theirs = store.read_images(rows) * store.info.scale, file.data[rows]
            largest = max(largest, float(np.abs(ours - theirs).max() / theirs.std()))
    return largest


def _report(arguments: argparse.Namespace, contestants: list[Contestant]) -> None:
    print(
        f"{arguments.num_images:,} images, {arguments.box_size} to {arguments.target} px, float32,"
        f" {arguments.cores} cores, {arguments.repeats} repeats\n"
    )
    print_times(contestants, arguments.num_images)


if __name__ == "__main__":
    sys.exit(main())
