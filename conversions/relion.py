"""RELION STAR files: 3.1 and 5 with optics groups, 3.0 with everything in one block, tilt series as 2-D images."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from conversions.stacks import locate
from conversions.star import StarBlock, StarFile, read_star_file
from conversions.table import Columns, Locations, single_particles
from drgn_ray import units
from drgn_ray.errors import ParticleFileError
from drgn_ray.particles.schema import COLUMN

logger = logging.getLogger(__name__)

IMAGE_NAME = "rlnImageName"
ORIGIN_PX = ("rlnOriginX", "rlnOriginY")
TOMO_PARTICLE, WARP_PARTICLE = "rlnTomoParticleName", "rlnGroupName"
NOT_MODELLED = ("rlnBeamTiltX", "rlnBeamTiltY", "rlnOddZernike", "rlnEvenZernike", "rlnMagMat00", "rlnMagMat01")
_CTF_REMEDY = "use the STAR file of a CtfRefine, Refine3D or Class3D job, or pass --no-ctf if the images carry no CTF"
_OPTIONAL = ("half_set", "optics_group", "ctf_scalefactor", "ctf_bfactor")


class RelionSource:
    """The particles of a STAR file."""

    protein_is_white = None

    def __init__(self, path: str, datadir: str | None) -> None:
        self.path, self.files, self.datadir = path, (path,), datadir
        self.assumptions: list[str] = []
        self._file = read_star_file(path)
        blocks = {block.name: block.table for block in self._file.blocks}
        particles = next((table for table in blocks.values() if IMAGE_NAME in table.column_names), None)
        if particles is None or not len(particles):
            found = ", ".join(f"data_{name}" for name in blocks)
            raise ParticleFileError(
                path,
                f"no block with particles, that is with a column {IMAGE_NAME} (found {found})",
                "pass a particle STAR file, such as run_data.star",
            )
        self._particles = particles
        self._optics = blocks.get("optics")

    def __len__(self) -> int:
        return len(self._particles)

    @property
    def tables(self) -> dict[str, pa.Table]:
        """All blocks; each remembers how it was written."""
        tables = {}
        for position, block in enumerate(self._file.blocks):
            layout = {"block": block.name, "position": position, "loop": block.is_loop, "version": self._file.version}
            is_particles = block.table is self._particles
            name = "table" if is_particles else "optics" if block.name == "optics" else f"block_{position}"
            tables[name] = block.table.replace_schema_metadata({_LAYOUT: json.dumps(layout)})
        return tables

    @cached_property
    def _optics_row(self) -> Int[np.ndarray, " N"]:
        """For every particle the row of its optics group."""
        assert self._optics is not None
        if "rlnOpticsGroup" not in self._particles.column_names:
            if len(self._optics) == 1:
                return np.zeros(len(self), np.int64)
            raise ParticleFileError(
                self.path,
                f"data_optics has {len(self._optics)} groups, but the particles have no column rlnOpticsGroup",
                "add it, so that every particle has its group",
            )
        if "rlnOpticsGroup" not in self._optics.column_names:
            raise ParticleFileError(
                self.path, "data_optics has no column rlnOpticsGroup", "add it, as the particles have it"
            )
        groups = pd.Index(pd.to_numeric(self._optics["rlnOpticsGroup"].to_pandas(), errors="coerce"))
        if not groups.is_unique:
            twice = groups[groups.duplicated()][0]
            raise ParticleFileError(self.path, f"optics group {twice} is in data_optics twice", "keep one of them")
        named = self._particles["rlnOpticsGroup"].to_pandas()
        row = groups.get_indexer(pd.Index(pd.to_numeric(named, errors="coerce")))
        if (row < 0).any():
            first = int(np.flatnonzero(row < 0)[0])
            raise ParticleFileError(
                self.path, f"optics group {named[first]} is not in data_optics", "add it there", row=first
            )
        return row.astype(np.int64)

    def check_raw(self) -> None:
        """Refuse images that were multiplied by their CTF or phase-flipped: they would be taken for raw ones."""
        for name, what in (
            ("rlnCtfDataAreCtfPremultiplied", "multiplied by their CTF"),
            ("rlnCtfDataArePhaseFlipped", "phase-flipped"),
        ):
            if self._has(name) and (found := np.flatnonzero(self._numbers(name))).size:
                raise ParticleFileError(
                    self.path,
                    f"{name} says that the images were {what}",
                    "extract them again without that option",
                    row=int(found[0]),
                )

    def aberrations(self) -> list[str]:
        """Name the aberrations that the file has and that no part of drgn_ray models."""
        return [name for name in NOT_MODELLED if self._has(name) and self._is_set(name)]

    def _is_set(self, name: str) -> bool:
        trivial = {"rlnMagMat00": 1.0}.get(name, 0.0)
        table = self._particles if name in self._particles.column_names else self._optics
        assert table is not None
        words = pc.replace_substring_regex(table[name].cast(pa.string()), r"[\[\]]", "").to_pandas()
        numbers = pd.to_numeric(words.str.split(",").explode(), errors="coerce")
        return bool((numbers != trivial).any())

    def images_named(self, rows: Int[np.ndarray, " n"]) -> Locations:
        """Read ``rlnImageName`` (``000001@stack.mrcs``) of some rows."""
        column = self._particles[IMAGE_NAME].take(rows)
        parts = split_image_names(column)
        if parts.bad_row is not None:
            raise ParticleFileError(
                self.path,
                f"{IMAGE_NAME} is {column[parts.bad_row].as_py()!r}, not number@stack.mrcs",
                "mend that row",
                row=int(rows[parts.bad_row]),
            )
        names = parts.stack.dictionary_encode()
        index_of = units.image_index_from_relion(parts.number)
        stack_of = names.indices.to_numpy().astype(np.int64)
        return Locations(tuple(names.dictionary.to_pylist()), stack_of, index_of)

    def locations(self, rows: Int[np.ndarray, " n"]) -> Locations:
        """Find the images of some rows."""
        return locate(self.path, self.images_named(rows), self.datadir)

    def pixel_size(self) -> Float[np.ndarray, " N"]:
        """Read ``rlnImagePixelSize``, or RELION 3.0's detector pixel size over magnification."""
        if self._has("rlnImagePixelSize"):
            return self._numbers("rlnImagePixelSize")
        if self._has("rlnDetectorPixelSize") and self._has("rlnMagnification"):
            return units.apix_from_magnification(
                self._numbers("rlnDetectorPixelSize"), self._numbers("rlnMagnification")
            )
        raise ParticleFileError(
            self.path,
            "no pixel size (neither rlnImagePixelSize nor rlnDetectorPixelSize with rlnMagnification)",
            "pass --apix with the Å/px of the images",
        )

    def box_sizes(self) -> Float[np.ndarray, " N"] | None:
        """Read ``rlnImageSize``."""
        return self._numbers("rlnImageSize") if self._has("rlnImageSize") else None

    def rotation(self) -> Float[np.ndarray, "N 3 3"]:
        """Read the Euler angles."""
        remedy = "use the STAR file of a Refine3D or Class3D job, or pass --poses pose.pkl"
        return units.rotation_from_relion(*(self._required(name, remedy) for name in COLUMN["rotation"].relion))

    def translation(self, apix: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
        """Read ``rlnOriginX/YAngst``, or RELION 3.0's ``rlnOriginX/Y`` in px."""
        angstrom = COLUMN["translation"].relion
        if all(map(self._has, angstrom)):
            return np.stack([self._numbers(name) for name in angstrom], axis=-1)
        if all(map(self._has, ORIGIN_PX)):
            return units.shift_px_to_angstrom(np.stack([self._numbers(name) for name in ORIGIN_PX], axis=-1), apix)
        self.assumptions.append("no origin columns, images taken as centred")
        return np.zeros((len(self), 2))

    def ctf_column(self, name: str) -> Float[np.ndarray, " N"]:
        """Read defocus or a setting of the microscope; phase shifts may be absent."""
        if name == "phase_shift":
            return self._optional(name, 0.0)
        return self._required(COLUMN[name].relion[0], _CTF_REMEDY)

    def labels(self) -> Columns:
        """Read half set, optics group, CTF damping and, where the images are tilt series, particle, tilt and dose."""
        labels = single_particles(len(self))
        for name in _OPTIONAL:
            labels[name] = self._optional(name, float(labels[name][0]))
        return labels | self._tilt_series(labels["ctf_scalefactor"], labels["ctf_bfactor"])

    def _tilt_series(self, scale: Float[np.ndarray, " N"], bfactor: Float[np.ndarray, " N"]) -> Columns:
        """Group the images of a particle, if they are a tilt series.

        RELION 5 names the particle.  Warp and M name it as the group, and damp its tilts ever more, by B factors that
        are never positive; single particles have groups too (of micrographs), but no such damping within one.
        """
        name = next((name for name in (TOMO_PARTICLE, WARP_PARTICLE) if name in self._particles.column_names), None)
        if name is None:
            return {}
        particle = self._particles[name].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        is_damped = _varies_within(particle, scale) or _varies_within(particle, bfactor)
        if name == WARP_PARTICLE and not (is_damped and (bfactor <= 0).all()):
            return {}
        (exposure,) = COLUMN["dose"].relion
        dose = self._numbers(exposure) if self._has(exposure) else units.dose_from_bfactor(bfactor)
        by_scale = np.lexsort((np.arange(len(self)), dose, -scale, particle))
        counts = np.bincount(particle)
        tilt_index = np.empty(len(self), np.int64)
        tilt_index[by_scale] = np.arange(len(self)) - np.repeat(np.cumsum(counts) - counts, counts)
        logger.info(
            "%s: tilt series of %s particles (%s), %d to %d images each",
            *(self.path, f"{len(counts):,}", name, counts.min(), counts.max()),
        )
        return {"particle": particle, "tilt_index": tilt_index, "dose": dose}

    def _has(self, name: str) -> bool:
        return name in self._particles.column_names or (self._optics is not None and name in self._optics.column_names)

    def _numbers(self, name: str) -> Float[np.ndarray, " N"]:
        """Read a column as float64, from the particles or else from their optics groups."""
        if name in self._particles.column_names:
            raw, rows = self._particles[name], None
        else:
            assert self._optics is not None, name
            raw, rows = self._optics[name], self._optics_row
        try:
            values = raw.cast(pa.float64()).to_numpy()
        except pa.ArrowInvalid:
            values = np.asarray(pd.to_numeric(raw.to_pandas(), errors="coerce"), np.float64)
        values = values if rows is None else values[rows]
        bad = np.flatnonzero(np.isnan(values))
        if len(bad):
            row = int(bad[0])
            found = raw[row if rows is None else int(rows[row])].as_py()
            raise ParticleFileError(self.path, f"{name} is {found!r}, not a number", "remove or mend that row", row=row)
        return values

    def _required(self, name: str, remedy: str) -> Float[np.ndarray, " N"]:
        if not self._has(name):
            names = self._particles.column_names
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            raise ParticleFileError(self.path, f"no column {name} (found {len(names)} columns: {shown})", remedy)
        return self._numbers(name)

    def _optional(self, name: str, default: float) -> Float[np.ndarray, " N"]:
        relion = COLUMN[name].relion[0]
        if self._has(relion):
            return self._numbers(relion)
        self.assumptions.append(f"no {relion}, taken as {default:g}")
        return np.full(len(self), default)


_LAYOUT = "drgn_ray.star"


class ImageNames(NamedTuple):
    """``rlnImageName``, split; `bad_row` is the first that is not ``number@stack``."""

    number: Int[np.ndarray, " n"]
    stack: pa.Array
    bad_row: int | None


def split_image_names(names: pa.ChunkedArray) -> ImageNames:
    """Split ``000001@stack.mrcs`` into its number and its stack."""
    parts = pc.extract_regex(names, r"^(?P<number>\d{1,18})@(?P<stack>.+)$").combine_chunks()
    if parts.null_count:
        return ImageNames(
            np.zeros(0, np.int64), pa.array([], pa.string()), int(pc.index(parts.is_null(), True).as_py())
        )
    number = pc.struct_field(parts, "number").cast(pa.int64()).to_numpy()
    return ImageNames(number, pc.struct_field(parts, "stack").cast(pa.string()), None)


def star_file_of(tables: Mapping[str, pa.Table]) -> StarFile | None:
    """Put a STAR file together from the tables of a store (or some of their rows); None if they come from elsewhere."""
    blocks = []
    version = None
    for table in tables.values():
        layout = json.loads((table.schema.metadata or {}).get(_LAYOUT.encode(), b"null"))
        if layout is None:
            return None
        version = layout["version"]
        blocks.append((layout["position"], StarBlock(layout["block"], table, layout["loop"])))
    return StarFile(tuple(block for _, block in sorted(blocks, key=lambda entry: entry[0])), version)


def _varies_within(group: Int[np.ndarray, " N"], values: Float[np.ndarray, " N"]) -> bool:
    order = np.argsort(group, kind="stable")
    same_group = np.diff(group[order]) == 0
    return bool((same_group & (np.diff(values[order]) != 0)).any())
