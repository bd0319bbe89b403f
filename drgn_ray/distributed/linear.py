"""Fit a linear subspace to the particles of a store: a search over few shells, then all shells once.

The search holds the low-frequency coefficients of a subset in memory, in tasks that Ray keeps where they are.  Every
choice (start, radius, number of components) is made by images that were not fitted.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float64, Int

from drgn_ray.config import ModelConfig, RunConfig, TrainingConfig, differences
from drgn_ray.distributed.tasks import memory_here, run_tasks
from drgn_ray.errors import ResourceError
from drgn_ray.models.curved import CurvedSubspace, bending_terms
from drgn_ray.models.em import Subspace, search_box
from drgn_ray.particles.backproject import mean_squared_ctf
from drgn_ray.particles.loader import stream_rows
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.gridding import empty_moment_sums, lattice_side
from drgn_ray.physics.volume_lattice import resized
from drgn_ray.progress import Progress
from drgn_ray.training.checkpoint import Position, has_checkpoint, save_checkpoint
from drgn_ray.training.compare import evidence_bounds, gain
from drgn_ray.training.loop import model_for, particle_order, validate
from drgn_ray.training.report import LogReporter, Reporter
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.training.subspace import (
    BATCH_SIZE,
    Pass,
    Sums,
    accumulate,
    added,
    expect,
    fitted,
    log_likelihoods,
    noise_beside,
    predictions,
    prepare,
    solved,
    stacked,
)

logger = logging.getLogger(__name__)
RADII = (8, 12, 16, 24, 32)  # shells, one after the other while more of them tell more
STARTS = 2
START_ITERATIONS = 4  # of each start, before the better one goes on
ITERATIONS = 4  # then, and at each further radius,
TRIAL_ITERATIONS = 2  # of which the first decide whether the radius is worth it
LEAST_TOLD = 0.005  # of what latents tell of an image: with less, more shells are not worth their cost
REFINEMENTS = 1  # with the images that were held out
SPARE = 4  # components kept above those that were found at a smaller radius
MOST_SEARCHED = 50_000  # images, which tell 20 components; all are used in the end
BENDING_SHELLS = 4  # box sizes over the radius up to which bent and straight volumes are compared
NOISE_IMAGES = 1_000
LEFT_OUT, MOST_LEFT_OUT = 5, 2_000  # chunks of which one, and images, that say whether volumes bend
IMAGES_A_COMPONENT = 10  # at least; fewer tell nothing that holds for others
IMAGES_A_PART = 4_000
MOST_TASKS = 128
SLAB_BYTES = 2 << 30  # of the sums over all shells, that a task makes at a time
SLABS_IN_TASK = 2  # its own and what it sends
SUMS_HERE = 2.0  # of the sums' bytes: themselves, and what solving them takes
SUMS_TO_BEND = 4.0  # of two parts of the particles, and of fewer volumes

Listen = Callable[[int, Mapping[str, float]], None]


def fit_start(config: RunConfig, store: ParticleStore, run: RunDirectory) -> None:
    """Fit what a run's network starts from, as a run of its own within the run."""
    if config.model.start == "none":
        return
    if has_checkpoint(run.checkpoints):
        return
    start = RunDirectory(run.start)
    zdim = max(config.model.zdim, config.model.num_basis) if config.model.start == "linear" else 0
    its_config = RunConfig(
        particles=config.particles,
        model=ModelConfig(model="linear", zdim=zdim),
        data=config.data,
        training=TrainingConfig(seed=config.training.seed),
        resources=config.resources,
    )
    if has_checkpoint(start.checkpoints) and not differences(start.config(), its_config):
        return
    shutil.rmtree(start.path, ignore_errors=True)  # of a run with other settings, or one that came no further
    start.begin(its_config)
    train_linear(its_config, store, start, LogReporter(start, 1))


def train_linear(config: RunConfig, store: ParticleStore, run: RunDirectory, reporter: Reporter) -> None:
    """Fit the linear model of a run to its particles, and leave a checkpoint as after one epoch."""
    start = time.monotonic()
    if config.preset == "auto":
        logger.info(
            "preset auto, for %s particles of %d px: a subspace of at most %d dimensions, bent where particles that are"
            " left out ask for it; no network, of which none was clearly better on those (docs/quality.md)",
            f"{len(store):,}",
            store.info.box_size,
            config.model.zdim,
        )
    order = particle_order(config, store)
    chunks = order.train_chunks()
    seen = order.num_rows(chunks)
    workers = config.resources.num_workers if config.resources.num_workers > 1 else 0  # one would do what this one can
    position = Position(next_slice=order.slices_per_epoch, images_seen=seen, store_digest=store.digest)
    reporter.begin(Position())
    model = model_for(config, store).eval()
    held_out = partial(stream_rows, store, order.val_chunks(), BATCH_SIZE)
    with _ray(workers):
        seed, zdim = config.training.seed, config.model.zdim
        found = fit_linear(store, chunks, zdim=zdim, seed=seed, num_workers=workers, listen=reporter.interval)
        model.start_from(*found)
        if isinstance(model, CurvedSubspace) and model.zdim:
            _bend(model, store, chunks, workers)
    metrics, z, _ = validate(model, held_out(), torch.device("cpu"))
    position.seconds = time.monotonic() - start
    metrics |= {"epoch": 1, "perf/epoch_seconds": position.seconds, "perf/total_seconds": position.seconds}
    position.history.append({"kind": "epoch", "step": seen, **metrics})
    save_checkpoint(run.checkpoints, position, model, None, config.resources.keep_checkpoints)
    reporter.epoch(seen, metrics, model, z)


