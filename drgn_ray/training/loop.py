"""The training loop of one process, alone or as one of several data-parallel workers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from drgn_ray.config import RunConfig
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.models import build_model
from drgn_ray.models.elbo import ElboTerms, kl_divergence
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.model import Model
from drgn_ray.particles.loader import ahead, stream_rows
from drgn_ray.particles.order import ParticleOrder, default_slices
from drgn_ray.particles.store import ParticleStore
from drgn_ray.patience import write_whole
from drgn_ray.training.checkpoint import load_position, load_state, save_checkpoint
from drgn_ray.training.convergence import Convergence
from drgn_ray.training.precision import uses_bf16
from drgn_ray.training.report import SKIPPED, Reporter
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.training.schedule import compared_radius, is_early, learning_rate
from drgn_ray.training.step import Step, autocast, pinned, to_device

logger = logging.getLogger(__name__)
T = TypeVar("T")
Batches = Iterable[Mapping[str, Tensor]]
MOST_FOLLOWED = 1_000  # held-out particles whose latents are compared from epoch to epoch
ACTIVE_NATS = 0.01  # a latent dimension with less KL divergence than this carries nothing
MOST_SKIPPED = 0.1  # share of a slice's steps whose gradients may be no numbers: bad images, or rare overflows
BACK_OFF = 0.5  # times the learning rate


class Diverged(RunError):
    """Loss or weights are no numbers any more; raised on all workers at once, so that none waits for another."""


class BackedOff(Exception):
    """The training diverged, and goes on from its last checkpoint with a smaller learning rate."""


@dataclass(frozen=True)
class Worker:
    """One process among the training processes."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")


def particle_order(config: RunConfig, store: ParticleStore) -> ParticleOrder:
    """Split and order of the store's particles under this configuration."""
    slices = config.data.slices_per_epoch or default_slices(len(store))
    data = config.data
    order = ParticleOrder(len(store), store.chunk_size, config.training.seed, data.val_fraction, slices, data.half_set)
    if data.half_set is not None and order.num_chunks < 2:
        raise ConfigError(f"--half-set {data.half_set}", f"{store.path} has only one chunk", "train on all particles")
    if slices > len(order.train_chunks()):
        raise ConfigError(
            f"--slices-per-epoch {slices}",
            f"{store.path} has only {len(order.train_chunks())} chunks to train on",
            "pass a smaller number",
        )
    return order


def model_for(config: RunConfig, store: ParticleStore) -> Model:
    """Build the model for a store, its weights drawn with the run's seed."""
    torch.manual_seed(config.training.seed)
    info = store.info
    return build_model(
        config.model,
        box_size=info.box_size,
        data_sign=info.data_sign,
        hartley_std=info.hartley_std,
        ctf=info.has_ctf,
        damping=store.has_damping,
    )


