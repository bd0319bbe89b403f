"""What a sweep would take, from a few steps of each kind of trial, where and beside as many as it would run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import ray
import torch
from ray.exceptions import RayError

from drgn_ray.config import RunConfig
from drgn_ray.distributed.cluster import alive_nodes, connected
from drgn_ray.distributed.tune import Slots, plan_slots
from drgn_ray.particles.store import ParticleStore
from drgn_ray.progress import Progress, format_duration
from drgn_ray.training.loop import model_for, particle_order
from drgn_ray.training.probe import NUM_STEPS, Cost, probe
from drgn_ray.training.sweep import Sweep, Trial
from drgn_ray.training.sweep_cost import epoch_seconds, expected_epochs, rungs, together

logger = logging.getLogger(__name__)
NO_COST = {"beta", "feat_sigma"}  # settings of a model that change none
NOT_COUNTED = (
    "what several workers save, the linear subspace that comes first, linear starts, subspaces, starting processes,"
    " pictures, the analysis"
)


def say_costs(sweep: Sweep, trials: Sequence[Trial], store: ParticleStore, gpus_per_trial: float | None) -> None:
    """Say what trials there are, and what each of them and all would take.

    Raises
    ------
    ResourceError
        No machine has what a trial needs.
    """
    order = particle_order(trials[0].config, store)
    logger.info(
        "%d trials on %s particles of %d px, %s held out",
        len(trials),
        f"{order.num_rows(order.train_chunks()):,}",
        store.info.box_size,
        f"{order.num_rows(order.val_chunks()):,}",
    )
    with connected():
        nodes = alive_nodes()
        resources = trials[0].config.resources
        slots = plan_slots(resources.cpus_per_worker or 1, gpus_per_trial, nodes, resources.num_workers)
        costs = _probe_all(trials, store, slots)
    for trial in trials:
        settings = "  ".join(f"{name} {value}" for name, value in trial.chosen.items())
        logger.info("%s  %s  (%s)", trial.name, settings, _takes(trial.config, store, costs.get(_kind(trial.config))))
    _say_sum(sweep, trials, store, slots, costs)
    _warn_of_memory(nodes, slots._replace(count=min(slots.count, len(trials))), [*costs.values()])


def _kind(config: RunConfig) -> str:
    """Name what is the same for all trials that cost the same."""
    training = config.training
    steps = training.batch_size, training.points_share, training.coarse_share, training.precision
    return f"{config.model.model_dump(exclude=NO_COST)} {steps}"


def _probe_all(trials: Sequence[Trial], store: ParticleStore, slots: Slots) -> dict[str, Cost]:
    """Probe each kind of network in a fresh process, as many at a time as trials would run."""
    kinds = {_kind(trial.config): trial for trial in trials if not trial.config.model.is_fitted}
    task = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus, max_calls=1, max_retries=0)(_probe)
    waiting = {task.remote(trial.config, store.absolute_path): kind for kind, trial in kinds.items()}
    costs = {}
    with Progress(f"probing {NUM_STEPS} steps", len(kinds), "kinds of trials") as progress:
        while waiting:
            (done,), _ = ray.wait(list(waiting))
            kind = waiting.pop(done)
            try:
                costs[kind] = ray.get(done)
            except RayError as error:
                said = str(error).strip().splitlines() or ["its process ended"]
                logger.warning("%s  its probe failed: %s", kinds[kind].name, said[-1])
            progress.update(1)
    return costs


def _probe(config: RunConfig, particles: str) -> Cost:
    torch.set_num_threads(config.resources.cpus_per_worker or 1)
    return probe(config, ParticleStore(particles))


def _takes(config: RunConfig, store: ParticleStore, cost: Cost | None) -> str:
    if config.model.is_fitted:
        return "fitted, not trained: not probed"
    weights = sum(parameter.numel() for parameter in model_for(config, store).parameters())
    size = f"{weights / 1e6:.2f} M weights, {config.num_epochs} epochs"
    if cost is None:
        return f"{size}; could not be probed"
    seconds = epoch_seconds(config, store, cost) * config.num_epochs
    gpu = f", {cost.gpu_memory / 1e9:.1f} GB of the GPU" if cost.gpu_memory else ""
    return f"{size}, {format_duration(seconds)} in full, {cost.memory / 1e9:.1f} GB{gpu}"


def _say_sum(
    sweep: Sweep, trials: Sequence[Trial], store: ParticleStore, slots: Slots, costs: Mapping[str, Cost]
) -> None:
    known = [(trial.config, costs[kind]) for trial in trials if (kind := _kind(trial.config)) in costs]
    if not known:
        return
    longest = max(trial.config.num_epochs for trial in trials)
    of_epoch = [(epoch_seconds(config, store, cost), config.num_epochs) for config, cost in known]
    in_full = format_duration(together((seconds * epochs for seconds, epochs in of_epoch), slots.count))
    logger.info(
        "%d at a time, each with CPUs: %d, GPUs: %g; all in full: %s", slots.count, slots.cpus, slots.gpus, in_full
    )
    if sweep.scheduler == "asha" and longest > 1:
        expected = together((seconds * expected_epochs(epochs, longest) for seconds, epochs in of_epoch), slots.count)
        after = " and ".join(map(str, rungs(longest)))
        logger.info("where a third goes on after epoch %s, as ASHA has it: about %s", after, format_duration(expected))
    logger.info("counted are training, and validating and judging of held-out particles; not: %s", NOT_COUNTED)


def _warn_of_memory(nodes: Sequence[Mapping[str, float]], slots: Slots, costs: Sequence[Cost]) -> None:
    """Say where the largest trials beside each other would not fit."""
    needed = slots.count * max((cost.memory for cost in costs), default=0)
    free = sum(node["memory"] + node["object_store_memory"] for node in nodes)  # as Ray found it
    if needed > free:
        logger.warning(
            "%d trials at a time may take %.1f GB of memory, and %.1f GB are free; search smaller models, or pass more"
            " resources.cpus_per_worker under base, so that fewer run at a time",
            slots.count,
            needed / 1e9,
            free / 1e9,
        )
    on_a_gpu = int(1 / slots.gpus) if slots.gpus else 0
    for cost in costs:
        if on_a_gpu * cost.gpu_memory > cost.gpu_size:
            logger.warning(
                "%d trials on a GPU may take %.1f GB of it, and it has %.1f GB; pass a larger --gpus-per-trial",
                on_a_gpu,
                on_a_gpu * cost.gpu_memory / 1e9,
                cost.gpu_size / 1e9,
            )
            return
