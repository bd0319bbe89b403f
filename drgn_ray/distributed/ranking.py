"""What finished trials of a sweep are ranked by on request: what no model made, or what independent particles confirm.

Both take more than looking at held-out images, so they come after the search, each trial by itself.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from drgn_ray.analysis.latent_space import cluster
from drgn_ray.analysis.run import load_run
from drgn_ray.analysis.run_agreement import ANOTHER, SAME, compare_runs
from drgn_ray.analysis.run_report import write_agreement
from drgn_ray.analysis.support import CONSENSUS
from drgn_ray.distributed.decode import decode_runs
from drgn_ray.distributed.embed import embed
from drgn_ray.distributed.states import NUM_STATES, compare_states
from drgn_ray.distributed.tasks import run_tasks
from drgn_ray.distributed.train import train
from drgn_ray.errors import ResourceError, RunError, StorageError, StoreAwayError, UserError
from drgn_ray.particles.store import ParticleStore, reopen
from drgn_ray.progress import Progress
from drgn_ray.tracking.run import TrackedRun
from drgn_ray.training.embed import Latents, trained_model, trained_zdim
from drgn_ray.training.report import LogReporter
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.training.sweep import Trial
from drgn_ray.training.sweep_directory import Score, SweepDirectory

logger = logging.getLogger(__name__)
IN_THIS_PROCESS = 0  # workers, of what is itself a task
NUM_VOLUMES = 8  # of each half


def score_finished(directory: SweepDirectory, rank_by: str) -> None:
    """Score the finished trials that are not yet, each in a task of its own; what cannot be scored says why."""
    finished = [trial for trial in directory.trials() if directory.has_finished(trial.name)]
    unscored = [trial for trial in finished if directory.score(trial.name, rank_by) is None]
    score_of = {"back_projection": _over_consensus, "half_sets": _between_halves}[rank_by]
    tasks = [partial(_scored, score_of, directory, trial) for trial in unscored]
    with Progress(rank_by, len(tasks), "trials") as progress:
        for name, score in run_tasks(tasks, on_gpu=True):
            directory.save_score(name, rank_by, score)
            progress.update(1)
            if score.value is None:
                logger.warning("%s  has no %s: %s", name, rank_by, score.why)
                continue
            logger.info("%s  %s %.4f", name, rank_by, score.value)
            TrackedRun(directory.run(name)).metrics({f"rank/{rank_by}": score.value}, 0)


def _scored(
    score_of: Callable[[SweepDirectory, Trial], float], directory: SweepDirectory, trial: Trial
) -> tuple[str, Score]:
    try:
        return trial.name, Score(score_of(directory, trial))
    except (ResourceError, StorageError, StoreAwayError):  # no fault of the trial's
        raise
    except UserError as error:
        return trial.name, Score(None, str(error))


def _over_consensus(directory: SweepDirectory, trial: Trial) -> float:
    """FSC of volumes with the back-projections of the particles near them, less that of one volume."""
    run, store = directory.run(trial.name), reopen(trial.config.particles)
    latents = _embedded(run, store)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    centres = cluster(latents.z, min(NUM_STATES, len(latents.z))).particles
    model = trained_model(run, trial.config, store, device)
    found = compare_states(run, store, model, latents, centres, IN_THIS_PROCESS)
    if found is None:
        raise RunError(str(run.path), "there are too few particles for two half maps of each state", "rank by gain")
    return found.over(CONSENSUS).mean


def _between_halves(directory: SweepDirectory, trial: Trial) -> float:
    """FSC of the volumes that two runs, each trained on one half, decode for the same particles, less that for others.

    The FSC itself is largest where every particle gets the same volume, which halves agree on best (`docs/sweeps.md`).
    """
    halves = directory.path / "halves" / trial.name
    store = reopen(trial.config.particles)
    runs = [RunDirectory(halves / f"half{half}") for half in (1, 2)]
    for half, run in enumerate(runs, start=1):
        data = trial.config.data.model_copy(update={"half_set": half})
        resources = trial.config.resources.model_copy(update={"num_workers": IN_THIS_PROCESS})
        config = trial.config.model_copy(update={"data": data, "resources": resources})
        run.begin(config)
        train(config, run, partial(LogReporter, run, config.num_epochs))
        _embedded(run, store)
    with tempfile.TemporaryDirectory(dir=halves) as place:
        decode = partial(decode_runs, Path(place), IN_THIS_PROCESS)
        found = compare_runs([load_run(run.path) for run in runs], NUM_VOLUMES, decode)
    write_agreement(halves, found)
    (of_pair,) = found.volumes.values()
    same, another = (of_pair.curves[name][1 : found.box_size // 2].mean() for name in (SAME, ANOTHER))
    return float(same - another)


def _embedded(run: RunDirectory, store: ParticleStore) -> Latents:
    if not trained_zdim(run, run.config(), store):
        raise RunError(str(run.path), "it has one volume and no latents", "rank by gain")
    latents = embed(run, store, IN_THIS_PROCESS)
    latents.save(run.latents_file)
    return latents