class Trainer:
    """Trains slice after slice, with a checkpoint after each.

    Parameters
    ----------
    config, store, run
        Settings, particles and the run directory, which may hold checkpoints to go on from.
    stream
        Gives this worker's batches of a slice, already of its share of the batch size.
    reporter
        Listens; called on rank 0 only.
    worker
        Where this process stands.
    start
        What the model begins with; a checkpoint goes before it.
    """

    def __init__(
        self,
        config: RunConfig,
        store: ParticleStore,
        run: RunDirectory,
        stream: Callable[[int], Batches],
        reporter: Reporter,
        worker: Worker,
        start: LinearSubspace | None = None,
    ) -> None:
        self.config, self.store, self.run, self.stream, self.worker = config, store, run, stream, worker
        self.reporter = reporter
        self.convergence = Convergence(store.info.apix)
        self.order = particle_order(config, store)
        self.images_per_epoch = self.order.num_rows(self.order.train_chunks())
        self.model = model_for(config, store).to(worker.device)
        self.position = load_position(run.checkpoints)
        self.position.store_digest = store.digest
        self.start_seconds = load_position(RunDirectory(run.start).checkpoints).seconds
        if not self.position.next_slice:
            self.position.seconds = self.start_seconds
        if start is not None:
            self.model.start_from(start.subspace, int(start.radius))
        bf16, reason = uses_bf16(config.training.precision, worker.device)
        self.step = Step(
            self.model,
            config.training,
            bf16=bf16,
            world_size=worker.world_size,
            compress_gradients=config.resources.compress_gradients,
        )
        load_state(run.checkpoints, self.model, self.step.optimizer)
        self.divergences = _of_first_worker(_divergences(run))
        if len(self.divergences) > config.training.back_offs:
            raise self._diverged()
        if worker.rank == 0:
            logger.info("device %s, precision %s (%s)", worker.device, "bf16" if bf16 else "fp32", reason)

    @property
    def num_slices(self) -> int:
        """Slices of the whole run."""
        return self.config.num_epochs * self.order.slices_per_epoch

    def fit(self, on_slice_end: Callable[[Mapping[str, float]], None] = lambda metrics: None) -> None:
        """Train what is left; `on_slice_end` is called on every worker after every slice."""
        if self.worker.rank == 0:
            self.reporter.begin(self.position)
            done, epochs = divmod(self.position.next_slice, self.order.slices_per_epoch)
            if done or epochs:
                logger.info("going on at epoch %d/%d", done + 1, self.config.num_epochs)
        for slice_index in range(self.position.next_slice, self.num_slices):
            on_slice_end(self._train_slice(slice_index))

    def _train_slice(self, slice_index: int) -> Mapping[str, float]:
        epoch, part = divmod(slice_index, self.order.slices_per_epoch)
        seeds = np.random.SeedSequence((self.config.training.seed, slice_index, self.worker.rank))
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        start = time.monotonic()
        window: _Window | None = None
        totals = _Averages(self.worker.device)
        sound: list[Tensor] = []  # by step, on the device
        rows: list[Tensor] = []
        for batch in self._batches(slice_index):
            progress = self.config.training, self.position.images_seen, self.images_per_epoch
            radius = compared_radius(*progress, self.config.model.seen_box(self.store.info.box_size))
            lr = learning_rate(*progress) * BACK_OFF ** len(self.divergences)
            terms = self.step(batch, lr, radius, early=is_early(*progress))
            count = len(batch["images"])
            self.position.images_seen += count * self.worker.world_size
            sound.append(self.step.is_sound)
            rows.append(batch["source_row"])
            totals.add(terms, count, sound[-1])
            window = window or _Window(self)  # begins when data flow: waiting for the first is no measure of speed
            window.add(terms, count, sound[-1])
        self.position.next_slice = slice_index + 1
        averages = totals.over_workers()
        self._look_at_skipped(torch.stack(sound).cpu().numpy(), rows, averages["loss"])
        metrics = {f"train_epoch/{name}": value for name, value in averages.items()}
        if part + 1 < self.order.slices_per_epoch:
            self._count_time(start)
            self._checkpoint()
            return metrics
        found = self._validate()
        metrics |= found.metrics | {"epoch": epoch + 1}
        if self.worker.rank == 0 and len(found.z):
            metrics |= self.convergence.since_last(self.model, found.z)
        self._count_time(start)
        metrics |= {SKIPPED: self.position.skipped_steps} if self.position.skipped_steps else {}
        metrics |= {"perf/epoch_seconds": self.position.seconds - self._seconds_before()}
        metrics |= {"perf/total_seconds": self.position.seconds, "perf/gpu_hours": self.position.gpu_seconds / 3600}
        self.position.history.append({"kind": "epoch", "step": self.position.images_seen, **metrics})
        self._checkpoint()
        if self.worker.rank == 0:
            self.reporter.epoch(self.position.images_seen, metrics, self.model, found.mean)
        return metrics

    def _look_at_skipped(self, sound: Bool[np.ndarray, " steps"], rows: list[Tensor], loss: float) -> None:
        """Count the steps that were left out; where they are too many, keep the evidence and go back or end."""
        skipped = np.flatnonzero(~sound)
        weights = torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()])
        bearable = len(skipped) <= max(1, MOST_SKIPPED * len(sound)) and len(skipped) < len(sound)
        is_well = bearable and bool(np.isfinite(loss) and weights.all())
        if is_well and not len(skipped):
            return
        seen = _of_all_workers(rows[skipped[0] if len(skipped) else -1].tolist())
        if len(skipped):
            self.position.skipped_steps += len(skipped)
            found = f"{len(skipped)} of {len(sound)} steps were left out, since gradients were no numbers"
            if self.worker.rank == 0:
                logger.warning("%s; the first saw particles (source rows) %s", found, ", ".join(map(str, seen)))
        if is_well:
            return
        evidence = {
            "images_seen": self.position.images_seen,
            "slice": self.position.next_slice - 1,
            "steps": len(sound),
            "skipped_steps": skipped.tolist(),
            "loss": str(loss),
            "lr": self.step.optimizer.param_groups[0]["lr"],
            "source_rows_of_first": seen,
        }
        self.divergences.append(evidence)
        if self.worker.rank == 0:
            write_whole(self.run.diverged_file, json.dumps(self.divergences, indent=1))
        if len(self.divergences) > self.config.training.back_offs:
            raise self._diverged()
        raise BackedOff(
            f"the training diverged within {self.position.images_seen:,} images; it goes on from its last checkpoint"
            f" with {BACK_OFF ** len(self.divergences):g} of the learning rate (evidence: {self.run.diverged_file})"
        )

    def _diverged(self) -> Diverged:
        last, count = self.divergences[-1], len(self.divergences) - 1
        again = f", also with {BACK_OFF**count:g} of the learning rate" if count else ""
        return Diverged(
            str(self.run.path),
            f"the training diverged within {last['images_seen']:,} images{again} (evidence: {self.run.diverged_file})",
            "start a new run with a smaller --lr, or with --precision fp32",
        )

    def _count_time(self, start: float) -> None:
        seconds = time.monotonic() - start
        self.position.seconds += seconds
        self.position.gpu_seconds += seconds * self.worker.world_size * (self.worker.device.type == "cuda")

    def _seconds_before(self) -> float:
        """Seconds of the start and of the epochs that are finished."""
        return self.position.history[-1].get("perf/total_seconds", 0.0) if self.position.history else self.start_seconds

    def _batches(self, slice_index: int) -> Batches:
        batches = self.stream(slice_index)
        if self.worker.device.type == "cpu":
            return batches
        return ahead(pinned(batch) for batch in batches)

    def _validate(self) -> Validation:
        self.model.eval()
        found = validate(self.model, self._held_out(), self.worker.device, bf16=self.step.bf16)
        self.model.train()
        return found

    def _held_out(self) -> Iterator[Mapping[str, Tensor]]:
        chunks = self.order.val_chunks()[self.worker.rank :: self.worker.world_size]
        return stream_rows(self.store, chunks, self.store.chunk_size)

    def _checkpoint(self) -> None:
        if self.worker.rank == 0:
            self.store.check_unchanged()
            keep = self.config.resources.keep_checkpoints
            save_checkpoint(self.run.checkpoints, self.position, self.model, self.step.optimizer, keep)


