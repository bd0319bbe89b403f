"""Convert particles to a particle store, or a finished cryoDRGN training to a run.

drgn-ray convert run_data.star -o particles.zarr -D 128

drgn-ray convert J24_particles.cs --passthrough J24_passthrough_particles.cs -o particles.zarr -D 128

drgn-ray convert particles.mrcs --poses pose.pkl --ctf ctf.pkl -o particles.zarr -D 128

drgn-ray convert cryodrgn_output/ --store particles.zarr -o runs/imported
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import tyro

from jobs.cli import exit_with, parse, run_command


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``convert``."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PARTICLES")]
    """A RELION STAR file, a cryoSPARC .cs file, an MRC stack, a .txt list of stacks, or the output folder of `cryodrgn
    train_vae`; local or a URL (s3://)."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Where the store is written (of a cryoDRGN folder, the run)."""
    box_size: Annotated[int | None, tyro.conf.arg(aliases=["-D"])] = None
    """Box size of the store, px; images are cropped in Fourier space. None keeps theirs."""
    poses: str | None = None
    """cryoDRGN's pose.pkl, where the file has no poses or others are wanted."""
    ctf: str | None = None
    """cryoDRGN's ctf.pkl, where the file has no CTF or another is wanted."""
    no_ctf: bool = False
    """The images carry no CTF."""
    apix: float | None = None
    """Å/px of the images, where the file does not say or is wrong."""
    datadir: str | None = None
    """Folder that image paths start from, or that holds the stacks; None: the table's or one above it. Names that lead
    out of it (absolute ones, or by ..) are refused."""
    passthrough: tuple[str, ...] = ()
    """cryoSPARC passthrough .cs files of the same job, with the fields that the .cs file lacks."""
    abinit: bool = False
    """Take the poses of class 0 of a cryoSPARC ab initio job."""
    hetrefine: bool = False
    """The .cs file is of a heterogeneous refinement with shifts in px of half-sized images."""
    ind: str | None = None
    """Keep these rows: .pkl, .npy or text of 0-based row numbers."""
    first: int | None = None
    """Keep only the first N rows."""
    invert: bool = False
    """Protein is white: multiply images by -1. By default the data decide."""
    no_invert: bool = False
    """Protein is dark: leave images as they are. By default the data decide."""
    store: str | None = None
    """For a cryoDRGN folder: the store of the particles that it was trained on."""
    epoch: int | None = None
    """For a cryoDRGN folder: which epoch, counted from 1; None: the last."""
    dtype: Literal["float16", "float32"] = "float16"
    """How pixels are kept."""
    overwrite: bool = False
    """Replace what is at the output."""
    num_workers: Annotated[int | None, tyro.conf.arg(aliases=["--workers"])] = None
    """Tasks at a time; None: as many as there are CPUs; 0: in this process, without Ray."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "convert", __doc__)
    words = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["drgn-ray", "convert", *(word for word in words if word != "--overwrite")])
    return run_command(lambda: _convert(arguments, command))


def _convert(arguments: Arguments, command: str) -> None:
    from conversions import files
    from conversions.driver import Options, convert
    from conversions.inputs import read_particles
    from drgn_ray.errors import ConfigError
    from jobs.frame import job_frame, next_command

    if arguments.invert and arguments.no_invert:
        raise ConfigError(
            "--invert --no-invert", "they contradict each other", "pass one, or none to let the data decide"
        )
    if files.is_folder(arguments.source):
        _import(arguments)
        return
    if arguments.store is not None or arguments.epoch is not None:
        raise ConfigError(
            "--store, --epoch", f"they are of a cryoDRGN folder, and {arguments.source} is none", "leave them out"
        )
    table = read_particles(
        arguments.source,
        poses=arguments.poses,
        ctf=arguments.ctf,
        no_ctf=arguments.no_ctf,
        apix=arguments.apix,
        datadir=arguments.datadir,
        passthrough=arguments.passthrough,
        abinit=arguments.abinit,
        hetrefine=arguments.hetrefine,
        ind=arguments.ind,
        first=arguments.first,
    )
    options = Options(
        output=arguments.output,
        box_size=arguments.box_size,
        dtype=arguments.dtype,
        data_sign=-1 if arguments.invert else 1 if arguments.no_invert else None,
        overwrite=arguments.overwrite,
        num_workers=arguments.num_workers,
        command=command,
    )
    with job_frame(arguments.output) as frame:
        info = convert(table, options).info
        frame.result(
            f"{info.num_particles:,} particles, {info.box_size} px, {info.apix:.4g} Å/px, {info.dtype}",
            f"next: {next_command('backproject', arguments.output, 'consensus')}",
            f"      {next_command('train', arguments.output, 'runs/first')} --preset auto",
        )


def _import(arguments: Arguments) -> None:
    """Make a run of a cryoDRGN output folder."""
    from conversions.cryodrgn_run import import_run
    from drgn_ray.errors import ConfigError
    from jobs.frame import command_line, job_frame

    if arguments.store is None:
        raise ConfigError(
            arguments.source,
            "this is a folder, which can only be the output of cryoDRGN",
            "pass --store STORE with its particles, or a particle file",
        )
    used = ("source", "output", "store", "epoch")
    ignored = [field.name for field in fields(arguments) if field.name not in used]
    ignored = [name for name in ignored if getattr(arguments, name) != getattr(Arguments, name)]
    if ignored:
        listed = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        raise ConfigError(listed, f"it is of particles, and {arguments.source} is a folder", "leave it out")
    with job_frame(arguments.output) as frame:
        run = import_run(arguments.source, arguments.output, particles=arguments.store, epoch=arguments.epoch)
        frame.result(f"run {run.path}", f"next: {command_line('analyze', arguments.output)}")


if __name__ == "__main__":
    exit_with(main)
