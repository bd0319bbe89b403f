"""Say what particle files, stores and runs hold, and what is suspicious about them; nothing is written.

drgn-ray inspect run_data.star

drgn-ray inspect J24_particles.cs --datadir /data/project --plot particles.png

drgn-ray inspect particles.zarr runs/a
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from jobs.cli import exit_with, parse, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``inspect``."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE [FILE ...]")]
    """RELION STAR files, cryoSPARC .cs files, MRC stacks, .txt lists of stacks, cryoDRGN pickles, stores or runs."""
    plot: str | None = None
    """Picture to write (.png, .pdf, .svg) of the one FILE: mean image, power spectrum, views, defocus."""
    apix: float | None = None
    """Å/px of the images, where the file does not say or is wrong."""
    datadir: str | None = None
    """Folder that image paths start from, or that holds the stacks; None: the table's or one above it."""
    passthrough: tuple[str, ...] = ()
    """cryoSPARC passthrough .cs files of the same job, with the fields that the .cs file lacks."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "inspect", __doc__)
    return run_command(lambda: _inspect(arguments))


def _inspect(arguments: Arguments) -> None:
    import logging

    from conversions.inspection import Hints, inspect, picture
    from drgn_ray.errors import ConfigError, UserError

    if not arguments.files:
        raise ConfigError("inspect", "no file is named", "pass one or more")
    if arguments.plot is not None and len(arguments.files) > 1:
        raise ConfigError("--plot", f"there are {len(arguments.files)} files to inspect", "pass one of them")
    logging.getLogger("conversions").setLevel(logging.ERROR)  # all that it would say is among the lines
    hints = Hints(arguments.datadir, arguments.passthrough, arguments.apix)
    errors: list[UserError] = []
    for path in arguments.files:
        try:
            inspection = inspect(path, hints)
        except UserError as error:  # the other files are inspected all the same
            errors.append(error)
            continue
        print(inspection, end="\n\n")
        if arguments.plot is not None:
            _write_picture(picture(inspection), arguments.plot)
    for error in errors[1:]:
        print(error)
    if errors:
        raise errors[0]


def _write_picture(figure: Figure, path: str) -> None:
    from drgn_ray.errors import ConfigError

    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}", f"no picture can be written ({error})", "pass a name.png") from error
    print(f"picture {path}")


if __name__ == "__main__":
    exit_with(main)