class Validation(NamedTuple):
    """What held-out particles tell.

    Attributes
    ----------
    metrics
        Losses and latent statistics, of all workers' particles.
    mean
        Mean latent of those.
    z
        Latents of this worker's, as many as are followed.
    """

    metrics: dict[str, float]
    mean: Float[Tensor, " Z"]
    z: Float[Tensor, "n Z"]


@torch.inference_mode()
def validate(model: Model, batches: Batches, device: torch.device, *, bf16: bool = False) -> Validation:
    """Evaluate a model on particles that are held out; all workers must call it."""
    followed: list[Float[Tensor, "b Z"]] = [torch.zeros(0, model.zdim, device=device)]
    totals, moments = _Averages(device), torch.zeros(3, model.zdim, device=device)
    for batch in batches:
        batch = to_device(batch, device)
        with autocast(device, bf16):
            totals.add(model(batch), len(batch["images"]))
        z_mu, z_logvar = model.encode(batch)
        followed.append(z_mu[: MOST_FOLLOWED - sum(map(len, followed))])
        moments += torch.stack([z_mu.sum(0), (z_mu**2).sum(0), kl_divergence(z_mu, z_logvar).sum(0)])
    averages, count = totals.over_workers(), totals.count
    z = torch.cat(followed).float()
    if not count:
        return Validation({}, moments[0], z)
    _sum_over_workers(moments)
    mean, square, kld = moments / count
    metrics = {f"val/{name}": value for name, value in averages.items()}
    if not model.zdim:
        return Validation(metrics, mean, z)
    metrics["latent/active_dims"] = float((kld > ACTIVE_NATS).sum())
    metrics["latent/largest_std"] = float((square - mean**2).clamp_min(0).sqrt().max())
    return Validation(metrics, mean, z)


