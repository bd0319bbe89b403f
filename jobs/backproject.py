"""Consensus volume, half maps and FSC of a store, or of the particles that support states of a run; on Ray where large.

drgn-ray backproject particles.zarr -o consensus/

drgn-ray backproject runs/a --clusters all -o by_cluster/

drgn-ray backproject runs/a --particles 17,1204 -o near/       # the particles nearest to these in the latent space
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jobs.cli import exit_with, parse, run_command

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from drgn_ray.analysis.consensus import Correlation
    from drgn_ray.analysis.states import State
    from drgn_ray.analysis.volumes import MrcVolume
    from drgn_ray.models.model import Model
    from drgn_ray.particles.store import ParticleStore
    from drgn_ray.training.run_directory import RunDirectory

    Sums = Float[np.ndarray, "2 S S H 3"]


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
    overwrite: bool = False
    """Replace maps that are in the folder already."""
    num_workers: Annotated[int | None, tyro.conf.arg(aliases=["--workers"])] = None
    """Tasks at a time; None: as many as there are CPUs, or this process where images are few; 0: this process."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "backproject", __doc__)
    return run_command(lambda: _backproject(arguments))


def _backproject(arguments: Arguments) -> None:

    import numpy as np
    import pandas as pd

    from conversions.cryodrgn import read_selection_of
    from drgn_ray.analysis.consensus import check_same_grid
    from drgn_ray.analysis.volumes import read_mrc
    from drgn_ray.distributed.backproject import back_project
    from drgn_ray.errors import ConfigError
    from drgn_ray.particles.backproject import Assignment, Method, half_maps
    from drgn_ray.particles.store import ParticleStore
    from drgn_ray.physics.symmetry import point_group
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.frame import check_folder, job_frame

    check_folder(arguments.output)
    _check_flags(arguments)
    has_symmetry = len(point_group(arguments.sym)) > 1
    run = RunDirectory(arguments.source) if (Path(arguments.source) / "config.yaml").is_file() else None
    store = ParticleStore(arguments.source if run is None else run.config().particles)
    method = Method(arguments.sym, arguments.like_cryodrgn, arguments.dose_per_tilt, arguments.angle_per_tilt)
    ref = None if arguments.ref is None else read_mrc(arguments.ref)
    if ref is not None:
        check_same_grid(str(arguments.ref), ref, store.path, store.info.box_size, store.info.apix)
    states = _states(arguments, run, store)
    for state in states:
        there = Path(arguments.output) / state.name / "backproject.mrc"
        if there.exists() and not arguments.overwrite:
            raise ConfigError(str(there), "it is already here", "pass another -o, or --overwrite to replace it")
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
        writer = _Writer(arguments, run, store, ref)
        all_sums = back_project(store, assignment, method, arguments.num_workers)
        for state, row, sums in zip(states, weight, all_sums, strict=True):
            free = None
            if has_symmetry:  # the same without, to see whether it is there
                alone = Assignment(row[None], assignment.half)
                (free,) = back_project(store, alone, replace(method, sym="C1"), arguments.num_workers)
            frame.result(*writer.write(state, int((row > 0).sum()), sums, free))
        if states[0].name:
            table = Path(arguments.output) / "states.csv"
            pd.DataFrame(writer.table).to_csv(table, index=False, float_format="%.4g")
            writer.written.append(table)
            frame.result(f"table   {table}")
        if run is not None:
            from jobs.pipeline import open_tracked  # MLflow takes seconds to import

            tracked = open_tracked(run, run.config(), frame)
            top = Path(arguments.output).absolute()
            for path in writer.written:
                tracked.artifacts(path, f"backproject/{path.absolute().parent.relative_to(top.parent)}")


def _check_flags(arguments: Arguments) -> None:
    """Refuse numbers out of range, and flags that want others."""
    import math

    from drgn_ray.errors import ConfigError

    positive = {
        "--dose-per-tilt": arguments.dose_per_tilt,
        "--angle-per-tilt": arguments.angle_per_tilt,
        "--ntilts": arguments.ntilts,
    }
    for flag, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{flag} {value:g}", "it is not above 0", "pass a positive number")
    if arguments.z is not None and not all(map(math.isfinite, arguments.z)):
        raise ConfigError("-z", "it holds something that is no number", "pass finite numbers")
    if arguments.ksample is not None and arguments.clusters is None:
        raise ConfigError("--ksample", "it is not said which clusters", "add --clusters, as 3,7 or all")
    if arguments.neighbors is not None and arguments.particles is None and arguments.z is None:
        raise ConfigError("--neighbors", "it is not said whose", "add --particles or -z")
    if arguments.angle_per_tilt != Arguments.angle_per_tilt and arguments.dose_per_tilt is None:
        raise ConfigError("--angle-per-tilt", "it goes with --dose-per-tilt", "add that, or leave this out")


