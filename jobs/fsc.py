"""Fourier shell correlation of two maps: fsc.csv, fsc.png, and the resolution at FSC 0.5 and 0.143.

Unmasked, inside a sphere, and inside a loose and a tight mask made of A; or inside --mask. With --half-maps the masks
are made of the mean of A and B, and the tight one is corrected for the correlation that it brings, by randomised
phases. Resolution is where a curve first falls below a threshold; cryoDRGN reports the last shell that reaches it,
which noise at high frequencies makes better.

drgn-ray fsc half1_unfil.mrc half2_unfil.mrc --half-maps -o fsc/

drgn-ray fsc half1_unfil.mrc half2_unfil.mrc --half-maps --local-resolution -o local/

drgn-ray fsc decoded.mrc truth.mrc --mask mask.mrc -o fsc/
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from jobs.cli import exit_with, parse, run_command

if TYPE_CHECKING:
    from drgn_ray.analysis.volumes import MrcVolume

logger = logging.getLogger("jobs.fsc")  # also as `python -m jobs.fsc`, where __name__ is another


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``fsc``."""

    first: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A.mrc")]
    """A map, of which masks are made."""
    second: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B.mrc")]
    """Another on the same grid, or the other half map."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
    """Folder for fsc.csv and fsc.png."""
    half_maps: bool = False
    """A and B are half maps of each other: correct for the mask; FSC 0.143 is then what counts, else 0.5."""
    local_resolution: bool = False
    """Of half maps: also write local_resolution.mrc, the resolution (Å) at every voxel, to colour the map by."""
    mask: str | None = None
    """Mask on the same grid, instead of those that are made; `drgn-ray volume --make-mask` makes one."""
    apix: float | None = None
    """Å/px, where the headers are wrong; None: the headers'."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "fsc", __doc__)
    return run_command(lambda: _fsc(arguments))


def _fsc(arguments: Arguments) -> None:
    from pathlib import Path

    from drgn_ray.analysis import consensus
    from jobs.frame import job_frame

    first, second, mask = _read(arguments)
    made_of = f"{arguments.first} and {arguments.second}" if arguments.half_maps else arguments.first
    apix = first.apix
    with job_frame(arguments.output) as frame:
        given = None if mask is None else mask.data
        if arguments.half_maps:
            maps = consensus.merge_halves(first.data, second.data)
            correlation = consensus.correlate_halves(maps, apix, mask=given)
        else:
            maps = None
            correlation = consensus.correlate(first.data, second.data, apix, given)
        if mask is None and consensus.density_sign(first.data if maps is None else maps.full)[0] < 0:
            logger.warning(
                f"WARNING: the density of {made_of} is negative, so masks made of it are wrong; "
                "invert maps with `drgn-ray volume --invert`, or pass --mask"
            )
        folder = Path(arguments.output)
        folder.mkdir(parents=True, exist_ok=True)
        consensus.write_correlation(folder, correlation, "fsc")
        if maps is not None and arguments.local_resolution:
            frame.result(consensus.write_local_resolution(folder, maps, apix, given))
        masks = f"inside {arguments.mask}" if mask is not None else f"masks made of {made_of}"
        frame.result(f"{len(first.data)} px, {apix:.4g} Å/px; {masks}", *consensus.resolutions(correlation).split("; "))


def _read(arguments: Arguments) -> tuple[MrcVolume, MrcVolume, MrcVolume | None]:
    """Read maps and mask; refuse what cannot be compared."""
    import numpy as np

    from drgn_ray.analysis.consensus import check_same_grid
    from drgn_ray.analysis.volumes import read_mrc
    from drgn_ray.errors import ConfigError

    _check_call(arguments)
    names = [arguments.first, arguments.second, *([] if arguments.mask is None else [arguments.mask])]
    volumes = [read_mrc(name) for name in names]
    if arguments.apix is not None:
        volumes = [volume._replace(apix=arguments.apix) for volume in volumes]
    for name, volume in zip(names, volumes, strict=True):
        if not (volume.apix > 0 and math.isfinite(volume.apix)):
            raise ConfigError(name, f"its header says {volume.apix:g} Å/px", "add --apix")
    shape = volumes[0].data.shape
    if len(set(shape)) > 1:
        found = f"it has {' x '.join(map(str, shape))} voxels, which is no cube"
        remedy = f"make it one with `drgn-ray volume {arguments.first} --crop {max(shape)} -o cube.mrc`"
        raise ConfigError(arguments.first, found, remedy)
    for name, volume in zip(names[1:], volumes[1:], strict=True):
        check_same_grid(name, volume, arguments.first, shape, volumes[0].apix)
    for name, volume in zip(names, volumes, strict=True):
        of_ones = name == arguments.mask and volume.data.any()
        if np.ptp(volume.data) == 0 and not of_ones:
            raise ConfigError(name, f"all its voxels are {volume.data.flat[0]:g}", "pass a map that holds something")
    if np.array_equal(volumes[0].data, volumes[1].data):
        logger.warning(f"WARNING: {arguments.first} and {arguments.second} hold the same map, so that FSC is 1")
    return volumes[0], volumes[1], volumes[2] if len(volumes) > 2 else None


def _check_call(arguments: Arguments) -> None:
    from drgn_ray.errors import ConfigError
    from jobs.frame import check_folder

    if arguments.local_resolution and not arguments.half_maps:
        raise ConfigError("--local-resolution", "it is a property of half maps", "add --half-maps if these are")
    check_folder(arguments.output)
    if arguments.apix is not None and not (math.isfinite(arguments.apix) and arguments.apix > 0):
        raise ConfigError(f"--apix {arguments.apix:g}", "it is not above 0", "pass a positive number (Å/px)")


if __name__ == "__main__":
    exit_with(main)
