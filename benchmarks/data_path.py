"""What reading from the store adds to training: batches that lie on the device already, beside streamed ones.

python -m benchmarks.data_path

The store is noise, ten times as large as the memory that reading may take, which is measured too: the growth of the
process's resident memory from the first batch to the last.  `stream` reads in the training process (`--workers 0`),
`ray` through Ray Data.  Each is timed with steps of a network and without; what counts is the (core-)seconds an image
that the training process spends, which on a CPU includes reading ahead in a thread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.common import environment, print_table
from drgn_ray.config import ModelConfig, TrainingConfig
from drgn_ray.models import build_model
from drgn_ray.particles.loader import ahead, stream_slice
from drgn_ray.particles.order import ParticleOrder
from drgn_ray.particles.schema import COLUMNS
from drgn_ray.particles.store import ParticleStore, StoreInfo, StoreWriter
from drgn_ray.training.precision import uses_bf16
from drgn_ray.training.step import Step, pinned, to_device

WAYS = ("resident", "stream", "ray")
OPTICS = {"apix": 1.5, "defocus_u": 15e3, "defocus_v": 15.5e3, "voltage": 300.0, "cs": 2.7, "amplitude_contrast": 0.1}
WARM_UP = 4  # batches


def main() -> int:
    """Make the store, time every way by turns, and print the table."""
    arguments = _parse()
    if arguments.one:
        _measure(arguments, *arguments.one)
    with tempfile.TemporaryDirectory(prefix="data_path_", dir=arguments.folder) as folder:
        arguments.store = arguments.store or str(Path(folder, "particles.zarr"))
        if not Path(arguments.store).exists():
            write_noise(arguments.store, arguments.num_images, arguments.size)
        stored = sum(file.stat().st_size for file in Path(arguments.store).rglob("*") if file.is_file()) / 2**20
        results: dict[str, list[dict[str, float]]] = {f"{way} {work}": [] for way in WAYS for work in ("step", "read")}
        del results["resident read"]
        for _ in range(arguments.repeats):
            for name, found in results.items():
                found.append(_in_a_process(arguments, *name.split()))
    unit = "s" if torch.cuda.is_available() else "core-s"
    print(
        f"{arguments.architecture}, D = {arguments.size}, batches of {arguments.batch_size}, store {stored:,.0f} MiB\n"
    )
    resident = median(each["images_per_second"] for each in results["resident step"])
    rows = []
    for name, found in results.items():
        rate, grown = (median(each[key] for each in found) for key in ("images_per_second", "grown_mib"))
        cost = f"{resident / rate - 1:+.1%}" if name.endswith("step") else "–"
        rows.append([name, f"{rate:,.1f}", cost, f"{grown:,.0f}", f"{stored / max(grown, 1):,.0f}x"])
    print_table(["batches", f"images/{unit}", "cost of reading", "memory grown by, MiB", "store over that"], rows)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="128x3", help="width x layers of both networks")
    parser.add_argument("--size", type=int, default=128, help="box size, px")
    parser.add_argument("--num-images", type=int, default=65_536)
    parser.add_argument("--batch-size", type=int, default=64 if torch.cuda.is_available() else 8)
    parser.add_argument("--points-share", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=10.0, help="of every measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", help="a store that is there, or where to make one that stays")
    parser.add_argument("--folder", help="where the store is made for the time")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a measurement in a process of its own
    return parser.parse_args()


def write_noise(path: str, num_images: int, size: int) -> None:
    """Write a store of white noise, float16, with random poses."""
    info = StoreInfo(
        num_particles=num_images,
        box_size=size,
        apix=OPTICS["apix"],
        dtype="float16",
        scale=1.0,
        hartley_std=float(size),
        data_sign=-1,
        contrast="noise has none",
        has_ctf=True,
        table_sha256="",
        sources=[],
        num_source_rows=num_images,
        in_file_order=True,
        command="python -m benchmarks.data_path",
    )
    rng = np.random.default_rng(0)
    columns = {each.name: np.zeros((num_images, *each.shape), each.dtype) for each in COLUMNS}
    columns |= {name: np.full(num_images, value, np.float32) for name, value in OPTICS.items()}
    columns["rotation"] = np.linalg.qr(rng.normal(size=(num_images, 3, 3))).Q.astype(np.float32)
    columns["source_row"] = columns["particle"] = np.arange(num_images)
    writer = StoreWriter(path)
    writer.create(info, columns, {"table": pa.table({"row": np.arange(num_images)})})
    for shard in range(writer.num_shards):
        shape = (len(writer.shard_rows(shard)), size, size)
        writer.write_shard(shard, rng.standard_normal(shape, np.float32).astype(np.float16))
    writer.finish()


def _in_a_process(arguments: argparse.Namespace, way: str, work: str) -> dict[str, Any]:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in vars(arguments).items() if value is not None]
    command = [sys.executable, "-m", "benchmarks.data_path", *words, "--one", way, work]
    within = environment(**({} if torch.cuda.is_available() else {"OMP_NUM_THREADS": "1"}))
    done = subprocess.run(command, env=within, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(arguments: argparse.Namespace, way: str, work: str) -> NoReturn:
    """Take batches for about so long, print images a (core-)second and by how many MiB memory grew, and end."""
    store = ParticleStore(arguments.store)
    order = ParticleOrder(len(store), store.chunk_size, 0, 0.0, 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width, layers = map(int, arguments.architecture.split("x"))
    settings = ModelConfig(enc_dim=width, enc_layers=layers, dec_dim=width, dec_layers=layers)
    model = build_model(settings, box_size=arguments.size, data_sign=-1, hartley_std=float(arguments.size), ctf=True)
    bf16, _ = uses_bf16("auto", device)
    step = Step(model.to(device), TrainingConfig(points_share=arguments.points_share), bf16=bf16)
    batches = _batches(way, store, order, arguments.batch_size)
    if way == "resident":
        few = [to_device(batch, device) for batch in islice(batches, WARM_UP)]
        batches = (few[index % WARM_UP] for index in iter(int, 1))
    take = (lambda batch: step(batch, 1e-4)) if work == "step" else (lambda batch: to_device(batch, device))
    if device.type == "cuda" and way != "resident":
        batches = ahead(pinned(batch) for batch in batches)
    for batch in islice(batches, WARM_UP):
        take(batch)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    before, start, until, images = _resident_mib(), clock(), time.perf_counter() + arguments.seconds, 0
    for batch in batches:
        take(batch)
        images += len(batch["images"])
        if time.perf_counter() > until:
            break
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(json.dumps({"images_per_second": images / (clock() - start), "grown_mib": _resident_mib() - before}))
    sys.stdout.flush()
    os._exit(0)  # with `batches` open: Ray Data still reads ahead, and would meet a Ray that is gone


def _batches(way: str, store: ParticleStore, order: ParticleOrder, size: int) -> Iterator[Mapping[str, Tensor]]:
    if way != "ray":
        for index in range(1_000_000):
            yield from stream_slice(store, order, index, size)
    from drgn_ray.distributed.cluster import connected
    from drgn_ray.distributed.reader import slice_dataset, stream_batches

    with connected(num_cpus=max(os.cpu_count() or 1, 2)):
        shard = slice_dataset(store, order, 0).iterator()
        for index in range(1_000_000):
            yield from stream_batches(shard, index, size)


def _resident_mib() -> float:
    """Largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