def _states(arguments: Arguments, run: RunDirectory | None, store: ParticleStore) -> list[State]:
    import numpy as np

    from drgn_ray.analysis.selection import row_numbers
    from drgn_ray.analysis.states import all_particles, state_near_latent, states_near_particles, states_of_clusters
    from drgn_ray.errors import ConfigError
    from drgn_ray.training.embed import latents_of, trained_zdim

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
    if given and run is not None and not trained_zdim(run, run.config(), store):
        raise ConfigError(given[0], f"{run.path} has one volume and no latents", "pass another run")
    if run is None or not given:
        return [all_particles(len(store))]
    source_row = store.columns["source_row"]
    if arguments.clusters is not None:
        return states_of_clusters(run, source_row, arguments.clusters, arguments.ksample)
    if arguments.particles is not None:
        rows = row_numbers(arguments.particles, "--particles")
        return states_near_particles(latents_of(run), source_row, rows, arguments.neighbors)
    return [state_near_latent(latents_of(run), source_row, np.array(arguments.z), arguments.neighbors)]


class _Writer:
    """Writes the maps of states and what they are compared with."""

    def __init__(
        self, arguments: Arguments, run: RunDirectory | None, store: ParticleStore, ref: MrcVolume | None
    ) -> None:
        from drgn_ray.particles.backproject import has_half_sets

        self.arguments, self.run, self.store, self.ref = arguments, run, store, ref
        self.table: list[dict[str, object]] = []
        self.written: list[Path] = []
        of_source = has_half_sets(store.columns) and not arguments.like_cryodrgn
        some = int((store.columns["half_set"] > 0).sum())
        lacking = f" ({some:,} of {len(store):,} images have a half set, which is not used)" if some else ""
        self._halves = "as in the source" if of_source else f"every other particle{lacking}"

    def write(self, state: State, num_images: int, sums: Sums, free: Sums | None) -> list[str]:
        """Write a state's folder; say what came out.

        Parameters
        ----------
        free
            The sums without symmetry, where `sums` are with one.
        """
        from drgn_ray.analysis import consensus
        from drgn_ray.physics.fsc import GOLD_STANDARD

        info, compatible = self.store.info, self.arguments.like_cryodrgn
        self.folder = Path(self.arguments.output) / state.name
        maps = consensus.make_maps(sums, like_cryodrgn=compatible)
        self.full = maps.full
        correlation = consensus.correlate_halves(maps, info.apix, "cryodrgn" if compatible else "relion")
        self.written += consensus.write_maps(self.folder, maps, correlation, info.apix, like_cryodrgn=compatible)
        self.lines = consensus.describe(maps, correlation, info, num_images, self._halves)
        self.row: dict[str, object] = {"state": state.name, "images": num_images}
        self._note("half_maps", correlation)
        if free is not None:
            alone = consensus.make_maps(free, like_cryodrgn=compatible).full
            self._compare("symmetry", f"against the map without {self.arguments.sym}", alone)
        if self.ref is not None:
            self._compare("ref", f"against {self.arguments.ref}", self.ref.data)
        if state.z is not None:
            # Beyond the half maps' resolution the two share no more than the noise of images that both were made of.
            limit = correlation.resolution(correlation.best_name, GOLD_STANDARD)
            said = f"against the decoded volume, up to the {limit:.2f} Å that the half maps reach"
            self._compare("decoded", said, self._decode(state), limit)
        self.table.append(self.row)
        return [f"{self.folder}/backproject.mrc", *(f"  {line}" for line in self.lines)]

    def _compare(self, name: str, said: str, other: Float[np.ndarray, "D D D"], limit: float | None = None) -> None:
        from drgn_ray.analysis import consensus

        against = consensus.correlate(self.full, other, self.store.info.apix)
        against = replace(against, finest=limit)
        self.written += consensus.write_correlation(self.folder, against, f"fsc_{name}")
        self.lines.append(f"{said}: {consensus.resolutions(against)}")
        self._note(name, against)

    def _note(self, name: str, correlation: Correlation) -> None:
        from drgn_ray.physics.fsc import GOLD_STANDARD, HALF

        for threshold in (HALF, GOLD_STANDARD):
            self.row[f"{name}_{threshold}"] = correlation.resolution(correlation.best_name, threshold)

    def _decode(self, state: State) -> Float[np.ndarray, "D D D"]:
        from drgn_ray.analysis.volumes import decode, write_mrc

        assert state.z is not None
        decoded = decode(self._model, state.z, self.store.info)
        self.written.append(self.folder / "decoded.mrc")
        write_mrc(self.written[-1], decoded, self.store.info.apix, "drgn_ray decoded state")
        return decoded

    @cached_property
    def _model(self) -> Model:
        import torch

        from drgn_ray.training.embed import trained_model

        assert self.run is not None
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return trained_model(self.run, self.run.config(), self.store, device)


if __name__ == "__main__":
    exit_with(main)
