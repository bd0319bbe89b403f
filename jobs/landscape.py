"""The landscape of volumes: components and states of decoded volumes, and where every particle is among them.

Some hundred volumes are decoded on a small grid where the particles lie (a sketch), and compared voxel by voxel inside
a mask: their principal components, and discrete states. A regression, chosen by cross-validation, then predicts both
for every particle.

With --regions it also predicts the occupancy of parts of the molecule: their density between that of the solvent and
that of the part that is always there, over what the fullest twentieth of the sketch has of it. 0 is absent, 1 is fully
there; a part that swings out of its mask is absent too, and one that is never all there has 1 all the same.

Masks are maps between 0 and 1, on the grid of -D or on that of the run's images, which is resampled as the volumes are;
what reaches 0.5 is inside.

drgn-ray landscape runs/a

drgn-ray landscape runs/a --states 6 --regions cap.mrc,arm.mrc -o landscape/

drgn-ray export runs/a --labels landscape/states/labels.csv --clusters 3 -o state3.star
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from jobs.cli import exit_with, parse, run_command

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from jaxtyping import Bool, Float32, Int

    from drgn_ray.analysis.landscape import Landscape
    from drgn_ray.particles.store import StoreInfo
    from drgn_ray.physics.volume import Finish
    from drgn_ray.training.embed import Latents
    from drgn_ray.training.run_directory import RunDirectory

logger = logging.getLogger("jobs.landscape")  # also as `python -m jobs.landscape`, where __name__ is another

USUAL_SKETCH, USUAL_SIDE, LEAST_SIDE = 500, 64, 8
POOR = 0.5  # R², below which what is predicted is more of a guess
PARTICLES = "particles.parquet"
OURS = (
    *(PARTICLES, "sketch.csv", "variance.csv", "prediction.csv", "landscape.png", "regions.png"),
    *("mask.mrc", "mean.mrc", "states", "volume_pc*", "view_states.cxc", "movie_volume_pc*.cxc"),
)


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``landscape``."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    output: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for the results; None: landscape.N in the run directory, after N epochs."""
    sketch_size: int | None = None
    """Volumes that are decoded; None: 500, or one a particle where there are fewer."""
    box_size: Annotated[int | None, tyro.conf.arg(aliases=["-D"])] = None
    """Even number of voxels that volumes are resampled to; None: 64, or the run's where those are fewer."""
    mask: str | None = None
    """Map of the voxels that are compared; None: those that have density in any volume of the sketch."""
    pc: int = 10
    """Principal components of the volumes, where so many differ from rounding."""
    states: int = 10
    """Discrete states of the sketch."""
    linkage: Literal["average", "complete", "single", "ward"] = "average"
    """How distances of groups are counted as states are put together; average and single set outliers apart, ward
    makes states of like size."""
    regions: str | None = None
    """Comma-separated masks of parts of the molecule, whose occupancy is found; they are called as their files."""
    num_workers: Annotated[int | None, tyro.conf.arg(aliases=["--workers"])] = None
    """Tasks at a time; None: as many as a cluster that runs has CPUs, or else 0: in this process, without Ray."""
    overwrite: bool = False
    """Replace a landscape that is there already."""


class _Masks(NamedTuple):
    """What is done to volumes, and where they are compared (None: where any has density) and measured."""

    finish: Finish
    compared: Bool[np.ndarray, "d d d"] | None
    regions: Mapping[str, Bool[np.ndarray, "d d d"]]


class _Tables(NamedTuple):
    """Of the decoded volumes, of all particles, and how well the second are predicted from the first."""

    of_sketch: pd.DataFrame
    of_particles: pd.DataFrame
    prediction: pd.DataFrame


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "landscape", __doc__)
    return run_command(lambda: _landscape(arguments))


