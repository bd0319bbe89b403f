"""Time training steps by architecture and box size, as cryoDRGN's paper does, beside the installed cryoDRGN.

python -m benchmarks.train_table --cryodrgn /path/to/its/python

Ours needs torch and what the models import (no Ray, no store): batches are noise that lies on the device already, and
`benchmarks.data_path` says what reading adds.  cryoDRGN's command trains on a stack of noise in memory, on many images
and on few, whose difference is the work.  On a CPU both run in one thread and the unit is the core-second, which other
work on the machine changes least; on a GPU it is the second.  Both take turns, and medians of the turns count.
The share of the peak is of a matrix product of the same precision, measured in the same process.

`--plain` takes the path that autograd finds gradients of, where ours is another (`drgn_ray/models/one_pass.py`), and
`--profile` prints, in place of the table, the operators that take most of a step's time.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import (
    environment,
    environment_of_others,
    markdown_table,
    read_through,
    run_measured,
    write_stack,
)
from drgn_ray.config import ModelConfig, TrainingConfig
from drgn_ray.models import build_model
from drgn_ray.models.decoder import Decoder
from drgn_ray.models.model import Model
from drgn_ray.training.precision import uses_bf16
from drgn_ray.training.step import Step

ARCHITECTURES = ("128x3", "256x3", "512x3", "1024x3", "1024x10")
SIZES = (128, 256, 360)
ZDIM = 8
WARM_UP, PROFILED = 2, 3  # steps
MOST_OPERATORS = 10
PEAK_SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the peak
TABLE_IMAGES = 100_000  # of the paper's table


def main() -> int:
    """Measure every row in turn, print the table, and write all of it as JSON."""
    arguments = _parse()
    if arguments.one:
        print(json.dumps(measure(**json.loads(arguments.one))))
        return 0
    if arguments.profile:
        for size, architecture in product(arguments.sizes, arguments.architectures):
            found = _in_a_process(_one(arguments, architecture, size) | {"profile": True})["operators"]
            rows = [[f"`{name}`", f"{share:.1%}", str(count)] for name, share, count in found]
            print(f"\n{architecture}, D = {size}\n\n{markdown_table(['operator', 'share', 'calls a step'], rows)}")
        return 0
    rows = []
    for size in arguments.sizes:
        for architecture in arguments.architectures:
            rows.append(_row(arguments, architecture, size))
            print(_table([rows[-1]]).splitlines()[-1], file=sys.stderr)
            if arguments.output:
                Path(arguments.output).write_text(json.dumps({"machine": _machine(), "rows": rows}, indent=1))
    print(f"{_machine()}, batches of {arguments.batch_size}, zdim {ZDIM}\n")
    print(_table(rows))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, help="width x layers of both networks")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="box sizes, px")
    parser.add_argument("--batch-size", type=int, default=64 if torch.cuda.is_available() else 8)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--plain", action="store_true", help="gradients by autograd")
    parser.add_argument("--profile", action="store_true", help="print the operators that take most time")
    parser.add_argument("--seconds", type=float, default=10.0, help="of every measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cryodrgn", help="the python of an environment with cryoDRGN")
    parser.add_argument("--output", help="JSON file")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a measurement of ours, in a process of its own
    return parser.parse_args()


def _row(arguments: argparse.Namespace, architecture: str, size: int) -> dict[str, Any]:
    """Measure one architecture at one size, ours and theirs by turns."""
    one = _one(arguments, architecture, size)
    ours: list[dict[str, Any]] = []
    theirs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeats):
            ours.append(_in_a_process(one))
            if arguments.cryodrgn:
                images = max(int(ours[0]["images_per_second"] * arguments.seconds / 2), 4 * arguments.batch_size)
                theirs.append(_cryodrgn(arguments, one, images, Path(folder)))
    row = {"architecture": architecture, **one, **ours[0]}
    row["images_per_second"] = median(each["images_per_second"] for each in ours)
    row["peak_gib"] = max(each["peak_gib"] for each in ours)
    row["share_of_peak"] = median(each["share_of_peak"] for each in ours)
    if theirs:
        row["cryodrgn_images_per_second"] = median(rate for rate, _ in theirs)
        row["cryodrgn_peak_gib"] = max(peak for _, peak in theirs)
    return row


def _one(arguments: argparse.Namespace, architecture: str, size: int) -> dict[str, Any]:
    """Arguments of `measure`."""
    width, layers = map(int, architecture.split("x"))
    return {
        "width": width,
        "layers": layers,
        "size": size,
        "batch_size": arguments.batch_size,
        "precision": arguments.precision,
        "compiled": arguments.compile,
        "plain": arguments.plain,
        "seconds": arguments.seconds,
    }


def _in_a_process(one: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.train_table", "--one", json.dumps(one)]
    within = environment(**({} if torch.cuda.is_available() else {"OMP_NUM_THREADS": "1"}))
    done = subprocess.run(command, env=within, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def measure(
    *,
    width: int,
    layers: int,
    size: int,
    batch_size: int,
    precision: str,
    seconds: float,
    compiled: bool = False,
    plain: bool = False,
    profile: bool = False,
) -> dict[str, Any]:
    """Time our steps: images a (core-)second, share of the peak, peak memory in GiB; or profile them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16, _ = uses_bf16(precision, device)
    settings = ModelConfig(zdim=ZDIM, enc_dim=width, enc_layers=layers, dec_dim=width, dec_layers=layers)
    built = build_model(settings, box_size=size, data_sign=-1, hartley_std=1.0, ctf=True, damping=False).to(device)
    if plain:
        built.decoder.misfit = MethodType(Decoder.misfit, built.decoder)
    model: Model = torch.compile(built) if compiled else built  # type: ignore[assignment]
    step = Step(model, TrainingConfig(), bf16=bf16)
    batch = noise(batch_size, size, device)
    if profile:
        return {"operators": _operators(lambda: step(batch, 1e-4), device)}
    with FlopCounterMode(display=False) as counter:
        step(batch, 1e-4)
    flops = counter.get_total_flops() / batch_size
    for _ in range(WARM_UP):
        step(batch, 1e-4)
    images, spent = _paced(lambda: step(batch, 1e-4), seconds, device)
    rate = images * batch_size / spent
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = _peak(torch.bfloat16 if bf16 else torch.float32, device)
    return {
        "precision": "bf16" if bf16 else "fp32",
        "images_per_second": rate,
        "gflop_per_image": flops / 1e9,
        "share_of_peak": rate * flops / peak,
        "peak_gib": memory / 2**30,
    }


