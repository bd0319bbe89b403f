"""How long a sweep takes: of the cost of its trials, of how many run at a time, and of how many are stopped early."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from drgn_ray.config import RunConfig
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.loop import particle_order
from drgn_ray.training.probe import Cost

REDUCTION = 3  # of trials at each rung a third goes on


def rungs(longest: int) -> list[int]:
    """Name the epochs after which trials of at most so many are compared: a ninth and a third of them."""
    found = [max(1, round(longest / REDUCTION**2))]
    while found[-1] * REDUCTION < longest:
        found.append(found[-1] * REDUCTION)
    return found


def expected_epochs(num_epochs: int, longest: int) -> float:
    """Mean epochs of a trial of which a third goes on at each rung."""
    at = rungs(longest)
    return sum(REDUCTION ** -sum(rung < epoch for rung in at) for epoch in range(1, num_epochs + 1))


def epoch_seconds(config: RunConfig, store: ParticleStore, cost: Cost) -> float:
    """Seconds of training, validating and judging in an epoch."""
    order = particle_order(config, store)
    return cost.train * order.num_rows(order.train_chunks()) + cost.judge * order.num_rows(order.val_chunks())


def together(seconds: Iterable[float], slots: int) -> float:
    """Seconds of several trials, each begun when one before it ends."""
    free = [0.0] * slots
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)
