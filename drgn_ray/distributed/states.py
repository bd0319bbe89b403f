"""Compare what a model decodes for some states with back-projections of the particles near them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int

from drgn_ray.analysis.consensus import make_maps
from drgn_ray.analysis.states import LEAST_NEIGHBORS, State, states_near_particles, usual_neighbors
from drgn_ray.analysis.support import LINEAR, MODEL, Support, support
from drgn_ray.analysis.volumes import decode
from drgn_ray.distributed.backproject import back_project
from drgn_ray.distributed.embed import embed
from drgn_ray.models.model import Model
from drgn_ray.particles.backproject import Assignment, Method, half_maps
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.embed import Latents, latents_of, trained_start
from drgn_ray.training.run_directory import RunDirectory

# The cost is then the same for all large sets.
NUM_STATES, MOST_NEIGHBORS, MOST_OF_CONSENSUS = 8, 2_000, 20_000


def compare_states(
    run: RunDirectory,
    store: ParticleStore,
    model: Model,
    latents: Latents,
    particles: Int[np.ndarray, " n"],
    num_workers: int | None = None,
) -> Support | None:
    """Compare volumes of `NUM_STATES` neighbourhoods with what their particles' images say without any model.

    Parameters
    ----------
    particles
        Rows of the latents at the middle of neighbourhoods, in the order along a component (of which as many as are
        compared are taken, evenly).
    num_workers
        See `back_project`.

    Returns
    -------
    None, where there are too few particles for two half maps.
    """
    particles = particles[np.unique(np.linspace(0, len(particles) - 1, NUM_STATES).round().astype(int))]
    half, source_row = half_maps(store.columns), store.columns["source_row"]
    neighbors = min(usual_neighbors(len(latents.z)), MOST_NEIGHBORS)
    states = states_near_particles(latents, source_row, latents.source_row[particles], neighbors)
    weight = np.stack([_consensus_weight(states), *(state.weight for state in states)])
    if any(not (weight[:, half == each] > 0).any(axis=1).all() for each in (0, 1)):
        return None
    models = {MODEL: (model, latents)}
    start = trained_start(run, store)
    if start is not None and start.zdim:
        of_start = RunDirectory(run.start)
        if not of_start.latents_file.exists():
            embed(of_start, store, num_workers).save(of_start.latents_file)
        models[LINEAR] = (start.to(model.observer.k.device), latents_of(of_start))
    volumes = {
        name: [decode(each, np.average(z.of(source_row), axis=0, weights=state.weight), store.info) for state in states]
        for name, (each, z) in models.items()
    }
    maps = map(make_maps, back_project(store, Assignment(weight, half), Method(), num_workers))
    return support(volumes, next(maps).full, maps, store.info.apix)


def _consensus_weight(states: Sequence[State]) -> Float32[np.ndarray, " N"]:
    """Images of one volume for all: some of those that no state has, whose noise it would share, if there are any."""
    near = np.any([state.weight > 0 for state in states], axis=0)
    others = np.flatnonzero(~near) if np.count_nonzero(~near) >= LEAST_NEIGHBORS else np.arange(len(near))
    # Drawn at random: every second image, say, could be all of one half.
    chosen = np.random.default_rng(0).permutation(others)[:MOST_OF_CONSENSUS]
    return np.isin(np.arange(len(near)), chosen).astype(np.float32)