def _operators(run: Callable[[], object], device: torch.device) -> list[tuple[str, float, int]]:
    """Name, share of the time, and calls of the operators that take most time in a run."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _ in range(WARM_UP):
        run()
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PROFILED):
            run()
        _wait_for(device)
    times = [
        (each.key, each.self_device_time_total if device.type == "cuda" else each.self_cpu_time_total, each.count)
        for each in profiler.key_averages()
    ]
    total = sum(time for _, time, _ in times)
    most = sorted(times, key=lambda each: -each[1])[:MOST_OPERATORS]
    return [(name, time / total, count // PROFILED) for name, time, count in most]


def noise(count: int, size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Make a batch of white noise, seen in random poses."""
    torch.manual_seed(0)
    columns = {"defocus_u": 15_000.0, "defocus_v": 15_500.0, "defocus_angle": 20.0, "voltage": 300.0, "cs": 2.7}
    columns |= {"amplitude_contrast": 0.1, "phase_shift": 0.0, "apix": 1.5, "ctf_scalefactor": 1.0, "dose": 0.0}
    batch = {name: torch.full((count,), value) for name, value in columns.items()}
    batch |= {"images": torch.randn(count, size, size), "translation": torch.randn(count, 2)}
    batch["rotation"] = torch.linalg.qr(torch.randn(count, 3, 3)).Q
    return {name: values.to(device) for name, values in batch.items()}


