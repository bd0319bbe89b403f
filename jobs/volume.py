"""Filter, resample, cut, mirror, invert or mask a map, or make a mask of it.

What is asked for is done in this order, whatever the order of the flags: --apix, --crop, -D, --flip-hand, --invert,
--sharpen, --low-pass, --mask, --make-mask. So --crop counts voxels of IN, filters and MASK are for the new sampling,
and a B-factor is fitted before the low-pass filter. The origin is voxel D/2 and stays there.

drgn-ray volume vol_000.mrc -o sharp.mrc --sharpen auto --low-pass 3.5

drgn-ray volume map.mrc -o small.mrc --crop 200 -D 128 --flip-hand

drgn-ray volume map.mrc -o mask.mrc --low-pass 15 --make-mask
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jobs.cli import exit_with, parse, run_command

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from drgn_ray.analysis.volumes import MrcVolume

logger = logging.getLogger("jobs.volume")  # also as `python -m jobs.volume`, where __name__ is another


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``volume``, in the order in which they act."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN.mrc")]
    """The map."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="OUT.mrc")]
    """File to write, another than IN."""
    apix: float | None = None
    """Å/px of IN, where its header is wrong; None: the header's."""
    crop: int | None = None
    """Cut out, or pad with zeros to, a cube of this many voxels of IN about the origin; Å/px stays."""
    box_size: Annotated[int | None, tyro.conf.arg(aliases=["-D"])] = None
    """Resample a cube, in Fourier space, to this even number of voxels of the same extent; Å/px becomes apix D/D'."""
    flip_hand: bool = False
    """Mirror along z about voxel D/2, which stays (cryoDRGN's flip_hand moves the map by a voxel)."""
    invert: bool = False
    """Multiply grey values by -1."""
    sharpen: float | Literal["auto"] | None = None
    """B-factor, Å²; negative sharpens, positive blurs; auto: that of a Guinier fit from 10 Å to --low-pass."""
    low_pass: float | None = None
    """Remove what is finer than this, Å, with a soft edge."""
    mask: str | None = None
    """Map to multiply by, on the grid that the operations above lead to."""
    make_mask: bool = False
    """Write a mask of the result instead of the result."""
    threshold: float | None = None
    """Density from which the mask begins; None: half of the 99.99th percentile."""
    dilate: float = 25.0
    """Å by which the mask grows beyond the threshold."""
    soft_edge: float = 15.0
    """Å over which the mask then falls from 1 to 0."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "volume", __doc__)
    return run_command(lambda: _volume(arguments))


def _volume(arguments: Arguments) -> None:
    from pathlib import Path

    import numpy as np

    from drgn_ray.analysis.volumes import read_mrc, write_mrc
    from drgn_ray.errors import ConfigError
    from jobs.frame import command_line, job_frame

    _check_output(arguments)
    _check_numbers(arguments)
    _check_together(arguments)
    volume = _with_voxel_size(read_mrc(arguments.source), arguments)
    apix = _check_sampling(arguments, volume)
    mask = None if arguments.mask is None else _read_mask(arguments, volume, apix)
    with job_frame(arguments.output) as frame:
        data = volume.data
        with np.errstate(over="ignore", invalid="ignore"):
            for line, result in _operations(arguments, volume, mask):
                logger.info(line)
                data = result
        if not np.isfinite(data).all():
            raise ConfigError(f"--sharpen {arguments.sharpen}", "the values overflow", "pass a B-factor nearer to 0")
        write_mrc(Path(arguments.output), data, apix, f"drgn_ray volume of {Path(arguments.source).name}")
        kind = "mask" if arguments.make_mask else "map"
        frame.result(f"{kind} of {_by(data.shape)} px, {apix:.4g} Å/px: {data.min():.4g} to {data.max():.4g}")
        if arguments.make_mask:
            halves = [str(Path(arguments.source).with_name(f"half{half}_unfil.mrc")) for half in (1, 2)]
            place = str(Path(arguments.output).with_name("fsc"))
            frame.result(
                f"next: {command_line('fsc', *halves, '--half-maps', '--mask', arguments.output, '-o', place)}",
                f"  or: relion_postprocess --i {halves[0]} --mask {arguments.output} --angpix {apix:.4g} "
                "--auto_bfac --o postprocess",
            )


def _operations(
    arguments: Arguments, volume: MrcVolume, mask: MrcVolume | None
) -> Iterator[tuple[str, Float[np.ndarray, "Z Y X"]]]:
    """Do what is asked for, one operation after the other; say each in a line."""
    from drgn_ray.errors import ConfigError
    from drgn_ray.physics import volume as physics

    data, apix = volume
    if arguments.crop is not None:
        before, data = data.shape, physics.crop(data, arguments.crop)
        yield f"crop: {_by(before)} -> {_by(data.shape)} px, {apix:.4g} Å/px", data
    if arguments.box_size is not None:
        size, before, data = len(data), apix, physics.resample(data, arguments.box_size)
        apix = before * size / arguments.box_size
        yield f"resample: {size} px of {before:.4g} Å -> {len(data)} px of {apix:.4g} Å", data
    if arguments.flip_hand:
        data = physics.flip_hand(data)
        yield f"flip hand: mirrored along z about voxel {len(data) // 2}", data
    if arguments.invert:
        data = -data
        yield "invert: grey values times -1", data
    if arguments.sharpen is not None:
        bfactor, how = arguments.sharpen, ""
        if bfactor == "auto":
            assert arguments.low_pass is not None
            try:
                bfactor = physics.guinier_bfactor(data, apix, arguments.low_pass)
            except ValueError as error:
                raise ConfigError("--sharpen auto", str(error), "pass a B-factor, or another --low-pass") from error
            how = f" (Guinier fit from {physics.GUINIER_FROM:g} to {arguments.low_pass:g} Å)"
        data = physics.sharpen(data, apix, bfactor)
        yield f"{'sharpen' if bfactor <= 0 else 'blur'}: B = {bfactor:.1f} Å²{how}", data
    if arguments.low_pass is not None:
        data = physics.low_pass(data, apix, arguments.low_pass)
        yield f"low-pass: {arguments.low_pass:g} Å (Nyquist is {2 * apix:.4g} Å)", data
    if mask is not None:
        data = data * mask.data
        yield f"mask: times {arguments.mask}, {_share(mask.data > 0.5)} above 0.5", data
    if arguments.make_mask:
        line, data = _mask_of(data, apix, arguments)
        yield line, data


def _mask_of(
    data: Float[np.ndarray, "Z Y X"], apix: float, arguments: Arguments
) -> tuple[str, Float[np.ndarray, "Z Y X"]]:
    from drgn_ray.errors import ConfigError
    from drgn_ray.physics.mask import default_threshold, threshold_mask

    threshold, why = arguments.threshold, ""
    if threshold is None:
        threshold, why = default_threshold(data), ", half of the 99.99th percentile"
    if threshold <= 0:
        raise ConfigError(arguments.source, "hardly any density is positive", "pass --invert, or --threshold")
    if threshold > data.max():
        found = f"no voxel reaches it, the densest is {data.max():.4g}"
        raise ConfigError(f"--threshold {threshold:g}", found, "pass a lower one")
    made = threshold_mask(data, apix=apix, threshold=threshold, dilate=arguments.dilate, soft_edge=arguments.soft_edge)
    if made.min() > 0:
        logger.warning("WARNING: the mask leaves nothing out; pass a higher --threshold or a smaller --dilate")
    line = (
        f"make mask: threshold {threshold:.4g}{why} ({_share(data >= threshold)}), "
        f"dilated by {arguments.dilate:g} Å ({int(arguments.dilate // apix)} px), "
        f"soft edge {arguments.soft_edge:g} Å ({arguments.soft_edge / apix:.1f} px); {_share(made > 0.5)} above 0.5"
    )
    return line, made


def _check_output(arguments: Arguments) -> None:
    from pathlib import Path

    from drgn_ray.errors import ConfigError

    name, path = f"-o {arguments.output}", Path(arguments.output)
    if "://" in arguments.output:
        raise ConfigError(name, "a map is written to a file, not to a URL", "pass a path")
    if path.is_dir():
        raise ConfigError(name, "this is a folder", "pass the name of a file, as out.mrc")
    if path.suffix not in (".mrc", ".map"):
        raise ConfigError(name, "its name ends neither in .mrc nor in .map", "pass a name like out.mrc")
    if not path.parent.is_dir():
        raise ConfigError(name, f"there is no folder {path.parent}", f"make it with `mkdir -p {path.parent}`")
    for flag, other in (("IN", arguments.source), ("--mask", arguments.mask)):
        if other is not None and path.resolve() == Path(other).resolve():
            raise ConfigError(name, f"this is {flag}, which would be lost", "pass another name")


def _check_numbers(arguments: Arguments) -> None:
    from drgn_ray.errors import ConfigError

    positive = {
        "--apix": (arguments.apix, "Å/px"),
        "--crop": (arguments.crop, "voxels"),
        "-D": (arguments.box_size, "voxels"),
        "--low-pass": (arguments.low_pass, "Å"),
        "--threshold": (arguments.threshold, "density"),
    }
    for flag, (value, unit) in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{flag} {value:g}", "it is not above 0", f"pass a positive number ({unit})")
    for flag, value in (("--dilate", arguments.dilate), ("--soft-edge", arguments.soft_edge)):
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{flag} {value:g}", "it is below 0 or no number", "pass 0 or a positive number (Å)")
    if isinstance(arguments.sharpen, float) and not math.isfinite(arguments.sharpen):
        raise ConfigError(f"--sharpen {arguments.sharpen}", "it is no number", "pass a B-factor in Å², or auto")
    if arguments.crop == 1:
        raise ConfigError("--crop 1", "one voxel is no volume", "pass 2 or more")
    if arguments.box_size is not None and arguments.box_size % 2:
        even = arguments.box_size + 1
        raise ConfigError(f"-D {arguments.box_size}", "it is odd", f"pass an even number, as {even}")


def _check_together(arguments: Arguments) -> None:
    """Refuse flags that want others, and a call that would only copy."""
    from drgn_ray.errors import ConfigError

    asked = (arguments.apix, arguments.crop, arguments.box_size, arguments.sharpen, arguments.low_pass, arguments.mask)
    switches = arguments.flip_hand, arguments.invert, arguments.make_mask
    of_mask = {"--threshold": "threshold", "--dilate": "dilate", "--soft-edge": "soft_edge"}
    for flag, field in of_mask.items():
        if not arguments.make_mask and getattr(arguments, field) != getattr(Arguments, field):
            raise ConfigError(flag, "it shapes a mask, and none is made", "add --make-mask")
    if all(value is None for value in asked) and not any(switches):
        raise ConfigError(
            "volume",
            "it is not said what to do",
            "pass one or more of --apix, --crop, -D, --flip-hand, --invert, --sharpen, --low-pass, --mask, --make-mask",
        )
    if arguments.sharpen == "auto" and arguments.low_pass is None:
        raise ConfigError("--sharpen auto", "it is not said up to which resolution to fit", "add --low-pass ANGSTROM")


def _with_voxel_size(volume: MrcVolume, arguments: Arguments) -> MrcVolume:
    """Take --apix before the header, and miss neither where it is needed."""
    from drgn_ray.errors import ConfigError

    if arguments.apix is not None:
        logger.info(f"apix: {arguments.apix:.4g} Å/px (the header says {volume.apix:.4g})")
        return volume._replace(apix=arguments.apix)
    if volume.apix > 0 and math.isfinite(volume.apix):
        return volume
    angstrom = {"--sharpen": arguments.sharpen, "--low-pass": arguments.low_pass, "--make-mask": arguments.make_mask}
    needed = [flag for flag, value in angstrom.items() if value is not None and value is not False]
    if needed:
        found = f"its header says {volume.apix:g} Å/px, and {needed[0]} is in Å"
        raise ConfigError(arguments.source, found, "add --apix")
    logger.warning(f"WARNING: the header of {arguments.source} says {volume.apix:g} Å/px; set it right with --apix")
    return volume._replace(apix=0.0)


def _check_sampling(arguments: Arguments, volume: MrcVolume) -> float:
    """Refuse what the map's shape and voxels do not allow; return Å/px of the result."""
    from drgn_ray.errors import ConfigError

    shape, apix = volume.data.shape if arguments.crop is None else (arguments.crop,) * 3, volume.apix
    if arguments.box_size is not None:
        if len(set(shape)) > 1 or shape[0] % 2:
            what = "odd" if len(set(shape)) == 1 else "no cube"
            even = max(shape) + max(shape) % 2
            found = f"{_by(shape)} voxels are {what}, which -D does not resample"
            raise ConfigError(arguments.source, found, f"pass an even --crop, as --crop {even}")
        apix, shape = apix * shape[0] / arguments.box_size, (arguments.box_size,) * 3
    cutoff = arguments.low_pass
    if cutoff is not None and cutoff < 2 * apix * (1 - 1e-4):  # headers have single precision
        found = f"voxels of {apix:.4g} Å hold nothing finer than {2 * apix:.4g} Å (Nyquist)"
        raise ConfigError(f"--low-pass {cutoff:g}", found, f"pass {2 * apix:.4g} or more")
    if cutoff is not None and cutoff > max(shape) * apix:
        found = f"the box is {max(shape) * apix:.4g} Å, so nothing would be left"
        raise ConfigError(f"--low-pass {cutoff:g}", found, "pass a finer resolution")
    return apix


def _read_mask(arguments: Arguments, volume: MrcVolume, apix: float) -> MrcVolume:
    from drgn_ray.analysis.consensus import check_same_grid
    from drgn_ray.analysis.volumes import read_mrc

    size = arguments.crop if arguments.box_size is None else arguments.box_size
    shape = volume.data.shape if size is None else (size,) * 3
    name = str(arguments.mask)
    mask = read_mrc(name)
    check_same_grid(name, mask, arguments.source if size is None else "the result", shape, apix)
    low, high = float(mask.data.min()), float(mask.data.max())
    if low < -1e-3 or high > 1 + 1e-3:
        logger.warning(f"WARNING: {name} holds {low:.4g} to {high:.4g}; a mask is between 0 and 1")
    return mask


def _by(shape: tuple[int, ...]) -> str:
    """Write a shape (z, y, x)."""
    return " x ".join(map(str, shape))


def _share(inside: np.ndarray) -> str:
    return f"{inside.mean():.2%} of the voxels"


if __name__ == "__main__":
    exit_with(main)
