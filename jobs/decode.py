"""Volumes at chosen latents: vol_000.mrc, vol_001.mrc, ... and z_values.txt.

Which latents: those of --particles, one -z, those of a --z-file, or those along a way: --path goes from particle to
particle, along the particles that lie between them or in a straight line (--through line), and --pc along a principal
component. A way also gets path.csv and path.png (where it goes, and how many particles there are) and path.mp4.

drgn-ray decode runs/a --particles 0,17,1204 -o volumes/

drgn-ray decode runs/a -z 0.1 0.2 -o volumes/

drgn-ray decode runs/a --path 2020,3030,4040 -o movie/

drgn-ray decode runs/a --pc 1 -n 20 --low-pass 8 -o movie.zip
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jobs.cli import exit_with, parse, run_command

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from jaxtyping import Float

    from drgn_ray.particles.store import StoreInfo
    from drgn_ray.physics.volume import Finish
    from drgn_ray.training.embed import Latents
    from drgn_ray.training.run_directory import RunDirectory

WAYS = "--particles", "-z", "--z-file", "--path", "--pc"
OURS = "vol_*.mrc", "z_values.txt", "path.csv", "path.png", "path.mp4"


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``decode``."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Folder for the volumes, or a file that ends in .zip."""
    particles: str | None = None
    """Comma-separated 0-based rows of the source table, whose latents are decoded."""
    z: Annotated[tuple[float, ...] | None, tyro.conf.arg(aliases=["-z"])] = None
    """One latent."""
    z_file: str | None = None
    """Text file with one latent a line."""
    path: str | None = None
    """Comma-separated 0-based rows of the source table, to go through in this order."""
    through: Literal["particles", "line"] = "particles"
    """How --path goes: by the shortest way in steps between neighbouring particles, or straight."""
    pc: int | None = None
    """Principal component to go along, from 1; between the 5th and the 95th percentile of the particles."""
    num_points: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Volumes along --pc (None: 10), from each particle of a straight --path to the next (None: 6), or of a --path
    along particles, evenly spaced (None: all particles of it)."""
    max_neighbors: int = 10
    """Of a particle, itself among them, in the graph that --path goes along."""
    avg_neighbors: float = 5.0
    """Mean number of neighbours in the graph: the longest steps are left out."""
    crop: int | None = None
    """Cut out, or pad with zeros to, a cube of this many voxels about the origin."""
    box_size: Annotated[int | None, tyro.conf.arg(aliases=["-D"])] = None
    """Resample to this even number of voxels of the same extent."""
    flip_hand: bool = False
    """Mirror along z about voxel D/2."""
    low_pass: float | None = None
    """Remove what is finer than this, Å, with a soft edge."""
    mask: str | None = None
    """Map to multiply by, on the grid that --crop and -D lead to."""
    num_workers: Annotated[int | None, tyro.conf.arg(aliases=["--workers"])] = None
    """Tasks at a time; None: as many as a cluster that runs has CPUs, or else 0: in this process, without Ray."""
    overwrite: bool = False
    """Replace the volumes that are there already."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "decode", __doc__)
    return run_command(lambda: _decode(arguments))


def _decode(arguments: Arguments) -> None:
    import numpy as np

    from drgn_ray.errors import ConfigError
    from drgn_ray.particles.store import ParticleStore
    from drgn_ray.training.embed import trained_zdim
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.frame import job_frame

    run = RunDirectory(arguments.run)
    config = run.config()
    store = ParticleStore(config.particles)
    finish = _finish(arguments, store.info)
    chosen = dict(
        zip(WAYS, (arguments.particles, arguments.z, arguments.z_file, arguments.path, arguments.pc), strict=True)
    )
    given = [flag for flag, value in chosen.items() if value is not None]
    zdim = trained_zdim(run, config, store)
    if not zdim and given:
        raise ConfigError(", ".join(given), f"{run.path} has one volume and no latents", "leave them out")
    if zdim and len(given) != 1:
        found = "it is not said which volumes" if not given else "each says which volumes"
        raise ConfigError(", ".join(given or WAYS), found, "pass one of them")
    if arguments.num_workers is not None and arguments.num_workers < 0:
        raise ConfigError(f"--workers {arguments.num_workers}", "it is a count", "pass 0 or more")
    z = _latents(arguments, run, zdim) if zdim else np.zeros((1, 0))
    if not np.isfinite(z).all():
        raise ConfigError(given[0], "a latent holds values that are no numbers", "pass numbers")
    output = _output(arguments)
    with job_frame(arguments.output) as frame:
        is_way = arguments.path is not None or arguments.pc is not None
        _write(arguments, run, z, finish, output, is_way=is_way)
        size, apix = finish.side(store.info.box_size), finish.apix(store.info.box_size, store.info.apix)
        frame.result(f"{len(z)} volume{'s' * (len(z) > 1)} of {size} px, {apix:.4g} Å/px")
        if is_way:
            frame.result("where the way goes: path.csv, path.png; a movie: path.mp4")


