"""Volumes at chosen particles or latents: vol_000.mrc, vol_001.mrc, ... and z_values.txt.

drgn-ray decode runs/a --particles 0,17,1204 -o volumes/

drgn-ray decode runs/a -z 0.1 0.2 -o volumes/

drgn-ray decode runs/a --z-file z.txt -o volumes/
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
    """Arguments of ``decode``."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Folder for the volumes."""
    particles: str | None = None
    """Comma-separated 0-based rows of the source table, whose latents are decoded."""
    z: Annotated[tuple[float, ...] | None, tyro.conf.arg(aliases=["-z"])] = None
    """One latent."""
    z_file: str | None = None
    """Text file with one latent a line."""
    overwrite: bool = False
    """Replace the volumes that are in the folder already."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "decode", __doc__)
    return run_command(lambda: _decode(arguments))


def _decode(arguments: Arguments) -> None:
    import numpy as np
    import torch

    from drgn_ray.analysis.volumes import decode_to_folder
    from drgn_ray.errors import ConfigError
    from drgn_ray.particles.store import ParticleStore
    from drgn_ray.training.embed import trained_model, trained_zdim
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.frame import job_frame

    run = RunDirectory(arguments.run)
    config = run.config()
    store = ParticleStore(config.particles)
    if zdim := trained_zdim(run, config, store):
        z = _latents(arguments, run, zdim)
    elif (arguments.particles, arguments.z, arguments.z_file) != (None, None, None):
        raise ConfigError("--particles, -z, --z-file", f"{run.path} has one volume and no latents", "leave them out")
    else:
        z = np.zeros((1, 0))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = sorted(Path(arguments.output).glob("vol_*.mrc"))
    if there and not arguments.overwrite:
        raise ConfigError(str(there[0]), "it is already here", "pass another -o, or --overwrite to replace it")
    with job_frame(arguments.output) as frame:
        decode_to_folder(trained_model(run, config, store, device), z, store.info, Path(arguments.output))
        for stale in there[len(z) :]:
            stale.unlink()
        frame.result(f"{len(z)} volumes of {store.info.box_size} px, {store.info.apix:.4g} Å/px")


def _latents(arguments: Arguments, run, zdim: int):
    """Find the latents asked for, (n, zdim)."""
    import numpy as np

    from drgn_ray.analysis.selection import row_numbers
    from drgn_ray.errors import ConfigError
    from drgn_ray.training.embed import latents_of

    chosen = [arguments.particles is not None, arguments.z is not None, arguments.z_file is not None]
    if sum(chosen) != 1:
        raise ConfigError("--particles, -z, --z-file", "it is not said which volumes", "pass one of them")
    if arguments.particles is not None:
        return latents_of(run).of(row_numbers(arguments.particles))
    if arguments.z is not None:
        name, z = "-z", np.array([arguments.z])
    else:
        name = str(arguments.z_file)
        if not Path(name).is_file():
            raise ConfigError(name, "there is no such file", "check the path of --z-file")
        try:
            z = np.loadtxt(name, ndmin=2)
        except (OSError, ValueError) as error:
            raise ConfigError(name, f"cannot be read as numbers ({error})", "pass one latent a line") from error
    if z.shape[1] != zdim:
        raise ConfigError(
            name, f"its latents have {z.shape[1]} numbers, the run's {zdim}", f"pass {zdim} numbers a latent"
        )
    return z


if __name__ == "__main__":
    exit_with(main)
