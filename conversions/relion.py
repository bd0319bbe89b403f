"""RELION STAR files: 3.1 with optics groups, and 3.0 with everything in one block."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import starfile
from jaxtyping import Float, Int

from conversions.table import ParticleTable, check_stacks, check_values
from drgn_ray import units
from drgn_ray.errors import ParticleFileError
from drgn_ray.particles.schema import COLUMN, CTF_FROM_STAR

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StarBlocks:
    """The particle block and the optics row of every particle."""

    path: str
    particles: pd.DataFrame
    optics: pd.DataFrame | None
    optics_row: Int[np.ndarray, " N"] | None

    def has(self, name: str) -> bool:
        """Whether the particles or their optics groups have this column."""
        return name in self.particles or (self.optics is not None and name in self.optics)

    def numbers(self, name: str) -> Float[np.ndarray, " N"]:
        """Read a column as float64, from the particles or else from their optics groups."""
        if name in self.particles:
            raw, rows = self.particles[name], np.arange(len(self.particles))
        else:
            assert self.optics is not None, name
            assert self.optics_row is not None, name
            raw, rows = self.optics[name], self.optics_row
        values = np.asarray(pd.to_numeric(raw, errors="coerce"), np.float64)[rows]
        bad = np.flatnonzero(np.isnan(values))
        if len(bad):
            row = int(bad[0])
            raise ParticleFileError(
                self.path, f"{name} is {_shown(raw.iloc[rows[row]])}, not a number", "remove or mend that row", row=row
            )
        return values

    def required(self, name: str, remedy: str) -> Float[np.ndarray, " N"]:
        """Read a column the conversion cannot do without."""
        if not self.has(name):
            raise ParticleFileError(self.path, f"no column {name} (found {self._found()})", remedy)
        return self.numbers(name)

    def _found(self) -> str:
        names = list(self.particles.columns)
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        return f"{len(names)} columns: {shown}"


def read_star(path: str, *, datadir: str | None, apix: float | None, has_ctf: bool) -> ParticleTable:
    """Read the particles of a STAR file.

    Parameters
    ----------
    datadir
        Where image paths start; None: the STAR file's folder or one above it (RELION's project folder).
    apix
        Å/px, where the file does not say or is wrong; it goes before the file's.
    has_ctf
        False where the images carry no CTF; its columns are then not needed.
    """
    star = _read_blocks(path)
    pixel = _pixel_size(star, apix)
    count = len(star.particles)
    refine = "use the STAR file of a Refine3D or Class3D job"
    angles = [star.required(name, refine) for name in COLUMN["rotation"].relion]
    columns = {
        "rotation": units.rotation_from_relion(*angles),
        "translation": _translation(star, pixel),
        "apix": pixel,
        "half_set": _optional(star, "half_set", 0),
        "optics_group": _optional(star, "optics_group", 1),
        "source_row": np.arange(count),
        "phase_shift": _optional(star, "phase_shift", 0.0) if has_ctf else np.zeros(count),
    }
    ctf_remedy = (
        "use the STAR file of a CtfRefine, Refine3D or Class3D job, or pass --no-ctf if the images carry no CTF"
    )
    for name in CTF_FROM_STAR:
        columns[name] = star.required(COLUMN[name].relion[0], ctf_remedy) if has_ctf else NO_CTF[name](count)
    check_values(path, columns)
    stacks, stack_of, index_of = _image_locations(star, datadir)
    tables = {"table": star.particles} | ({} if star.optics is None else {"optics": star.optics})
    box_size = check_stacks(path, stacks, stack_of, index_of)
    return ParticleTable(path, stacks, stack_of, index_of, columns, tables, box_size, has_ctf)


NO_CTF = {name: np.zeros for name in CTF_FROM_STAR} | {"voltage": lambda count: np.full(count, 300.0)}


def _read_blocks(path: str) -> StarBlocks:
    if not os.path.isfile(path):
        raise ParticleFileError(path, "there is no such file", "check the path of the STAR file")
    try:
        blocks = starfile.read(Path(path), always_dict=True)
    except Exception as error:
        raise ParticleFileError(
            path, f"cannot be read as STAR ({' '.join(str(error).split())})", "check the file"
        ) from error
    frames = {name: block for name, block in blocks.items() if isinstance(block, pd.DataFrame)}
    particles = next((frame for frame in frames.values() if "rlnImageName" in frame), None)
    if particles is None or particles.empty:
        found = ", ".join(f"data_{name}" for name in blocks) or "no data block"
        raise ParticleFileError(
            path,
            f"no block with particles, that is with a column rlnImageName (found {found})",
            "pass a particle STAR file, such as run_data.star",
        )
    optics = frames.get("optics")
    if optics is None or "rlnOpticsGroup" not in particles:
        return StarBlocks(path, particles, None, None)
    if "rlnOpticsGroup" not in optics:
        raise ParticleFileError(path, "data_optics has no column rlnOpticsGroup", "add it, as the particles have it")
    groups = pd.Index(pd.to_numeric(optics["rlnOpticsGroup"], errors="coerce"))
    if not groups.is_unique:
        twice = groups[groups.duplicated()][0]
        raise ParticleFileError(path, f"optics group {twice} is in data_optics twice", "keep one of them")
    row = groups.get_indexer(pd.Index(pd.to_numeric(particles["rlnOpticsGroup"], errors="coerce")))
    if (row < 0).any():
        first = int(np.flatnonzero(row < 0)[0])
        group = particles["rlnOpticsGroup"].iloc[first]
        raise ParticleFileError(path, f"optics group {group} is not in data_optics", "add it there", row=first)
    return StarBlocks(path, particles, optics, row.astype(np.int64))


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _image_locations(
    star: StarBlocks, datadir: str | None
) -> tuple[tuple[str, ...], Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    parts = star.particles["rlnImageName"].astype(str).str.extract(r"^(\d+)@(.+)$")
    bad = np.flatnonzero(parts[0].isna())
    if len(bad):
        row = int(bad[0])
        name = star.particles["rlnImageName"].iloc[row]
        raise ParticleFileError(star.path, f"rlnImageName is {name!r}, not number@stack.mrcs", "mend that row", row=row)
    stack_of, names = pd.factorize(parts[1])
    stacks = _find_stacks(star.path, [str(name) for name in names], datadir)
    index_of = units.image_index_from_relion(parts[0].to_numpy(np.int64))
    return tuple(stacks), stack_of.astype(np.int64), index_of


def _find_stacks(star_path: str, names: list[str], datadir: str | None) -> list[str]:
    folder = os.path.dirname(os.path.abspath(star_path))
    if datadir is None:
        roots = [folder]
        while os.path.dirname(roots[-1]) != roots[-1]:
            roots.append(os.path.dirname(roots[-1]))
        root = next((r for r in roots if os.path.isfile(os.path.join(r, names[0]))), folder)
        found = [os.path.join(root, name) for name in names]
    else:
        whole = [os.path.join(datadir, name) for name in names]
        flat = [os.path.join(datadir, os.path.basename(name)) for name in names]
        found = [a if os.path.isfile(a) else b for a, b in zip(whole, flat, strict=True)]
    missing = [path for path in found if not os.path.isfile(path)]
    if missing:
        raise ParticleFileError(
            star_path,
            f"{len(missing)} of its {len(names)} image files are missing, the first is {missing[0]}",
            "pass --datadir FOLDER, the folder the paths in the file start from",
        )
    return found


def _pixel_size(star: StarBlocks, apix: float | None) -> Float[np.ndarray, " N"]:
    if apix is not None:
        return np.full(len(star.particles), apix)
    if star.has("rlnImagePixelSize"):
        return star.numbers("rlnImagePixelSize")
    if star.has("rlnDetectorPixelSize") and star.has("rlnMagnification"):
        return units.apix_from_magnification(star.numbers("rlnDetectorPixelSize"), star.numbers("rlnMagnification"))
    raise ParticleFileError(
        star.path,
        "no pixel size (neither rlnImagePixelSize nor rlnDetectorPixelSize with rlnMagnification)",
        "pass --apix with the Å/px of the images",
    )


def _translation(star: StarBlocks, apix: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
    angstrom, px = COLUMN["translation"].relion, ("rlnOriginX", "rlnOriginY")
    if all(map(star.has, angstrom)):
        return np.stack([star.numbers(name) for name in angstrom], axis=-1)
    if all(map(star.has, px)):
        return units.shift_px_to_angstrom(np.stack([star.numbers(name) for name in px], axis=-1), apix)
    logger.info("%s: no origin columns, so the images are taken as centred", star.path)
    return np.zeros((len(star.particles), 2))


def _optional(star: StarBlocks, name: str, default: float) -> Float[np.ndarray, " N"]:
    relion = COLUMN[name].relion[0]
    if star.has(relion):
        return star.numbers(relion)
    logger.info("%s: no %s, taken as %g", star.path, relion, default)
    return np.full(len(star.particles), default)