def _output(arguments: Arguments) -> Path:
    """Where volumes go; refused if some are there already."""
    import os
    from pathlib import Path

    from drgn_ray.errors import ConfigError
    from jobs.frame import check_folder, output_path

    name, output = f"-o {arguments.output}", Path(os.path.abspath(arguments.output))
    is_zip = output.suffix == ".zip"
    check_folder(os.path.dirname(arguments.output) or "." if is_zip else arguments.output)
    if is_zip and output.is_dir():
        raise ConfigError(name, "this is a folder", "pass the name of a file, or a folder that does not end in .zip")
    there = ([output] if output.exists() else []) if is_zip else _ours_in(output)
    return output_path(arguments.output, there, overwrite=arguments.overwrite)


def _ours_in(folder: Path) -> list[Path]:
    return [file for pattern in OURS for file in sorted(folder.glob(pattern)) if file.is_file()]


def _write(
    arguments: Arguments, run: RunDirectory, z: Float[np.ndarray, "n Z"], finish: Finish, output: Path, *, is_way: bool
) -> None:
    """Write the volumes, and put them in place when all of them are there."""
    import shutil
    import tempfile
    from pathlib import Path

    from drgn_ray.analysis.surface import framed, write_movie
    from drgn_ray.distributed.decode import decode_folders

    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as place:
        folder = Path(place, "volumes")
        folder.mkdir()
        if is_way:
            _describe_way(run, z, folder)
        decode_folders(run, {folder: z}, finish, arguments.num_workers)
        if is_way:
            (along,) = framed([folder])
            write_movie(along, folder / "path.mp4")
        if output.suffix == ".zip":
            Path(shutil.make_archive(str(Path(place, "made")), "zip", folder)).replace(output)
            return
        output.mkdir(exist_ok=True)
        new = {file.name for file in folder.iterdir()}
        for file in folder.iterdir():
            file.replace(output / file.name)
        for stale in _ours_in(output):
            if stale.name not in new:
                stale.unlink()


def _describe_way(run: RunDirectory, z: Float[np.ndarray, "n Z"], folder: Path) -> None:
    from drgn_ray.analysis.figures import path_figure
    from drgn_ray.analysis.latent_space import principal_components
    from drgn_ray.analysis.paths import described
    from drgn_ray.training.embed import latents_of

    latents = latents_of(run)
    table, pca = described(z, latents.z, latents.source_row), principal_components(latents.z)
    table.to_csv(folder / "path.csv", index=False)
    distance, density = table["distance"].to_numpy(), table["log_density"].to_numpy()
    path_figure(pca, pca.projected(z), distance, density).savefig(folder / "path.png", dpi=150)


def _finish(arguments: Arguments, info: StoreInfo) -> Finish:
    import math
    from dataclasses import replace

    from drgn_ray.analysis.volumes import read_mrc
    from drgn_ray.errors import ConfigError
    from drgn_ray.physics.volume import Finish

    for flag, value in (("--crop", arguments.crop), ("-D", arguments.box_size)):
        if value is not None and (value < 2 or value % 2):
            raise ConfigError(f"{flag} {value}", "it is no even number above 0", "pass one")
    if arguments.low_pass is not None and not 0 < arguments.low_pass < math.inf:
        raise ConfigError(f"--low-pass {arguments.low_pass:g}", "it is no number above 0", "pass a resolution in Å")
    finish = Finish(arguments.crop, arguments.box_size, arguments.flip_hand, arguments.low_pass)
    if arguments.mask is None:
        return finish
    mask, side = read_mrc(arguments.mask).data, finish.side(info.box_size)
    if mask.shape != (side,) * 3:
        raise ConfigError(
            arguments.mask, f"it has {' x '.join(map(str, mask.shape))} px, and the volumes {side}", "pass another mask"
        )
    return replace(finish, mask=mask)