def _paced(run: Callable[[], object], seconds: float, device: torch.device) -> tuple[int, float]:
    """Run again and again for about so long; how often, and the (core-)seconds spent."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    _wait_for(device)
    start, count = clock(), 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or not count:
        run()
        count += 1
        if count % 10 == 0:
            _wait_for(device)
    _wait_for(device)
    return count, clock() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP a (core-)second of a large matrix product."""
    side = PEAK_SIDE[device.type]
    first, second = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    torch.mm(first, second)
    count, spent = _paced(lambda: torch.mm(first, second), 1.0, device)
    return count * 2 * side**3 / spent


def _cryodrgn(arguments: argparse.Namespace, one: dict[str, Any], num_images: int, folder: Path) -> tuple[float, float]:
    """Images a (core-)second of their command, and its peak memory in GiB."""
    few, size = 2 * arguments.batch_size, one["size"]
    spent = []
    peak = 0.0
    for count in (few, few + num_images):
        place = folder / f"{size}_{count}"
        if not place.exists():
            _write_noise(place, count, size)
        start = "from cryodrgn.command_line import main_commands; main_commands()"
        words = [arguments.cryodrgn, "-c", start, "train_vae", "stack.mrcs", "--poses", "pose.pkl", "--ctf", "ctf.pkl"]
        words += ["--zdim", str(ZDIM), "-n", "1", "-b", str(arguments.batch_size), "-o", "out", "--no-analysis"]
        for network in ("enc", "dec"):
            words += [f"--{network}-dim", str(one["width"]), f"--{network}-layers", str(one["layers"])]
        within = environment_of_others()
        if not torch.cuda.is_available():
            within = {**within, "OMP_NUM_THREADS": "1"}
        seconds, usage = run_measured(words, place, within, "cryodrgn train_vae")
        spent.append(seconds if torch.cuda.is_available() else usage.ru_utime + usage.ru_stime)
        peak = max(peak, usage.ru_maxrss / 2**20)
    return num_images / (spent[1] - spent[0]), peak


def _write_noise(folder: Path, count: int, size: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    write_stack(folder / "stack.mrcs", count, size, lambda few: rng.standard_normal((few, size, size), np.float32))
    rotation = np.linalg.qr(rng.normal(size=(count, 3, 3))).Q.astype(np.float32)
    translation = rng.normal(0, 0.02, (count, 2)).astype(np.float32)
    (folder / "pose.pkl").write_bytes(pickle.dumps((rotation, translation)))
    ctf = np.tile(np.array([size, 1.5, 15_000, 15_500, 20, 300, 2.7, 0.1, 0], np.float32), (count, 1))
    (folder / "ctf.pkl").write_bytes(pickle.dumps(ctf))
    read_through(folder / "stack.mrcs")


def _machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"one thread of {names[0] if names else os.uname().machine}, torch {torch.__version__}"


def _table(rows: list[dict[str, Any]]) -> str:
    unit = "s" if torch.cuda.is_available() else "core-s"
    head = ["D", "network", "precision", f"images/{unit}", "min per 1e5", "GFLOP/image", "of the peak", "GiB"]
    head += [f"cryoDRGN images/{unit}", "speed", "its GiB of host memory"]
    cells = []
    for row in rows:
        rate, theirs = row["images_per_second"], row.get("cryodrgn_images_per_second")
        line = [str(row["size"]), row["architecture"], row["precision"], f"{rate:,.1f}"]
        line += [f"{TABLE_IMAGES / rate / 60:,.2f}", f"{row['gflop_per_image']:.2f}", f"{row['share_of_peak']:.0%}"]
        line += [f"{row['peak_gib']:.2f}"]
        line += (
            ["–"] * 3
            if theirs is None
            else [f"{theirs:,.1f}", f"{rate / theirs:.2f}x", f"{row['cryodrgn_peak_gib']:.2f}"]
        )
        cells.append(line)
    return markdown_table(head, cells)


if __name__ == "__main__":
    sys.exit(main())
