"""What follows a sweep: its winner's analysis, also on the page of the sweep, and its training in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drgn_ray.analysis.volumes import read_mrc, slice_montage
from drgn_ray.config import RunConfig
from drgn_ray.distributed.train import check
from drgn_ray.particles.store import ParticleStore
from drgn_ray.tracking import run as tracking
from drgn_ray.tracking.run import TrackedRun
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.training.sweep_directory import SweepDirectory
from jobs.finish import EXPLORER, finish_run
from jobs.frame import Frame
from jobs.pipeline import train_and_finish

FOLDER = "winner"  # of the sweep's artifacts


def show_winner(run: RunDirectory, sweep: TrackedRun) -> list[str]:
    """Analyse a sweep's winner, unless it was, and show what came out with the sweep; lines on where it is."""
    tracked = TrackedRun(run)
    if sweep.tag(tracking.SHOWN) != tracked.run_id:
        finish_run(run, tracked)
        _show(run, sweep)
        sweep.set_tag(tracking.SHOWN, tracked.run_id)
    return [f"explorer {file}" for file in run.newest(EXPLORER)] + [
        f"volumes  {file}" for file in run.newest("kmeans*")
    ]


def _show(run: RunDirectory, sweep: TrackedRun) -> None:
    """Copy the explorer and the volumes that most look at to the sweep's page, and not all that there is twice."""
    *_, folder = run.analyses().values()
    volumes = [*folder.glob("kmeans*"), *folder.glob("reconstruct.mrc")]
    if (folder / EXPLORER).exists():  # not where there is one volume for all
        sweep.artifacts(folder / EXPLORER, FOLDER)
        sweep.set_tag(tracking.EXPLORER, f"{FOLDER}/{EXPLORER}")
    for path in volumes:
        sweep.artifacts(path, f"{FOLDER}/{path.name}" if path.is_dir() else FOLDER)
    first = volumes[0] / "vol_000.mrc" if volumes[0].is_dir() else volumes[0]
    sweep.image("winner_slices", slice_montage(read_mrc(str(first)).data), 0)


def promote(
    directory: SweepDirectory, winner: RunDirectory, sweep: TrackedRun, frame: Frame, *, analysis: bool
) -> None:
    """Train a sweep's winner in full, as a run of its own; or go on with that."""
    config = promoted_config(winner.config(), directory.sweep().base)
    run = RunDirectory(directory.path / "promoted")
    check(config, ParticleStore(config.particles))
    run.begin(config)
    tracking.open_promoted(run, config, sweep, f"{directory.path.name} promoted")
    train_and_finish(run, config, frame, analysis=analysis)


def promoted_config(winner: RunConfig, base: Mapping[str, Any]) -> RunConfig:
    """Take the settings of a winner, but of those that trials have, and `base` does not say, the usual ones."""
    usual = RunConfig()
    data = winner.data.model_copy(update={"val_fraction": usual.data.val_fraction})
    workers = max(winner.resources.num_workers, usual.resources.num_workers)
    resources = winner.resources.model_copy(update={"num_workers": workers})
    training = winner.training
    if "resources.cpus_per_worker" not in base:
        resources = resources.model_copy(update={"cpus_per_worker": usual.resources.cpus_per_worker})
    if "training.back_offs" not in base:
        training = training.model_copy(update={"back_offs": usual.training.back_offs})
    return winner.model_copy(update={"data": data, "resources": resources, "training": training})