def _latents(arguments: Arguments, run: RunDirectory, zdim: int) -> Float[np.ndarray, "n Z"]:
    """Find the latents asked for."""
    import numpy as np

    from drgn_ray.analysis.latent_space import principal_components
    from drgn_ray.analysis.paths import along_component
    from drgn_ray.analysis.selection import row_numbers
    from drgn_ray.errors import ConfigError
    from drgn_ray.training.embed import latents_of

    is_way = arguments.path is not None or arguments.pc is not None
    if arguments.num_points is not None and not is_way:
        raise ConfigError(f"-n {arguments.num_points}", "it is for --path and --pc", "leave it out")
    if arguments.through == "line" and arguments.path is None:
        raise ConfigError("--through line", "it is for --path", "leave it out")
    if arguments.num_points is not None and arguments.num_points < 2:
        raise ConfigError(f"-n {arguments.num_points}", "a way has two ends", "pass 2 or more")
    if arguments.particles is not None:
        return latents_of(run).of(row_numbers(arguments.particles, "--particles"))
    if arguments.path is not None:
        return _through(arguments, latents_of(run), row_numbers(arguments.path, "--path"))
    if arguments.pc is not None:
        z = latents_of(run).z
        most = min(z.shape)  # fewer particles than dimensions have no more components
        if not 1 <= arguments.pc <= most:
            raise ConfigError(f"--pc {arguments.pc}", f"z has {most} components", f"pass a number from 1 to {most}")
        return along_component(z, principal_components(z), arguments.pc - 1, arguments.num_points or 10)
    if arguments.z is not None:
        name, z = "-z", np.array([arguments.z])
    else:
        name = str(arguments.z_file)
        z = _read_latents(name)
    if z.shape[1] != zdim:
        raise ConfigError(
            name, f"its latents have {z.shape[1]} numbers, the run's {zdim}", f"pass {zdim} numbers a latent"
        )
    return z


def _read_latents(name: str) -> Float[np.ndarray, "n Z"]:
    from pathlib import Path

    import numpy as np

    from drgn_ray.errors import ConfigError

    if not Path(name).is_file():
        raise ConfigError(name, "there is no such file", "check the path of --z-file")
    try:
        return np.loadtxt(name, ndmin=2)
    except (OSError, ValueError) as error:
        raise ConfigError(name, f"cannot be read as numbers ({error})", "pass one latent a line") from error


def _through(arguments: Arguments, latents: Latents, source_rows: np.ndarray) -> Float[np.ndarray, "n Z"]:
    """Latents of a way from particle to particle."""
    import logging

    from drgn_ray.analysis.paths import MOST_IN_GRAPH, line, neighbor_graph, shortest_path, spaced, thinned
    from drgn_ray.errors import ConfigError

    if len(source_rows) < 2:
        raise ConfigError(f"--path {arguments.path}", "a way has two ends", "pass two particles or more")
    if (source_rows[1:] == source_rows[:-1]).any():
        raise ConfigError(f"--path {arguments.path}", "a particle follows itself", "leave it out once")
    if arguments.through == "line":
        return line(latents.of(source_rows), arguments.num_points or 6)
    if arguments.max_neighbors < 2 or not 1 < arguments.avg_neighbors <= arguments.max_neighbors:
        raise ConfigError(
            f"--max-neighbors {arguments.max_neighbors}, --avg-neighbors {arguments.avg_neighbors:g}",
            "a particle is its own first neighbour, and the mean is at most the maximum",
            "pass, say, --max-neighbors 10 --avg-neighbors 5",
        )
    anchors = latents.rows_of(source_rows)
    kept = thinned(latents.z, anchors.tolist(), MOST_IN_GRAPH)
    if len(kept) < len(latents.z):
        logging.getLogger("jobs.decode").info(
            "the way goes along %s of %s particles, drawn at random", f"{len(kept):,}", f"{len(latents.z):,}"
        )
    graph = neighbor_graph(latents.z[kept], arguments.max_neighbors, arguments.avg_neighbors)
    way = latents.z[kept][shortest_path(graph, kept.searchsorted(anchors).tolist())]
    return way if arguments.num_points is None else spaced(way, arguments.num_points)


if __name__ == "__main__":
    exit_with(main)