def _landscape(arguments: Arguments) -> None:
    import tempfile
    from pathlib import Path

    from drgn_ray.errors import ConfigError
    from drgn_ray.particles.store import ParticleStore
    from drgn_ray.training.embed import latents_of, trained_epochs, trained_zdim
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.frame import job_frame
    from jobs.pipeline import open_tracked

    run = RunDirectory(arguments.run)
    config = run.config()
    store = ParticleStore(config.particles)
    if not trained_zdim(run, config, store):
        raise ConfigError(str(run.path), "it has one volume and no latents", "pass another run")
    latents = latents_of(run)
    _check_numbers(arguments, len(latents.z), store.info)
    masks = _read_masks(arguments, store.info)
    usual = run.landscape(trained_epochs(run, config, store))
    place = str(usual) if arguments.output is None else arguments.output
    output = _output(place, overwrite=arguments.overwrite)
    with job_frame(place) as frame:
        tracked = open_tracked(run, config, frame)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as above:
            made = Path(above, "landscape")
            made.mkdir()
            frame.result(*_make(arguments, run, latents, store.info, masks, made))
            _put_in_place(made, output)
        tracked.artifacts(output, output.name)
        frame.result(f"picture {output / 'landscape.png'}", f"states  {output / 'states'}")


def _make(
    arguments: Arguments, run: RunDirectory, latents: Latents, info: StoreInfo, masks: _Masks, folder: Path
) -> list[str]:
    """Find the landscape and write its files; lines on what it is."""
    import pandas as pd

    from drgn_ray.analysis.landscape import find_landscape, sketch
    from drgn_ray.distributed.decode import decode_volumes
    from drgn_ray.errors import ConfigError

    apix = masks.finish.apix(info.box_size, info.apix)
    rows = sketch(latents.z, arguments.sketch_size or min(USUAL_SKETCH, len(latents.z)))
    if arguments.states > len(rows):
        raise ConfigError(f"--states {arguments.states}", f"the sketch has {len(rows)} volumes", "pass fewer")
    volumes = decode_volumes(run, latents.z[rows], masks.finish, arguments.num_workers)
    found = find_landscape(
        volumes,
        apix,
        masks.compared,
        most_components=arguments.pc,
        num_states=arguments.states,
        linkage=arguments.linkage,
    )
    count = len(found.pca.axes)
    if count < arguments.pc:
        logger.info("%d of %d volume components differ from rounding, and are kept", count, arguments.pc)
    scores = pd.DataFrame(found.pca.scores, columns=[f"volume_pc{number}" for number in range(1, count + 1)])
    known = [scores, _occupancy(volumes, found, masks.regions)] if masks.regions else [scores]
    tables = _tables(latents, rows, found, known)
    _write_volumes(found, volumes, apix, folder)
    _write_tables(found, tables, folder)
    in_states = tables.of_particles["state"].value_counts().reindex(range(arguments.states), fill_value=0)
    return [
        f"{len(rows)} volumes of {len(volumes[0])} px, {apix:.4g} Å/px; {count} components in a mask of "
        f"{found.inside.mean():.1%} of the box",
        f"particles in states {', '.join(f'{state}: {number:,}' for state, number in in_states.items())}",
    ]


def _occupancy(
    volumes: Float32[np.ndarray, "n d d d"], found: Landscape, regions: Mapping[str, Bool[np.ndarray, "d d d"]]
) -> pd.DataFrame:
    from drgn_ray.analysis.occupancy import LEAST_FULL, levels, occupancy

    occupied = occupancy(volumes, regions, levels(found.overlaid, found.molecule))
    for name, full in occupied.full.to_dict().items():
        line = f"{name}: where it is full, its density is {full:.2f} of that of the core"
        if full < LEAST_FULL:
            line = f"WARNING: {line}, so that its occupancy is mostly that of noise"
        logger.info(line)
    return occupied.volumes.add_prefix("occupancy_")


