"""Consensus volume, half maps and FSC of a store, or of the particles that support states of a run; on Ray where large.

drgn-ray backproject particles.zarr -o consensus/

drgn-ray backproject runs/a --clusters all -o by_cluster/

drgn-ray backproject runs/a --particles 17,1204 -o near/       # the particles nearest to these in the latent space
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from jobs.cli import exit_with, parse, run_command

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from drgn_ray.analysis.states import State
    from drgn_ray.analysis.volumes import MrcVolume
    from drgn_ray.particles.store import ParticleStore
    from drgn_ray.training.run_directory import RunDirectory


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``backproject``."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORE|RUN")]
    """A particle store; or a run directory, with the particles of some of its states."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Folder for the maps, their FSC and pictures."""
    sym: str = "C1"
    """Point group with RELION's axes: Cn, Dn, T, O, I, I1, I2, I3, I4."""
    ref: str | None = None
    """Another map to correlate with, on the same grid."""
    indices: str | None = None
    """Only these rows: .pkl, .npy or text of 0-based rows of the source table."""
    clusters: str | None = None
    """Of a run: k-means clusters, as 3,7 or all; each gives a volume of its particles."""
    ksample: int | None = None
    """Which k-means of the newest analysis, where it has several."""
    particles: str | None = None
    """Of a run: rows of the source table, as 17,1204; each gives a volume of its neighbours in the latent space."""
    z: Annotated[tuple[float, ...] | None, tyro.conf.arg(aliases=["-z"])] = None
    """Of a run: one latent, which gives a volume of its neighbours."""
    neighbors: int | None = None
    """Nearest particles that count with --particles and -z, less the farther; None: a twentieth, at least 200."""
    dose_per_tilt: float | None = None
    """e/Å² a tilt, for tilt series whose table has no doses or wrong ones; None: the doses of the store."""
    angle_per_tilt: float = 3.0
    """Degrees between tilts of a dose-symmetric scheme, with --dose-per-tilt."""
    ntilts: int | None = None
    """Of tilt series: only this many tilts a particle, the least damped; None: all."""
    like_cryodrgn: bool = False
    """As cryodrgn backproject_voxel does it (kernel, window, halves, shells, names), to compare with it."""
    num_workers: Annotated[int | None, tyro.conf.arg(aliases=["--workers"])] = None
    """Tasks at a time; None: as many as there are CPUs, or this process where images are few; 0: this process."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "backproject", __doc__)
    return run_command(lambda: _backproject(arguments))


def _backproject(arguments: Arguments) -> None:
    from pathlib import Path

    import numpy as np

    from conversions.cryodrgn import read_selection_of
    from drgn_ray.analysis.consensus import check_same_grid
    from drgn_ray.analysis.volumes import read_mrc
    from drgn_ray.distributed.backproject import back_project
    from drgn_ray.errors import ConfigError
    from drgn_ray.particles.backproject import Assignment, Method, half_maps
    from drgn_ray.particles.store import ParticleStore
    from drgn_ray.physics.symmetry import point_group
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.frame import job_frame
    from jobs.pipeline import open_tracked

    if "://" in arguments.output:
        raise ConfigError(f"-o {arguments.output}", "maps are written to a folder, not to a URL", "pass a path")
    point_group(arguments.sym)  # is it one?
    run = RunDirectory(arguments.source) if (Path(arguments.source) / "config.yaml").is_file() else None
    store = ParticleStore(arguments.source if run is None else run.config().particles)
    method = Method(arguments.sym, arguments.like_cryodrgn, arguments.dose_per_tilt, arguments.angle_per_tilt)
    ref = None if arguments.ref is None else read_mrc(arguments.ref)
    if ref is not None:
        check_same_grid(str(arguments.ref), ref, store.path, store.info.box_size, store.info.apix)
    states = _states(arguments, run, store)
    weight = np.stack([state.weight for state in states])
    used = np.ones(len(store), bool)
    if arguments.ntilts is not None:
        used = store.columns["tilt_index"] < arguments.ntilts
    if arguments.indices is not None:
        used &= read_selection_of(arguments.indices, store)
    weight[:, ~used] = 0
    assignment = Assignment(weight, half_maps(store.columns, used=used, like_cryodrgn=arguments.like_cryodrgn))
    for state, row in zip(states, weight, strict=True):
        for half in (0, 1):
            if not (row[assignment.half == half] > 0).any():
                raise ConfigError(
                    state.name or store.path, f"its half map {half + 1} would have no image", "choose more particles"
                )
    with job_frame(arguments.output) as frame:
        passes = back_project(store, assignment, method, arguments.num_workers)
        write = _writer(arguments, run, store, ref)
        for state, row, sums in zip(states, weight, (sums for several in passes for sums in several), strict=True):
            frame.result(*write(state, row, sums))
        if run is not None:
            folder = Path(arguments.output)
            open_tracked(run, run.config(), frame).artifacts(folder, f"backproject/{folder.absolute().name}")


def _states(arguments: Arguments, run: RunDirectory | None, store: ParticleStore) -> list[State]:
    import numpy as np

    from drgn_ray.analysis.selection import row_numbers
    from drgn_ray.analysis.states import all_particles, state_near_latent, states_near_particles, states_of_clusters
    from drgn_ray.errors import ConfigError

    chosen = {
        "--clusters": arguments.clusters,
        "--particles": arguments.particles,
        "-z": arguments.z,
    }
    given = [name for name, value in chosen.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(" and ".join(given), "they say different things", "pass one of them")
    if given and run is None:
        raise ConfigError(given[0], "a store alone has no latents", "pass the run directory instead of the store")
    if run is None or not given:
        return [all_particles(len(store))]
    source_row = store.columns["source_row"]
    if arguments.clusters is not None:
        return states_of_clusters(run, source_row, arguments.clusters, arguments.ksample)
    if arguments.particles is not None:
        rows = row_numbers(arguments.particles)
        return states_near_particles(run, source_row, rows, arguments.neighbors)
    return [state_near_latent(run, source_row, np.array(arguments.z), arguments.neighbors)]


def _writer(
    arguments: Arguments, run: RunDirectory | None, store: ParticleStore, ref: MrcVolume | None
) -> Callable[[State, Float[np.ndarray, " N"], Float[np.ndarray, "2 S S H 3"]], list[str]]:
    """Make the function that writes a state's maps and what they are compared with, and says what came out."""
    from pathlib import Path

    import torch

    from drgn_ray.analysis import consensus
    from drgn_ray.analysis.volumes import decode, write_mrc
    from drgn_ray.training.embed import trained_model

    info, compatible = store.info, arguments.like_cryodrgn
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = None

    def write(state: State, weight: Float[np.ndarray, " N"], sums: Float[np.ndarray, "2 S S H 3"]) -> list[str]:
        nonlocal model
        folder = Path(arguments.output) / state.name
        maps = consensus.make_maps(sums, like_cryodrgn=compatible)
        halves = consensus.correlate_halves(maps, info.apix, "cryodrgn" if compatible else "relion")
        consensus.write_maps(folder, maps, halves, info.apix, like_cryodrgn=compatible)
        lines = consensus.describe(maps, halves, info, num_images=int((weight > 0).sum()))
        if ref is not None:
            against = consensus.correlate(maps.full, ref.data, info.apix)
            consensus.write_correlation(folder, against, "fsc_ref")
            lines.append(f"against {arguments.ref}: {consensus.resolutions(against)}")
        if state.z is not None and run is not None:
            model = trained_model(run, run.config(), store, device) if model is None else model
            decoded = decode(model, state.z, info)
            write_mrc(folder / "decoded.mrc", decoded, info.apix, "drgn_ray decoded state")
            against = consensus.correlate(maps.full, decoded, info.apix)
            consensus.write_correlation(folder, against, "fsc_decoded")
            lines.append(f"against the decoded volume: {consensus.resolutions(against)}")
        head = f"{folder}/backproject.mrc"
        return [head, *(f"  {line}" for line in lines)]

    return write


if __name__ == "__main__":
    exit_with(main)