def fit_linear(
    store: ParticleStore,
    chunks: Int[np.ndarray, " chunks"],
    *,
    zdim: int,
    seed: int = 0,
    num_workers: int = 0,
    listen: Listen = lambda radius, metrics: None,
) -> tuple[Subspace, int]:
    """Find the subspace that some chunks of a store ask for.

    Parameters
    ----------
    zdim
        The most components it may have; held-out images choose.
    seed
        Of the latents that the search starts from.
    num_workers
        Tasks at a time; 0: this process.
    listen
        Hears what was found at every radius.

    Returns
    -------
    The subspace, and the largest |k| from which latents are inferred.
    """
    with _ray(num_workers):
        subspace, radius = _Search(store, chunks, num_workers, listen).run(zdim, seed)
        return _all_shells(store, chunks, subspace, radius, num_workers), radius


def _ray(num_workers: int) -> AbstractContextManager[None]:
    """Be connected to Ray, whose tasks keep what they prepared, if there are workers at all."""
    if not num_workers:
        return nullcontext()
    from drgn_ray.distributed.cluster import connected  # Ray takes a second to import

    return connected()


class _Search:
    def __init__(
        self, store: ParticleStore, chunks: Int[np.ndarray, " chunks"], num_workers: int, listen: Listen
    ) -> None:
        self.store, self.num_workers, self.listen = store, num_workers, listen
        self.mean_squared_ctf = mean_squared_ctf(store)
        self.prepared_radius = 0
        count = min(max(MOST_SEARCHED // store.chunk_size, 1), len(chunks))
        subset = chunks[np.linspace(0, len(chunks) - 1, count).astype(int)]
        self.groups = np.array_split(subset, max(count * store.chunk_size // IMAGES_A_PART, 1))
        num_images = sum(rows.stop - rows.start for rows in map(store.chunk_rows, subset.tolist()))
        self.most_components = num_images // IMAGES_A_COMPONENT
        half = store.info.box_size // 2
        self.radii = [radius for radius in RADII if radius < half] + [half] * (half <= RADII[-1])

    def run(self, zdim: int, seed: int) -> tuple[Subspace, int]:
        """Search from several starts, over more and more shells; held-out images choose among them."""
        radius, *larger = self.radii
        zdim = min(zdim, self.most_components)
        if not zdim:
            return self._consensus(radius), radius
        self._prepare(larger[0] if larger else radius)
        starts = [self._start(zdim, radius, seed * STARTS + start) for start in range(STARTS)]
        subspace = max(starts, key=lambda start: self._likelihoods(start, radius).mean(axis=0).max())
        subspace = self._iterate(subspace, radius, radius, ITERATIONS)
        chosen = self._choose(subspace, radius)
        for next_radius in larger:
            if chosen == 0:
                break
            self._prepare(next_radius)
            few = subspace.leading(min(chosen + SPARE, subspace.num_components))
            candidate = self._iterate(few, radius, next_radius, TRIAL_ITERATIONS)
            more = self._more_told(candidate, radius, next_radius)
            if more < LEAST_TOLD:
                break
            candidate = self._iterate(candidate, next_radius, next_radius, ITERATIONS - TRIAL_ITERATIONS)
            chosen_there = self._choose(candidate, next_radius)
            if not chosen_there:
                break
            subspace, radius, chosen = candidate, next_radius, chosen_there
            if more < 2 * LEAST_TOLD:  # the next would tell less than this one
                break
        subspace = subspace.leading(chosen)
        for _ in range(REFINEMENTS):
            subspace = self._step(Pass(subspace, chosen, radius, radius, self.mean_squared_ctf, everything=True))
        logger.info(
            "%s; latents are inferred from shells 1 to %d (%.3g Å)",
            f"{chosen} components" if chosen else "no heterogeneity found: held-out images prefer one volume for all",
            radius,
            self.store.info.box_size * self.store.info.apix / radius,
        )
        if chosen == zdim:
            logger.info("as many components as there may be (%d) earn their place; a larger --zdim may find more", zdim)
        return subspace, radius

    def _consensus(self, radius: int) -> Subspace:
        """Find one volume, of which there is no more to know than that images are seen with contrast 1."""
        self._prepare(radius)
        return self._step(Pass(None, 0, 0, radius, self.mean_squared_ctf, everything=True))

    def _prepare(self, radius: int) -> None:
        """Put the coefficients up to a radius into memory, if they are not there."""
        if self.prepared_radius >= radius:
            return
        self.prepared_radius = radius
        groups = enumerate(self.groups)
        tasks = [partial(prepare, self.store.absolute_path, g.tolist(), radius, number) for number, g in groups]
        self.parts = list(run_tasks(tasks, num_workers=self.num_workers, on_gpu=True, keep=True))

    def _start(self, zdim: int, radius: int, seed: int) -> Subspace:
        subspace = self._step(Pass(None, zdim, 0, radius, self.mean_squared_ctf, seed=seed))
        return self._iterate(subspace, radius, radius, START_ITERATIONS - 1)

    def _iterate(self, subspace: Subspace, radius: int, next_radius: int, count: int) -> Subspace:
        for _ in range(count):
            work = Pass(subspace, subspace.num_components, radius, next_radius, self.mean_squared_ctf)
            subspace, radius = self._step(work), next_radius
        return subspace

    def _step(self, work: Pass) -> Subspace:
        tasks = [partial(expect, part, work, self.store.info.box_size) for part in self.parts]
        return fitted(added(run_tasks(tasks, num_workers=self.num_workers, on_gpu=True)), self.mean_squared_ctf)

    def _judge(self, judge: Callable[..., Float64[np.ndarray, "n _"]], *settings: object) -> Float64[np.ndarray, "n _"]:
        tasks = [partial(judge, part, *settings) for part in self.parts]
        return np.concatenate(list(run_tasks(tasks, num_workers=self.num_workers, on_gpu=True)))

    def _likelihoods(self, subspace: Subspace, radius: int) -> Float64[np.ndarray, "n C"]:
        return self._judge(log_likelihoods, subspace, radius)

    def _choose(self, subspace: Subspace, radius: int) -> int:
        """Components with the best held-out likelihood, and those that may be as good, of which each is cheap to have.

        None, if the best is not clearly better than one volume for all.
        """
        gains = self._likelihoods(subspace, radius)
        gains -= gains[:, :1]
        best = int(gains.mean(axis=0).argmax())
        as_good = [not gain(gains[:, best], column).is_beyond(1) for column in gains.T]
        gained = gain(gains[:, best], gains[:, 0])
        chosen = int(np.flatnonzero(as_good)[-1]) if gained.is_clear else 0
        logger.info(
            "radius %d: %d of %d components; the best number tells held-out images %s nats better than one volume",
            radius,
            chosen,
            subspace.num_components,
            gained,
        )
        self.listen(radius, {"em/radius": radius, "em/num_components": chosen, "em/held_out_gain": gained.mean})
        return chosen

    def _more_told(self, subspace: Subspace, radius: int, next_radius: int) -> float:
        """Share that shells up to the next radius add to what is told of the latents; 0, if it may be noise."""
        score = self._judge(predictions, subspace, (0, radius, next_radius))
        gained, told = gain(score[:, 2], score[:, 1]), gain(score[:, 1], score[:, 0])
        more = gained.mean / told.mean if gained.is_beyond(1) and told.mean > 0 else 0.0
        logger.info(
            "shells %d to %d tell %s of the latents (held-out halves of images: better by %s nats of %.2f)",
            radius + 1,
            next_radius,
            "more" if more >= LEAST_TOLD else "too little",
            gained,
            told.mean,
        )
        return more


def _bend(model: CurvedSubspace, store: ParticleStore, chunks: Int[np.ndarray, " chunks"], num_workers: int) -> None:
    """Fit volumes of polynomials of the latents that a linear fit found, if they tell images that were left out better.

    Straight and bent volumes are fitted to most of the particles and compared on the others (whose latents are those
    of the search for both); the better ones have all particles in the end.
    """
    subspace, of_ctf, size = model.subspace, mean_squared_ctf(store), store.info.box_size
    radius, straight = int(model.radius), model.curved_volumes
    degrees = bending_terms(subspace.volumes[1:])
    few = replace(subspace, volumes=resized(subspace.volumes, search_box(size, radius)))
    work = Pass(few, subspace.num_components, radius, size // 2, of_ctf, everything=True, degrees=degrees)
    if SUMS_TO_BEND * _sums_bytes(store, work) > memory_here():
        logger.info("memory has no room for the sums of %d bent volumes: they stay straight", work.num_volumes)
        return
    left_out = np.zeros(len(chunks), bool)
    left_out[:: max(LEFT_OUT, -(-len(chunks) * store.chunk_size // MOST_LEFT_OUT))] = True
    if left_out.all():
        logger.info("particles are too few to tell whether volumes should bend: they are left straight")
        return
    fitted_to, others = (_summed(store, some, work, num_workers) for some in (chunks[~left_out], chunks[left_out]))

    def told(degrees: torch.Tensor, sums: Sums) -> Float64[np.ndarray, " n"]:
        model.bend(degrees, solved(sums, of_ctf, least_power=0.0).volumes)
        return _bounds(model, stream_rows(store, chunks[left_out].tolist(), BATCH_SIZE))

    linear = degrees[: subspace.num_components]
    of_bent, of_straight = told(degrees, fitted_to), told(linear, fitted_to.leading(1 + len(linear)))
    better = gain(of_bent, of_straight)
    logger.info(
        "volumes bent by %d terms tell %s images that were left out %s nats better than straight ones: they %s",
        len(degrees) - len(linear),
        f"{len(of_bent):,}",
        better,
        "are bent" if better.is_clear else "stay straight",
    )
    if better.is_clear:
        model.bend(degrees, solved(added((fitted_to, others)), of_ctf, least_power=0.0).volumes)
    else:
        model.bend(linear, straight)


def _bounds(model: CurvedSubspace, held_out: Iterator[Mapping[str, torch.Tensor]]) -> Float64[np.ndarray, " n"]:
    """Evidence bounds over the shells that can show a change of shape; beyond, it is the noise that decides."""
    return evidence_bounds(model, model, held_out, model.observer.box_size // BENDING_SHELLS)


def _all_shells(
    store: ParticleStore, chunks: Int[np.ndarray, " chunks"], subspace: Subspace, radius: int, num_workers: int
) -> Subspace:
    """Fit the volumes to all shells of all images, with the latents that the search's volumes tell."""
    of_ctf = mean_squared_ctf(store)
    work = Pass(subspace, subspace.num_components, radius, store.info.box_size // 2, of_ctf, everything=True)
    found = fitted(_summed(store, chunks, work, num_workers), of_ctf, least_power=0.0)
    # The search's volumes end at its radius; beyond, it has taken all power for noise.
    return replace(
        found, noise=noise_beside(store, chunks[: max(NOISE_IMAGES // store.chunk_size, 1)].tolist(), found, radius)
    )


def _sums_bytes(store: ParticleStore, work: Pass) -> int:
    return empty_moment_sums(store.info.box_size, work.num_volumes, torch.device("meta")).nbytes


def _summed(
    store: ParticleStore,
    chunks: Int[np.ndarray, " chunks"],
    work: Pass,
    num_workers: int,
    slab_bytes: int = SLAB_BYTES,
) -> Sums:
    """Sum over all shells of some chunks, slab after slab where they are large."""
    size, there = _sums_bytes(store, work), memory_here()
    side = lattice_side(store.info.box_size)
    num_slabs = min(-(-size // slab_bytes), side)
    needed = SUMS_HERE * size + SLABS_IN_TASK * size / num_slabs
    if needed > there:
        raise ResourceError(
            f"{work.num_volumes} volumes of {store.info.box_size} px",
            f"to fit them takes {needed / 1e9:.1f} GB, and this machine has {there / 1e9:.1f} GB",
            "use a larger machine, pass --model linear with a smaller --zdim, or convert with a smaller -D",
        )
    edges = np.linspace(0, side, num_slabs + 1).astype(int).tolist()
    slabs = [range(*edge) for edge in itertools.pairwise(edges)]
    count = min(max(len(chunks) * store.chunk_size // IMAGES_A_PART, 1), MOST_TASKS)
    groups = [group.tolist() for group in np.array_split(chunks, count)]
    num_images = sum(len(range(*store.chunk_rows(chunk).indices(len(store)))) for chunk in chunks.tolist())
    unit = "images" if num_slabs == 1 else "images a slab"
    with Progress("all shells", num_images * num_slabs, unit) as progress:

        def seen(parts: Iterator[Sums]) -> Iterator[Sums]:
            for part in parts:
                progress.update(part.num_images)
                yield part

        def of_slab(slab: range) -> Sums:
            tasks = [partial(accumulate, store.absolute_path, group, work, slab) for group in groups]
            memory = SLABS_IN_TASK * size // num_slabs
            return added(seen(run_tasks(tasks, num_workers=num_workers, on_gpu=True, memory=memory)))

        return stacked(map(of_slab, slabs), side)
