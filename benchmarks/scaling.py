"""How training scales over data-parallel workers: measured here, and by a model of compute, all-reduce and data.

python -m benchmarks.scaling

Measured: two CPU workers, each pinned to a core of its own, at fixed work per worker, beside the same two without
sharing gradients (so that what the machine's cores take from one another does not count) and one alone.

Modelled: seconds of a step on n GPUs = arithmetic + what of the all-reduce the backward pass does not hide.  A ring
all-reduce sends 2 (n - 1) / n times the gradients through every link; DDP overlaps it with the backward pass, which is
two thirds of the arithmetic.  Images must arrive as fast as they are used.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.common import print_table
from benchmarks.train_table import ZDIM, noise
from drgn_ray.config import ModelConfig, TrainingConfig
from drgn_ray.models import build_model
from drgn_ray.models.model import Model
from drgn_ray.training.step import Step

WAYS = {"one worker": 1, "two, apart": 2, "two, data-parallel": 2}
GPUS = (1, 2, 4, 8, 16, 32, 64)
LINKS = {"NVLink, 450 GB/s": 450e9, "100 Gb/s Ethernet": 12.5e9, "25 Gb/s Ethernet": 3.1e9}
SHARE_OF_PEAK = 0.4  # that a GPU reaches, of PEAK
PEAK = 790e12  # FLOP/s in bf16 of an H200
BYTES_A_PIXEL = 2  # float16


def main() -> int:
    """Measure, then print the model's tables."""
    arguments = _parse()
    width, layers = map(int, arguments.architecture.split("x"))
    if not arguments.model_only:
        _print_measured(arguments, width, layers)
    _print_modelled(arguments)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="128x3", help="width x layers of both networks, measured")
    parser.add_argument("--size", type=int, default=64, help="box size that is measured, px")
    parser.add_argument("--batch-size", type=int, default=16, help="of a CPU worker")
    parser.add_argument("--gpu-batch-size", type=int, default=64, help="of a modelled GPU")
    parser.add_argument("--seconds", type=float, default=10.0, help="of every measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model-only", action="store_true", help="measure nothing")
    return parser.parse_args()


def _network(width: int, layers: int, size: int) -> Model:
    settings = ModelConfig(zdim=ZDIM, enc_dim=width, enc_layers=layers, dec_dim=width, dec_layers=layers)
    return build_model(settings, box_size=size, data_sign=-1, hartley_std=1.0, ctf=True)


def _print_measured(arguments: argparse.Namespace, width: int, layers: int) -> None:
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way, count in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                spawn(_work, args=(way, folder, arguments, width, layers), nprocs=count)
                rates[way].append(np.mean([float(file.read_text()) for file in Path(folder).glob("rate_*")]).item())
    found = {way: float(np.median(each)) for way, each in rates.items()}
    parameters = sum(each.numel() for each in _network(width, layers, arguments.size).parameters())
    print(f"{arguments.architecture}, D = {arguments.size}, {arguments.batch_size} images a worker and step,")
    print(f"{parameters / 1e6:.2f} million gradients, a core a worker\n")
    rows = [[way, f"{rate:.1f}", f"{rate / found['two, apart']:.0%}"] for way, rate in found.items()]
    print_table(["workers", "images/s of each", "of two apart"], rows)
    print()


def _work(rank: int, way: str, folder: str, arguments: argparse.Namespace, width: int, layers: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    together = WAYS[way] > 1
    if together:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WAYS[way])
    torch.manual_seed(0)
    shared = WAYS[way] if way.endswith("data-parallel") else 1
    step = Step(_network(width, layers, arguments.size), TrainingConfig(), bf16=False, world_size=shared)
    batch = noise(arguments.batch_size, arguments.size, torch.device("cpu"))
    step(batch, 1e-4)
    if together:
        dist.barrier()
    start, count = time.perf_counter(), 0
    # As many steps on all workers: each asks whether the first's time is up.
    while _go_on(time.perf_counter() - start < arguments.seconds, together):
        step(batch, 1e-4)
        count += 1
    rate = count * arguments.batch_size / (time.perf_counter() - start)
    Path(folder, f"rate_{rank}").write_text(str(rate))
    if together:
        dist.destroy_process_group()


def _go_on(mine: bool, together: bool) -> bool:
    if not together:
        return mine
    first = torch.tensor([float(mine)])
    dist.broadcast(first, 0)
    return bool(first)


class Cost(NamedTuple):
    """What a step of one image costs.

    Attributes
    ----------
    flop
        Forward, and backward but for the gradient of the points.
    parameters
        Number of gradients.
    """

    flop: float
    parameters: int


def cost(width: int, layers: int, size: int) -> Cost:
    """Count multiplications and additions of decoder and encoder, by formula."""
    points = math.pi * size**2 / 8
    first, residual, last = 3 * size * width, layers * width**2, 2 * width  # the latent's share is once an image
    decoder = 2 * points * (3 * (first + residual + last) - first)
    inputs = 2 * points * width
    encoder = 2 * (3 * (inputs + residual + 2 * ZDIM * width) - inputs)
    biases = 2 * (layers + 1) * width + 2 + 2 * ZDIM
    return Cost(decoder + encoder, int(first + inputs + 2 * residual + last + 3 * ZDIM * width + biases))


def step_seconds(one: Cost, images: int, num_gpus: int, bandwidth: float, bytes_a_gradient: int = 4) -> float:
    """Seconds of a step of `images` a GPU."""
    compute = images * one.flop / (SHARE_OF_PEAK * PEAK)
    all_reduce = 2 * (num_gpus - 1) / num_gpus * one.parameters * bytes_a_gradient / bandwidth
    return compute + max(all_reduce - 2 / 3 * compute, 0)


def _print_modelled(arguments: argparse.Namespace) -> None:
    images = arguments.gpu_batch_size
    print(f"modelled: {images} images a GPU and step, {SHARE_OF_PEAK:.0%} of {PEAK / 1e12:.0f} TFLOP/s\n")
    rows = []
    for width, layers, size in ((256, 3, 128), (1024, 3, 128), (1024, 3, 256), (1024, 10, 256)):
        one = cost(width, layers, size)
        alone = step_seconds(one, images, 1, math.inf)
        read = images / alone * size**2 * BYTES_A_PIXEL
        for link, bandwidth in LINKS.items():
            for name, bytes_a_gradient in (("fp32", 4), ("bf16", 2)):
                times = [step_seconds(one, images, count, bandwidth, bytes_a_gradient) for count in GPUS]
                line = [f"{width}x{layers}, {size}", f"{one.parameters / 1e6:.0f}", f"{images / alone:,.0f}"]
                line += [f"{read / 1e9:.2f}", link, name, *(f"{alone / each:.0%}" for each in times)]
                rows.append(line)
    head = ["network, D", "million gradients", "images/s of one", "GB/s to read", "link", "sent as", *map(str, GPUS)]
    print_table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
