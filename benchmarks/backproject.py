"""Back-project a stack with `cryodrgn backproject_voxel` and with `drgn-ray backproject`, in turn, on the same cores.

python -m benchmarks.backproject --cryodrgn PATH

Images are noise with random poses, CTFs and shifts; what is in them makes no difference to the time.  The store is
converted before; files are in the page cache.  Start-up is the time of the same command on few images, with its FSC.
Memory is that of the command's own process; `--growth` also runs ours on four times as many images, to see whether it
grows.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
from scipy.spatial.transform import Rotation

from benchmarks.common import (
    DRGN_RAY,
    Contestant,
    environment,
    environment_of_others,
    parse_against_cryodrgn,
    print_times,
    read_through,
    write_stack,
)

FEW = 64
STACK, STORE = "stack.mrcs", "particles.zarr"
LEAST_CORRELATION = 0.9999  # in the compatible mode; theirs counts a coordinate that is whole in float32 twice


def main() -> int:
    """Run the benchmark; return 1 if the two programs' maps differ."""
    arguments = _parse()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    theirs = _cryodrgn(arguments)
    compatible = _drgn_ray(0, "--like-cryodrgn")
    contestants = [theirs, compatible, *(_drgn_ray(workers) for workers in arguments.workers)]
    with tempfile.TemporaryDirectory(prefix="backproject_", dir=arguments.folder) as name:
        few, many, more = (Path(name, folder) for folder in ("few", "many", "more"))
        write_particles(few, FEW, arguments)
        write_particles(many, arguments.num_images, arguments)
        for _ in range(arguments.repeats):
            for contestant in contestants:
                contestant.measure(few, many)
        volumes = [mrcfile.read(many / one.output / "backproject.mrc") for one in (theirs, compatible)]
        correlation = float(np.corrcoef(*(volume.ravel() for volume in volumes))[0, 1])
        print(f"{arguments.num_images:,} images of {arguments.box_size} px, {arguments.cores} cores\n")
        print_times(contestants, arguments.num_images)
        print(f"\nthe compatible map correlates with theirs to 1 - {1 - correlation:.1e}")
        if arguments.growth:
            write_particles(more, 4 * arguments.num_images, arguments)
            peaks = [_drgn_ray(0).run(folder)[1] for folder in (many, more)]
            print(f"peak memory: {peaks[0]:,.0f} MiB, of four times as many images {peaks[1]:,.0f} MiB")
    return int(correlation < LEAST_CORRELATION)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=8000)
    parser.add_argument("--box-size", type=int, default=128, help="px")
    parser.add_argument("--growth", action="store_true", help="measure memory on four times as many images too")
    return parse_against_cryodrgn(parser, cores=1, workers=[0])


def _cryodrgn(arguments: argparse.Namespace) -> Contestant:
    words = ["backproject_voxel", STACK, "--poses", "pose.pkl", "--ctf", "ctf.pkl", "-o", "theirs"]
    return Contestant("cryodrgn backproject_voxel", [arguments.cryodrgn, *words], "theirs", environment_of_others())


def _drgn_ray(workers: int, *flags: str) -> Contestant:
    output = "ours" + "".join(flags)
    words = ["backproject", STORE, "-o", output, "--workers", str(workers), *flags]
    name = " ".join(["drgn-ray backproject --workers", str(workers), *flags])
    return Contestant(name, [*DRGN_RAY, *words], output, environment())


def write_particles(folder: Path, num_images: int, arguments: argparse.Namespace) -> None:
    """Write a stack of noise with cryoDRGN's pickles of poses and CTF, and convert them to a store."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    size = arguments.box_size
    write_stack(folder / STACK, num_images, size, lambda count: rng.standard_normal((count, size, size), np.float32))
    rotation = Rotation.random(num_images, random_state=rng).as_matrix()
    poses = rotation.astype(np.float32), rng.normal(0, 0.02, (num_images, 2)).astype(np.float32)
    (folder / "pose.pkl").write_bytes(pickle.dumps(poses))
    ctf = np.tile(np.array([size, 1.5, 0, 0, 0, 300, 2.7, 0.1, 0], np.float32), (num_images, 1))
    ctf[:, 2:4] = rng.uniform(8e3, 2e4, (num_images, 1)) + rng.normal(0, 200, (num_images, 2))
    (folder / "ctf.pkl").write_bytes(pickle.dumps(ctf))
    words = ["convert", STACK, "--poses", "pose.pkl", "--ctf", "ctf.pkl", "-o", STORE, "--invert", "--workers", "0"]
    settings = ["-D", str(size), "--dtype", "float32"]
    subprocess.run([*DRGN_RAY, *words, *settings], cwd=folder, env=environment(), check=True, capture_output=True)
    read_through(folder / STACK)


if __name__ == "__main__":
    sys.exit(main())
