"""Search settings: many trials beside each other, those that fall behind stopped early; the same call goes on.

Trials are ranked by how much better than one volume they tell held-out images (nats an image, whatever beta and zdim).
SWEEP is a YAML file of distributions and settings, or one of: quick, architecture, latent-dimension, paper.

drgn-ray tune particles.zarr quick -o sweeps/a --dry-run
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jobs.cli import exit_with, parse, run_command

if TYPE_CHECKING:
    import pandas as pd

    from drgn_ray.config import RunConfig
    from drgn_ray.tracking.run import TrackedRun
    from drgn_ray.training.run_directory import RunDirectory
    from drgn_ray.training.sweep import Sweep, Trial
    from drgn_ray.training.sweep_directory import SweepDirectory
    from jobs.frame import Frame

logger = logging.getLogger(__name__)
MOST_COMPARED = 5  # best trials that are set side by side


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``tune``."""

    particles: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
    """The particle store."""
    sweep: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SWEEP")]
    """YAML file of the search, or the name of one that is ready made."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Folder of the sweep; one that is there already goes on."""
    gpus_per_trial: float | None = None
    """GPUs of a trial, 0.5 for two trials on a GPU; None: one, where there are GPUs."""
    dry_run: bool = False
    """Print the trials and the time and memory that they would take, of which 20 steps of each kind tell."""
    promote: bool = False
    """Then train the winner in full, with no more particles held out than `train` does, in OUTPUT/promoted."""
    rank_by: Literal["gain", "back_projection", "half_sets"] = "gain"
    """What chooses the winner of the trials that finished: gain; or what takes longer and follows the search: how far
    volumes agree with back-projections of particles near them, or trainings on either half with each other."""
    no_analysis: bool = False
    """Leave out latents, volumes and explorer of the winner."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "tune", __doc__)
    return run_command(lambda: _tune(arguments))


def _tune(arguments: Arguments) -> None:
    from drgn_ray.distributed.searcher import first_trials
    from drgn_ray.particles.store import ParticleStore
    from drgn_ray.training.sweep import read_sweep
    from jobs.frame import check_folder

    check_folder(arguments.output)
    sweep = read_sweep(arguments.sweep)
    store = ParticleStore(arguments.particles)
    trials = first_trials(sweep, store)
    if arguments.dry_run:
        from drgn_ray.distributed.probe import say_costs

        say_costs(sweep, trials, store, arguments.gpus_per_trial)
        if sweep.num_trials > len(trials):
            logger.info("then %d more, which Optuna chooses as trials end", sweep.num_trials - len(trials))
        return

    from drgn_ray.training.sweep_directory import SweepDirectory
    from jobs.frame import job_frame

    directory = SweepDirectory(arguments.output)
    with job_frame(arguments.output) as frame, directory.claimed():
        trials = directory.begin(sweep, store.absolute_path, trials)
        _check_machines(directory, trials[0].config, arguments.gpus_per_trial)
        _search(directory, sweep, trials, arguments, frame)


def _check_machines(directory: SweepDirectory, config: RunConfig, gpus_per_trial: float | None) -> None:
    """Refuse to search where machines or storage cannot."""
    import os
    from functools import partial

    from drgn_ray.distributed.preflight import preflight
    from drgn_ray.distributed.trainer import own_cpus
    from drgn_ray.distributed.tune import plan_slots

    resources = config.resources
    cpus, workers = resources.cpus_per_worker or 1, resources.num_workers
    own = own_cpus(resources) if workers else max(os.cpu_count() or 1, 2)
    plan = partial(plan_slots, cpus, gpus_per_trial, num_workers=workers)
    preflight(config.particles, directory.path, plan, own, resources.awaited_gpus)


def _search(
    directory: SweepDirectory, sweep: Sweep, trials: Sequence[Trial], arguments: Arguments, frame: Frame
) -> None:
    from drgn_ray.distributed.ranking import score_finished
    from drgn_ray.distributed.tune import publish, run_sweep
    from drgn_ray.tracking.reproduce import tell_command
    from drgn_ray.tracking.run import open_sweep
    from drgn_ray.tracking.summary import sweep_note
    from drgn_ray.training.leaderboard import leaderboard, markdown, unended
    from jobs.frame import command_line, submitted_job
    from jobs.pipeline import end_told, served
    from jobs.winner import promote, show_winner

    tracked = open_sweep(directory.tracked, trials[0].config.particles)
    frame.link(served(tracked, tracked.link))
    tracked.begin()
    with end_told(tracked):
        tell_command(tracked, submitted_job())
        run_sweep(directory, sweep, tracked, arguments.gpus_per_trial)
        if arguments.rank_by != "gain" and not unended(leaderboard(directory, directory.trials())):
            score_finished(directory, arguments.rank_by)
        table = publish(directory, directory.trials(), tracked, arguments.rank_by)
        board = markdown(directory, table, arguments.rank_by)
        frame.result(*board.splitlines())
        winner = _name_winner(directory, table, tracked, frame)
        if not arguments.no_analysis:
            frame.result(*show_winner(winner, tracked))
            tracked.note(sweep_note(tracked, board))
    if arguments.promote:
        promote(directory, winner, tracked, frame, analysis=not arguments.no_analysis)
        tracked.note(sweep_note(tracked, board))
        return
    words = [arguments.particles, arguments.sweep, "-o", arguments.output, "--promote"]
    if arguments.rank_by != "gain":
        words += ["--rank-by", arguments.rank_by]
    frame.result(f"next    {command_line('tune', *words)}     # trains the winner in full")


def _name_winner(directory: SweepDirectory, table: pd.DataFrame, tracked: TrackedRun, frame: Frame) -> RunDirectory:
    """Tag the winner; say where it is, and which page sets those of the next beside its."""
    from drgn_ray.errors import RunError
    from drgn_ray.tracking.run import TrackedRun, side_by_side
    from drgn_ray.training.leaderboard import unended
    from jobs.pipeline import served

    best = [directory.run(name) for name in table[table["gain"].notna()]["trial"][:MOST_COMPARED]]
    if left := unended(table):
        raise RunError(str(directory.path), f"{', '.join(left)} came to no end", "give the same command again to go on")
    if not best:
        raise RunError(str(directory.path), "all trials failed", f"see {directory.path / 'outcomes'}")
    for run in map(directory.run, table["trial"]):
        TrackedRun(run).set_tag("drgn_ray.winner", str(run.path == best[0].path).lower())
    winner = TrackedRun(best[0])
    tracked.set_tag("drgn_ray.winner", winner.run_id)
    charts = side_by_side(best)
    if charts is not None:
        frame.result(f"charts  {served(tracked, charts)}")
    frame.result(f"winner  {best[0].path}")
    return best[0]


if __name__ == "__main__":
    exit_with(main)
