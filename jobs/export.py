"""Particles, or a selection of them, back to the formats of the field; a run as a cryoDRGN directory.

drgn-ray export runs/a --clusters 3,7 -o selected.star

drgn-ray export particles.zarr --indices rows.txt -o selected.cs selected.mrcs

drgn-ray export particles.zarr --sym C3 -o expanded.star

drgn-ray export runs/a --cryodrgn cryodrgn_a/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from jobs.cli import exit_with, parse, run_command

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int

    from drgn_ray.particles.store import ParticleStore
    from drgn_ray.training.run_directory import RunDirectory


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``export``."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|STORE")]
    """A run directory, or a particle store."""
    output: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-o"])] = ()
    """Files to write: .star, .cs (original images, every original column), .mrcs (images of the store), or .txt, .npy,
    .pkl (0-based rows of the source table)."""
    cryodrgn: str | None = None
    """Folder to write for cryoDRGN: of a run all that its tools open, of a store particles.mrcs, poses.pkl, ctf.pkl."""
    indices: str | None = None
    """Keep these rows: .pkl, .npy or text of 0-based rows of the source table."""
    clusters: str | None = None
    """Keep these k-means clusters of the run, as 3,7."""
    ksample: int | None = None
    """Which k-means of the newest analysis, where it has several."""
    labels: str | None = None
    """Another labels.csv (columns source_row, label) for --clusters."""
    latent_box: str | None = None
    """Keep the particles in a box of the run's latent space, as z0:-1:0.5,z2::3."""
    lasso: str | None = None
    """Keep the particles in a polygon of the run's latent space, as the explorer writes it."""
    others: bool = False
    """Keep the particles that are not selected instead."""
    sym: str = "C1"
    """Symmetry expansion: write every particle once for each rotation of this point group, as RELION names it; of .star
    and .cs."""
    overwrite: bool = False
    """Replace files of -o that are there (a folder of --cryodrgn must be a new one)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "export", __doc__)
    return run_command(lambda: _export(arguments))


def _export(arguments: Arguments) -> None:
    from pathlib import Path

    from conversions.cryodrgn_run import export_run
    from conversions.cryodrgn_write import free_folder, made_whole, write_inputs
    from conversions.export import export
    from drgn_ray.errors import ConfigError
    from drgn_ray.particles.store import ParticleStore
    from drgn_ray.physics.symmetry import point_group
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.frame import job_frame

    if not arguments.output and arguments.cryodrgn is None:
        raise ConfigError("export", "it is not said what to write", "pass -o FILE or --cryodrgn FOLDER")
    if arguments.clusters is None and not (arguments.labels is None and arguments.ksample is None):
        raise ConfigError("--labels, --ksample", "it is not said which clusters", "pass --clusters too, as 3,7")
    for name in arguments.output:
        if Path(name).exists() and not arguments.overwrite:
            raise ConfigError(name, "something is already here", "pass another name, or --overwrite to replace it")
    run = RunDirectory(arguments.source) if (Path(arguments.source) / "config.yaml").is_file() else None
    store = ParticleStore(arguments.source if run is None else run.config().particles)
    rows = _selected_rows(arguments, run, store)
    if arguments.cryodrgn is not None:
        free_folder(arguments.cryodrgn)
        if run is not None and len(rows) < len(store):
            raise ConfigError("--cryodrgn", "a run is exported with all its particles", "leave the selection out")
    num_copies = len(point_group(arguments.sym))
    if arguments.cryodrgn is not None and num_copies > 1:
        raise ConfigError("--cryodrgn --sym", "expanded particles are written as tables", "pass -o FILE.star")
    with job_frame(arguments.output[0] if arguments.output else str(arguments.cryodrgn)) as frame:
        export(store, rows, arguments.output, arguments.sym)
        if arguments.cryodrgn is not None and run is not None:
            export_run(run, Path(arguments.cryodrgn))
        elif arguments.cryodrgn is not None:
            with made_whole(Path(arguments.cryodrgn).absolute()) as partial:
                write_inputs(partial, store, rows)
        copies = f", each {num_copies} times" if num_copies > 1 else ""
        frame.result(f"{len(rows):,} of {len(store):,} particles{copies}")
        if any(name.endswith((".star", ".cs")) for name in arguments.output):
            frame.result("image files are named as in the source table: put this one beside it, or pass its --datadir")


def _selected_rows(arguments: Arguments, run: RunDirectory | None, store: ParticleStore) -> Int[np.ndarray, " n"]:
    """Find the rows of the store that every way of choosing keeps, in the order of the source."""
    from pathlib import Path

    import numpy as np

    from conversions.cryodrgn import read_selection_of
    from drgn_ray.analysis.selection import in_box, in_clusters, in_lasso, newest_labels
    from drgn_ray.errors import ConfigError
    from drgn_ray.training.embed import latents_of

    source_row = store.columns["source_row"]
    keep = np.ones(len(store), bool)
    if arguments.indices is not None:
        keep &= read_selection_of(arguments.indices, store)
    if arguments.clusters is not None and arguments.labels is not None:
        keep &= np.isin(source_row, in_clusters(Path(arguments.labels), arguments.clusters))
    elif arguments.clusters is not None:
        labels = newest_labels(_needed(run, "--clusters"), arguments.ksample)
        keep &= np.isin(source_row, in_clusters(labels, arguments.clusters))
    if arguments.latent_box is not None:
        latents = latents_of(_needed(run, "--latent-box"))
        keep &= np.isin(source_row, in_box(latents, arguments.latent_box))
    if arguments.lasso is not None:
        keep &= np.isin(source_row, in_lasso(_needed(run, "--lasso"), arguments.lasso))
    rows = np.flatnonzero(keep != arguments.others)
    if not len(rows):
        raise ConfigError("export", "the selection keeps no particle", "widen it")
    return rows[np.argsort(source_row[rows])]


def _needed(run: RunDirectory | None, flag: str) -> RunDirectory:
    from drgn_ray.errors import ConfigError

    if run is None:
        raise ConfigError(flag, "a store alone has no latents", "pass the run directory instead of the store")
    return run


if __name__ == "__main__":
    exit_with(main)
