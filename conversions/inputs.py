"""Find out what kind of input the user named, and read its table."""

from __future__ import annotations

import numpy as np

from conversions.cryodrgn import read_mrcs_with_pickles, read_selection
from conversions.relion import read_star
from conversions.table import ParticleTable
from drgn_ray.errors import ConfigError, ParticleFileError


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
) -> ParticleTable:
    """Read the table of a STAR file, or of an MRC stack with cryoDRGN's pickles, and keep the rows asked for."""
    if path.endswith(".star"):
        if poses or ctf:
            raise ConfigError("--poses, --ctf", f"{path} has its own poses and CTF", "leave them out")
        table = read_star(path, datadir=datadir, apix=apix, has_ctf=not no_ctf)
    elif path.endswith((".mrcs", ".mrc")):
        if poses is None or (ctf is None) != no_ctf:
            raise ParticleFileError(
                path,
                "an MRC stack has no poses or CTF of its own",
                "pass --poses pose.pkl, and --ctf ctf.pkl or --no-ctf",
            )
        if datadir is not None or (ctf is not None and apix is not None):
            raise ConfigError(
                "--datadir, --apix",
                f"neither is of use: {path} is the stack, and ctf.pkl has its Å/px",
                "leave them out",
            )
        table = read_mrcs_with_pickles(path, poses=poses, ctf=ctf, apix=apix)
    else:
        raise ParticleFileError(path, "its name ends in none of .star, .mrcs, .mrc", "pass a STAR file or an MRC stack")
    rows = np.arange(len(table)) if ind is None else read_selection(ind, len(table))
    if first is not None:
        if first < 1:
            raise ConfigError(f"--first {first}", "it would keep nothing", "pass a positive number")
        rows = rows[:first]
    return table if len(rows) == len(table) and ind is None else table.select(rows)