def _tables(latents: Latents, rows: Int[np.ndarray, " n"], found: Landscape, known: Sequence[pd.DataFrame]) -> _Tables:
    """Predict for every particle what is known of the sketch's volumes; say how well that can be done."""
    import pandas as pd

    from drgn_ray.analysis.prediction import fit_predictor, nearest_state, standardised

    z = standardised(latents.z)
    predictors = [fit_predictor(z[rows], each) for each in known]
    for predictor in predictors:
        logger.info("%s", predictor)
        if float(predictor.overall.max()) < POOR:
            logger.warning("WARNING: latents tell little of these; what particles get is more of a guess")
    predicted = [predictor.predict(z) for predictor in predictors]
    states = nearest_state(predicted[0].to_numpy(), found.pca.scores, found.states)
    of_sketch = pd.DataFrame({"source_row": latents.source_row[rows], "state": found.states}).join(known)
    of_particles = pd.DataFrame({"source_row": latents.source_row, "state": states}).join(predicted)
    return _Tables(of_sketch, of_particles, pd.concat([predictor.table() for predictor in predictors]))


def _write_volumes(found: Landscape, volumes: Float32[np.ndarray, "n d d d"], apix: float, folder: Path) -> None:
    """Write mask, mean, volumes along the components, and the mean volumes of the states."""
    from drgn_ray.analysis.chimerax import write_gallery, write_series
    from drgn_ray.analysis.volumes import volume_name, write_mrc

    write_mrc(folder / "mask.mrc", found.inside, apix, "drgn_ray landscape, voxels that were compared")
    write_mrc(folder / "mean.mrc", found.overlaid.mean, apix, "drgn_ray landscape, mean of the sketch")
    for component in range(len(found.pca.axes)):
        name = f"volume_pc{component + 1}"
        (folder / name).mkdir()
        for number, volume in enumerate(found.traversal(component)):
            write_mrc(folder / name / volume_name(number), volume, apix, f"drgn_ray landscape, along {name}")
        write_series(folder / name, folder / f"movie_{name}.cxc")
    (folder / "states").mkdir()
    for state in range(found.states.max() + 1):
        mean = volumes.mean(axis=0, where=(found.states == state)[:, None, None, None])
        write_mrc(folder / "states" / volume_name(state), mean, apix, f"drgn_ray landscape, mean of state {state}")
    write_gallery(folder / "states", folder / "view_states.cxc", "landscape.png")


def _write_tables(found: Landscape, tables: _Tables, folder: Path) -> None:
    """Write tables of the sketch, the particles, the components and the prediction; and the figures."""
    import pandas as pd

    from drgn_ray.analysis.figures import landscape_figure, regions_figure

    of_particles, scores = tables.of_particles, tables.of_sketch.filter(regex="^volume_pc")
    tables.of_sketch.to_csv(folder / "sketch.csv", index=False, float_format="%.6g")
    of_particles.to_parquet(folder / PARTICLES)
    labels = pd.DataFrame({"source_row": of_particles["source_row"], "label": of_particles["state"]})
    labels.to_csv(folder / "states" / "labels.csv", index=False)
    tables.prediction.to_csv(folder / "prediction.csv", float_format="%.4g")
    share = found.pca.variance_share
    variance = pd.DataFrame({"component": scores.columns, "variance": scores.var().to_numpy(), "share": share})
    variance.to_csv(folder / "variance.csv", index=False, float_format="%.6g")
    predicted = of_particles[scores.columns].to_numpy()
    r2 = tables.prediction.loc[scores.columns, "r2"].to_numpy()
    landscape_figure(predicted, scores.to_numpy(), found.states, share, r2).savefig(folder / "landscape.png", dpi=150)
    occupancies = of_particles.filter(regex="^occupancy_")
    if len(occupancies.columns):
        named = {str(name).removeprefix("occupancy_"): values.to_numpy() for name, values in occupancies.items()}
        regions_figure(named).savefig(folder / "regions.png", dpi=150)


