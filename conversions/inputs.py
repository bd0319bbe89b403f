"""Find out what kind of input the user named, and make the particle table of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from conversions import cryodrgn
from conversions.cryosparc import CryosparcSource
from conversions.relion import RelionSource
from conversions.stacks import StackSource, read_headers
from conversions.table import (
    CTF_OF_SOURCE,
    ParticleTable,
    Source,
    check_box_sizes,
    check_images,
    check_values,
    find_samplings,
    no_ctf_columns,
    num_repeated_images,
)
from drgn_ray import units
from drgn_ray.errors import ConfigError, ParticleFileError

logger = logging.getLogger(__name__)
STACK_SUFFIXES = (".mrcs", ".mrc", ".txt")


def open_source(
    path: str,
    *,
    datadir: str | None = None,
    passthrough: Sequence[str] = (),
    abinit: bool = False,
    hetrefine: bool = False,
) -> Source:
    """Open a particle file by its suffix; its table is read, its images are not.

    Parameters
    ----------
    datadir
        Folder that image paths start from, or that holds the stacks; None: the table's folder or one above it.
    passthrough, abinit, hetrefine
        As in `CryosparcSource`.
    """
    if path.endswith(".cs"):
        return CryosparcSource(path, datadir, passthrough=passthrough, abinit=abinit, hetrefine=hetrefine)
    given = {"--passthrough": bool(passthrough), "--abinit": abinit, "--hetrefine": hetrefine}
    if any(given.values()):
        raise ConfigError(
            ", ".join(name for name, is_given in given.items() if is_given),
            f"it is of cryoSPARC's .cs files, and {path} is none",
            "leave it out",
        )
    if path.endswith(".star"):
        return RelionSource(path, datadir)
    if path.endswith(STACK_SUFFIXES):
        if datadir is not None and not path.endswith(".txt"):
            raise ConfigError("--datadir", f"it is of no use: {path} is the stack", "leave it out")
        return StackSource(path, datadir)
    raise ParticleFileError(
        path, "its name ends in none of .star, .cs, .mrcs, .mrc, .txt", "pass a STAR file, a .cs file or an MRC stack"
    )


def read_particles(
    path: str,
    *,
    poses: str | None = None,
    ctf: str | None = None,
    no_ctf: bool = False,
    apix: float | None = None,
    datadir: str | None = None,
    ind: str | None = None,
    first: int | None = None,
    passthrough: Sequence[str] = (),
    abinit: bool = False,
    hetrefine: bool = False,
) -> ParticleTable:
    """Read a particle file, with cryoDRGN's pickles where it has no poses or CTF, and keep the rows asked for.

    Parameters
    ----------
    poses, ctf
        cryoDRGN's ``pose.pkl`` and ``ctf.pkl`` of all rows of the file; they go before what the file says.
    no_ctf
        The images carry no CTF.
    apix
        Å/px of the images, where the file does not say or is wrong.
    ind
        File with the rows to keep.
    first
        Keep only the first of these rows.
    """
    if no_ctf and ctf is not None:
        raise ConfigError("--ctf, --no-ctf", "they contradict each other", "pass one of them")
    if ctf is not None and apix is not None:
        raise ConfigError("--apix", f"{ctf} has the Å/px", "leave it out")
    source = open_source(path, datadir=datadir, passthrough=passthrough, abinit=abinit, hetrefine=hetrefine)
    source.check_raw()
    count = len(source)
    rows = _chosen_rows(count, ind, first)
    given_poses = None if poses is None else cryodrgn.read_poses(poses, count)
    given_ctf = None if ctf is None else cryodrgn.read_ctf(ctf, count)
    columns = {"source_row": np.arange(count), **source.labels()}
    columns["rotation"] = source.rotation() if given_poses is None else given_poses.rotation
    if no_ctf:
        columns |= no_ctf_columns(count)
    elif given_ctf is None:
        columns |= {name: source.ctf_column(name) for name in CTF_OF_SOURCE}
    else:
        columns |= given_ctf.columns
    if given_ctf is None:
        columns["apix"] = source.pixel_size() if apix is None else np.full(count, apix)
    _warn_of_aberrations(source)
    columns = {name: values[rows] for name, values in columns.items()}
    file_of = {"rotation": poses, **dict.fromkeys(CTF_OF_SOURCE, ctf)}
    for name, values in columns.items():
        check_values(file_of.get(name) or path, {"source_row": columns["source_row"], name: values})

    # What follows needs the images' headers, which are many files: all else was checked before.
    where = source.locations(rows)
    stacks = read_headers(where.stacks)
    box_sizes = np.array([stack.box_size for stack in stacks])[where.stack_of]
    if given_ctf is not None:
        columns["apix"] = given_ctf.extent[rows] / box_sizes
    if given_poses is None:
        all_apix = np.ones(count)
        all_apix[rows] = columns["apix"]
        columns["translation"] = source.translation(all_apix)[rows]
    else:
        fraction = given_poses.fraction[rows]
        columns["translation"] = units.shift_fraction_to_angstrom(fraction, box_sizes * columns["apix"])
    check_values(path, {name: columns[name] for name in ("source_row", "apix", "translation")})
    if source.assumptions:
        logger.info("%s: %s", path, "; ".join(source.assumptions))
    tables = {name: block.take(rows) if name == "table" else block for name, block in source.tables.items()}
    samplings, sampling_of = find_samplings(box_sizes, columns["apix"])
    table = ParticleTable(
        source=path,
        files=(*source.files, *(name for name in (poses, ctf) if name is not None)),
        stacks=stacks,
        stack_of=where.stack_of,
        index_of=where.index_of,
        columns=columns,
        tables=tables,
        samplings=samplings,
        sampling_of=sampling_of,
        num_source_rows=count,
        has_ctf=not no_ctf,
        protein_is_white=source.protein_is_white,
    )
    check_images(path, table)
    if repeated := num_repeated_images(table):
        logger.warning("%s: %s rows show an image that another row shows too; all are kept", path, f"{repeated:,}")
    said = source.box_sizes()
    if said is not None and apix is None and given_ctf is None:
        check_box_sizes(path, table, said[rows])
    return table


def _chosen_rows(count: int, ind: str | None, first: int | None) -> Int[np.ndarray, " n"]:
    rows = np.arange(count) if ind is None else cryodrgn.read_selection(ind, count)
    if first is None:
        return rows
    if first < 1:
        raise ConfigError(f"--first {first}", "it would keep nothing", "pass a positive number")
    return rows[:first]


def _warn_of_aberrations(source: Source) -> None:
    found = source.aberrations()
    if found:
        logger.warning("%s: %s are not modelled; the images are used without them", source.path, ", ".join(found))
