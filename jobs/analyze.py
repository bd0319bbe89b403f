"""Latents, their PCA and k-means, and volumes of a trained run, into the run directory and into MLflow.

drgn-ray analyze runs/a --ksample 20 --pc 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.cli import exit_with, parse, run_command


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``analyze``."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    ksample: int | None = None
    """Clusters of k-means, each with a volume; None: 20, or one a particle where there are fewer."""
    pc: int | None = None
    """Principal components along which volumes are decoded; None: 2, or 1 where z has one dimension."""
    umap: bool = False
    """Also embed (at most 100,000) particles by UMAP; needs the package umap-learn, and minutes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "analyze", __doc__)
    return run_command(lambda: _analyze(arguments))


def _analyze(arguments: Arguments) -> None:
    from drgn_ray.analysis.umap import check_umap
    from drgn_ray.errors import ConfigError
    from drgn_ray.particles.store import ParticleStore
    from drgn_ray.training.embed import trained_zdim
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.finish import finish_run
    from jobs.frame import job_frame
    from jobs.pipeline import open_tracked

    if arguments.umap:
        check_umap()

    run = RunDirectory(arguments.run)
    config = run.config()
    store = ParticleStore(config.particles)
    count, zdim = len(store), trained_zdim(run, config, store)
    if not zdim and (arguments.ksample, arguments.pc, arguments.umap) != (None, None, False):
        raise ConfigError("--ksample, --pc, --umap", f"{run.path} has one volume and no latents", "leave them out")
    if arguments.ksample is not None and not 1 <= arguments.ksample <= count:
        raise ConfigError(
            f"--ksample {arguments.ksample}", f"there are {count:,} particles", "pass a number up to that"
        )
    if arguments.pc is not None and not 0 <= arguments.pc <= min(zdim, count):
        raise ConfigError(f"--pc {arguments.pc}", f"z has {min(zdim, count)} components", "pass a number up to that")
    with job_frame(arguments.run) as frame:
        tracked = open_tracked(run, config, frame)
        frame.result(
            *finish_run(run, tracked, ksample=arguments.ksample, num_pcs=arguments.pc, with_umap=arguments.umap)
        )


if __name__ == "__main__":
    exit_with(main)