def _check_numbers(arguments: Arguments, num_particles: int, info: StoreInfo) -> None:
    from drgn_ray.analysis.landscape import LEAST_SKETCH
    from drgn_ray.distributed.tasks import memory_here
    from drgn_ray.errors import ConfigError, ResourceError

    size, side = arguments.sketch_size, arguments.box_size
    if size is not None and not LEAST_SKETCH <= size <= num_particles:
        raise ConfigError(
            f"--sketch-size {size}",
            f"there are {num_particles:,} particles",
            f"pass a number from {LEAST_SKETCH} up to that",
        )
    if side is not None and (side % 2 or not LEAST_SIDE <= side <= info.box_size):
        raise ConfigError(
            f"-D {side}",
            f"the run's volumes have {info.box_size} px",
            f"pass an even number from {LEAST_SIDE} up to that",
        )
    for flag, value, least in (
        ("--pc", arguments.pc, 1),
        ("--states", arguments.states, 1),
        ("--workers", arguments.num_workers, 0),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{flag} {value}", "it is a count", f"pass {least} or more")
    size, side = size or min(USUAL_SKETCH, num_particles), side or min(USUAL_SIDE, info.box_size)
    needed = 2 * 4 * size * side**3  # all volumes, and those voxels of them that are compared
    if needed > memory_here():
        raise ResourceError(
            f"a sketch of {size} volumes of {side} px",
            f"it takes {needed / 1e9:.1f} GB of memory, and {memory_here() / 1e9:.1f} are here",
            "pass a smaller -D or --sketch-size",
        )


def _read_masks(arguments: Arguments, info: StoreInfo) -> _Masks:
    from pathlib import Path

    from drgn_ray.errors import ConfigError
    from drgn_ray.physics.volume import Finish

    finish = Finish(box_size=arguments.box_size or min(USUAL_SIDE, info.box_size))
    files = [] if arguments.regions is None else arguments.regions.split(",")
    names = [Path(file).stem for file in files]
    if len(set(names)) < len(names):
        raise ConfigError(f"--regions {arguments.regions}", "two are called alike", "give their files different names")
    compared = None if arguments.mask is None else _read_mask(arguments.mask, info, finish)
    return _Masks(
        finish, compared, {name: _read_mask(file, info, finish) for name, file in zip(names, files, strict=True)}
    )


def _read_mask(name: str, info: StoreInfo, finish: Finish) -> Bool[np.ndarray, "d d d"]:
    """Read a mask on the grid of the sketch, or of the run's images."""
    from drgn_ray.analysis.consensus import check_same_grid
    from drgn_ray.analysis.volumes import read_mrc
    from drgn_ray.errors import ConfigError

    mask = read_mrc(name)
    low, high = float(mask.data.min()), float(mask.data.max())
    if low < -0.1 or high > 1.1:
        raise ConfigError(
            name,
            f"it holds {low:.4g} to {high:.4g}, and a mask is between 0 and 1",
            f"make one with `drgn-ray volume {name} -o mask.mrc --make-mask`",
        )
    if mask.data.shape == (info.box_size,) * 3:
        check_same_grid(name, mask, "the run", info.box_size, info.apix)
        inside = finish(mask.data, info.apix) >= 0.5
    else:
        side, apix = finish.side(info.box_size), finish.apix(info.box_size, info.apix)
        check_same_grid(name, mask, f"the sketch (-D {side})", side, apix)
        inside = mask.data >= 0.5
    if not inside.any():
        raise ConfigError(name, "none of its voxels reaches 0.5", "pass another mask")
    return inside


def _output(place: str, *, overwrite: bool) -> Path:
    """Where results go; refused if something is there already."""
    from pathlib import Path

    from drgn_ray.errors import ConfigError
    from jobs.frame import check_folder, output_path

    check_folder(place)
    there = sorted(Path(place).iterdir()) if Path(place).is_dir() else []
    if there and overwrite and not Path(place, PARTICLES).is_file():
        raise ConfigError(f"-o {place}", "what is here is no landscape", "pass another folder")
    return output_path(place, there, overwrite=overwrite)


def _put_in_place(made: Path, output: Path) -> None:
    """Put a landscape where another may be, of which only what is not ours stays; there is never a part of one."""
    if output.exists():
        old = made.with_name("old")
        output.rename(old)
        for path in old.iterdir():
            if not any(path.match(pattern) for pattern in OURS):
                path.rename(made / path.name)
    made.rename(output)


if __name__ == "__main__":
    exit_with(main)
