"""Latents of every particle of a store under a trained run.

drgn-ray embed runs/a                       # the particles it was trained on: runs/a/latents.npz

drgn-ray embed runs/a other.zarr -o z.npz
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jobs.cli import exit_with, parse, run_command


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``embed``."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    particles: Annotated[str | None, tyro.conf.Positional] = None
    """Another particle store; None: the run's own."""
    output: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Where to write the latents (.npz, and .parquet beside it); None: latents.npz in the run directory."""
    num_workers: Annotated[int | None, tyro.conf.arg(aliases=["--workers"])] = None
    """Tasks at a time; None: as many as there are CPUs; 0: in this process, without Ray."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "embed", __doc__)
    return run_command(lambda: _embed(arguments))


def _embed(arguments: Arguments) -> None:
    from drgn_ray.distributed.embed import embed
    from drgn_ray.errors import ConfigError
    from drgn_ray.particles.store import ParticleStore
    from drgn_ray.training.embed import check_fits, trained_zdim
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.frame import job_frame

    run = RunDirectory(arguments.run)
    trained_on = ParticleStore(run.config().particles)
    if not trained_zdim(run, run.config(), trained_on):
        raise ConfigError(str(run.path), "this run has one volume and no latents to embed", "pass another run")
    store = trained_on if arguments.particles is None else ParticleStore(arguments.particles)
    if arguments.particles is not None and arguments.output is None:
        raise ConfigError("embed", "latents of other particles would replace the run's own", "pass -o FILE.npz")
    if arguments.output is not None and not arguments.output.endswith(".npz"):
        raise ConfigError(f"-o {arguments.output}", "latents are written as .npz", "pass a name that ends in .npz")
    check_fits(trained_on, store)
    output = run.latents_file if arguments.output is None else Path(arguments.output)
    with job_frame(str(output)) as frame:
        latents = embed(run, store, arguments.num_workers)
        latents.save(output)
        frame.result(f"{len(latents.z):,} latents of dimension {latents.z.shape[1]}: arrays z, z_logvar, source_row")


if __name__ == "__main__":
    exit_with(main)
