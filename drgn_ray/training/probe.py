"""What training with some settings costs, measured: a few steps on real particles, in a process of their own."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from drgn_ray.config import ModelConfig, RunConfig
from drgn_ray.models.em import Subspace
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.particles.loader import stream_rows, stream_slice
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.compare import evidence_bounds
from drgn_ray.training.loop import model_for, particle_order, validate
from drgn_ray.training.precision import uses_bf16
from drgn_ray.training.step import Step

NUM_STEPS, WARM_UP = 20, 3  # the first are slower: memory is asked for, particles are read
LEAST_STEPS, MOST_SECONDS = 3, 20.0  # of slow ones
# What a trial's process holds besides: MLflow's client, measured, and volumes that are compared after every epoch.
TRACKING, VOLUMES = 200_000_000, 8


class Cost(NamedTuple):
    """What a network takes.

    Attributes
    ----------
    train, judge
        Seconds an image: of training, and of validating and judging those that are held out.
    memory
        Bytes that the process of a trial takes at most, libraries included.
    gpu_memory, gpu_size
        Bytes of tensors on the GPU at most, and bytes that it has; 0 without one.
    """

    train: float
    judge: float
    memory: int
    gpu_memory: int
    gpu_size: int


def probe(config: RunConfig, store: ParticleStore) -> Cost:
    """Measure what a network costs; its memory only where the process is fresh."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    bf16, _ = uses_bf16(config.training.precision, device)
    model, box_size = model_for(config, store), store.info.box_size
    if config.model.start != "none":
        model.start_from(*_any_start(config.model, box_size))
    linear = model_for(config.model_copy(update={"model": ModelConfig(model="linear")}), store).to(device)
    assert isinstance(linear, LinearSubspace)
    step, order = Step(model.to(device), config.training, bf16=bf16), particle_order(config, store)

    start = time.monotonic()
    _take(step, next(stream_slice(store, order, 0, 1)))
    # A slow step on a CPU costs as much an image, whatever their number.
    fitting = max(int(MOST_SECONDS / LEAST_STEPS / (time.monotonic() - start)), 1)
    batch_size, coarse = min(config.training.batch_size, fitting), config.training.coarse_share
    train = (1 - coarse) * _seconds_an_image(step, stream_slice(store, order, 0, batch_size))
    if coarse:
        radius = config.model.seen_box(box_size) // 4
        train += coarse * _seconds_an_image(step, stream_slice(store, order, 0, batch_size), radius)
    held_out = next(stream_rows(store, order.val_chunks(), min(store.chunk_size, fitting)))
    for batch in ({name: values[:1] for name, values in held_out.items()}, held_out):  # the first time is no measure
        start = time.monotonic()
        validate(model.eval(), [batch], device, bf16=bf16)
        evidence_bounds(model, linear, [batch])
        judge = (time.monotonic() - start) / len(batch["images"])
    memory = _peak_memory() + TRACKING + 4 * VOLUMES * box_size**3
    gpu_memory = torch.cuda.max_memory_allocated() if on_gpu else 0
    gpu_size = torch.cuda.get_device_properties(device).total_memory if on_gpu else 0
    return Cost(train, judge, memory, gpu_memory, gpu_size)


def _any_start(model: ModelConfig, box_size: int) -> tuple[Subspace, int]:
    """Make what a fit would have found, in size."""
    components = max(model.zdim, model.num_basis) if model.start == "linear" else 0
    volumes = 1e-3 * torch.randn(1 + components, box_size, box_size, box_size)
    return Subspace(volumes, torch.ones(box_size // 2 + 1), 0.1), box_size // 4


def _seconds_an_image(step: Step, batches: Iterable[Mapping[str, Tensor]], radius: int | None = None) -> float:
    times, images = [time.monotonic()], []
    for batch in islice(batches, NUM_STEPS):
        _take(step, batch, radius)
        times.append(time.monotonic())
        images.append(len(batch["images"]))
        if len(images) >= LEAST_STEPS and times[-1] - times[0] > MOST_SECONDS:
            break
    warm = min(WARM_UP, len(images) - 1)
    return (times[-1] - times[warm]) / sum(images[warm:])


def _take(step: Step, batch: Mapping[str, Tensor], radius: int | None = None) -> None:
    """Take a step that leaves the weights as they are, and wait for it."""
    step(batch, 0.0, radius).loss.item()


def _peak_memory() -> int:
    """Bytes that this process held at most; what `getrusage` says on Linux begins with its parent's."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