class _Averages:
    """Loss terms summed on the device, which is not waited for, weighted by the number of images, and that number."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(ElboTerms._fields) + 1, dtype=torch.float64, device=device)

    def add(self, terms: ElboTerms, count: int, counts: Tensor | None = None) -> None:
        """Add a batch, where it `counts`; None: it does."""
        added = torch.cat([torch.stack(terms), terms.loss.new_ones(1)]).double() * count
        self.sums += added if counts is None else torch.where(counts, added, 0)

    @property
    def count(self) -> int:
        """Images that count; the device is waited for."""
        return int(self.sums[-1])

    def here(self) -> dict[str, float]:
        """Averages of this worker's images; no numbers, where none counts."""
        return dict(zip(ElboTerms._fields, (self.sums[:-1] / self.sums[-1]).tolist(), strict=True))

    def over_workers(self) -> dict[str, float]:
        """Averages over all workers' images; all must call it."""
        _sum_over_workers(self.sums)
        return self.here()


class _Window:
    """Reports averages every few seconds on rank 0, without touching the device in between."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._restart()

    def _restart(self) -> None:
        self.averages = _Averages(self.trainer.worker.device)
        self.start, self.images = time.monotonic(), 0

    def add(self, terms: ElboTerms, count: int, counts: Tensor) -> None:
        trainer = self.trainer
        if trainer.worker.rank != 0:
            return
        self.averages.add(terms, count, counts)
        self.images += count * trainer.worker.world_size
        elapsed = time.monotonic() - self.start
        if elapsed < trainer.config.resources.log_seconds:
            return
        averages = self.averages.here()
        seen, rate = trainer.position.images_seen, self.images / elapsed
        left = trainer.config.num_epochs * trainer.images_per_epoch - seen
        metrics = {f"train/{name}": value for name, value in averages.items()}
        metrics |= {
            "epoch": seen / trainer.images_per_epoch,
            "perf/images_per_second": rate,
            "perf/eta_seconds": left / rate,
            "train/lr": trainer.step.optimizer.param_groups[0]["lr"],
        }
        trainer.reporter.interval(seen, metrics)
        self._restart()


def _divergences(run: RunDirectory) -> list[dict[str, Any]]:
    """Read what is known of every time that a run diverged."""
    return json.loads(run.diverged_file.read_text()) if run.diverged_file.exists() else []


def _of_first_worker(value: T) -> T:
    """Give all workers what the first one has: what they read of a shared file system may be of other moments."""
    if not dist.is_initialized():
        return value
    shared = [value]
    dist.broadcast_object_list(shared)
    return shared[0]


def _of_all_workers(rows: list[int]) -> list[int]:
    if not dist.is_initialized():
        return rows
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def _sum_over_workers(tensor: Tensor) -> None:
    if dist.is_initialized():
        dist.all_reduce(tensor)
