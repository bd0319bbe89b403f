"""cryoSPARC particles: a ``.cs`` table, with its passthrough tables where it lacks images, CTF or poses."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from conversions import files
from conversions.csdat import read_cs, to_arrow
from conversions.stacks import locate
from conversions.table import Columns, Locations, single_particles
from drgn_ray import units
from drgn_ray.errors import ParticleFileError
from drgn_ray.particles.schema import COLUMN

logger = logging.getLogger(__name__)

REFINED, AB_INITIO = "alignments3D", "alignments_class_0"
NOT_MODELLED = {  # and what says that there is none
    "ctf/tilt_A": (0, 0),
    "ctf/trefoil_A": (0, 0),
    "ctf/tetra_A": (0, 0, 0, 0),
    "ctf/anisomag": (1, 0, 0, 1),
}
IN_RADIANS = ("defocus_angle", "phase_shift")


class CryosparcSource:
    """The particles of a ``.cs`` file.

    Parameters
    ----------
    passthrough
        ``.cs`` files of the same job with further fields of the same particles, joined by ``uid``.
    abinit
        Take the poses of ab initio reconstruction's class 0 instead of a refinement's.
    hetrefine
        Shifts are in px of images downsampled by two, as heterogeneous refinement wrote them (cryoDRGN's rule).
    """

    def __init__(
        self, path: str, datadir: str | None, *, passthrough: Sequence[str], abinit: bool, hetrefine: bool
    ) -> None:
        self.path, self.datadir, self.hetrefine = path, datadir, hetrefine
        self.files = (path, *passthrough)
        self.assumptions: list[str] = []
        self.alignments = AB_INITIO if abinit else REFINED
        self._table = read_cs(path)
        for other in passthrough:
            self._table = _join(path, self._table, other, read_cs(other))

    def __len__(self) -> int:
        return len(self._table)

    @property
    def tables(self) -> dict[str, pa.Table]:
        """All fields, those of the passthrough tables among them."""
        return {"table": to_arrow(self._table)}

    @property
    def protein_is_white(self) -> bool | None:
        """What ``blob/sign`` says: -1 is dark protein on a bright ground."""
        if "blob/sign" not in self._names:
            return None
        signs = np.unique(np.sign(self._numbers("blob/sign")))
        return bool(signs[0] > 0) if len(signs) == 1 else None

    @property
    def _names(self) -> tuple[str, ...]:
        return self._table.dtype.names or ()

    def aberrations(self) -> list[str]:
        """Name the aberrations that the file has and that no part of drgn_ray models."""
        found = {name: self._numbers(name, len(NOT_MODELLED[name])) for name in NOT_MODELLED if name in self._names}
        return [name for name, values in found.items() if values.any() and not np.allclose(values, NOT_MODELLED[name])]

    def check_raw(self) -> None:
        """Nothing is said of filtered images."""

    def images_named(self, rows: Int[np.ndarray, " n"]) -> Locations:
        """Read ``blob/path`` and ``blob/idx`` of some rows."""
        index_of = self._field("blob/idx", "iu")[rows].astype(np.int64)  # uint32: times an image's size would overflow
        paths, stack_of = np.unique(self._field("blob/path", "S")[rows], return_inverse=True)
        names = tuple(os.fsdecode(path).removeprefix(">") for path in paths.tolist())
        return Locations(names, stack_of, index_of)

    def locations(self, rows: Int[np.ndarray, " n"]) -> Locations:
        """Find the images of some rows."""
        return locate(self.path, self.images_named(rows), self.datadir)

    def pixel_size(self) -> Float[np.ndarray, " N"]:
        """Read ``blob/psize_A``."""
        return self._numbers(COLUMN["apix"].cryosparc)

    def box_sizes(self) -> Float[np.ndarray, " N"] | None:
        """Read ``blob/shape``."""
        return self._numbers("blob/shape", 2)[:, 0] if "blob/shape" in self._names else None

    def rotation(self) -> Float[np.ndarray, "N 3 3"]:
        """Read the rotation vectors."""
        return units.rotation_from_cryosparc(self._numbers(self._pose_field("pose"), 3))

    def translation(self, apix: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
        """Read the shifts, which are in px of the size that their alignment says."""
        shift = self._numbers(self._pose_field("shift"), 2)
        own = f"{self.alignments}/psize_A"
        if self.hetrefine:
            return units.shift_px_to_angstrom(2 * shift, apix)
        return units.shift_px_to_angstrom(shift, self._numbers(own) if own in self._names else apix)

    def ctf_column(self, name: str) -> Float[np.ndarray, " N"]:
        """Read defocus or a setting of the microscope."""
        values = self._numbers(COLUMN[name].cryosparc)
        return np.rad2deg(values) if name in IN_RADIANS else values

    def labels(self) -> Columns:
        """Read half set, exposure group and CTF damping."""
        labels = single_particles(len(self))
        for name in ("optics_group", "ctf_scalefactor", "ctf_bfactor"):
            field = COLUMN[name].cryosparc
            if field in self._names:
                labels[name] = self._numbers(field)
            else:
                self.assumptions.append(f"no {field}, taken as {labels[name][0]:g}")
        split = COLUMN["half_set"].cryosparc
        if split in self._names:
            labels["half_set"] = units.half_set_from_cryosparc(self._field(split, "iu"))
        return labels

    def _pose_field(self, name: str) -> str:
        field = f"{self.alignments}/{name}"
        if field in self._names:
            return field
        if self.alignments == REFINED and f"{AB_INITIO}/{name}" in self._names:
            raise ParticleFileError(
                self.path, f"no {field}, but poses of an ab initio job", "pass --abinit to take those of its class 0"
            )
        raise ParticleFileError(
            self.path,
            f"no {field} (found {_prefixes(self._names)}): these particles have no 3-D alignments here",
            _passthrough_remedy(self.path, "use the particles of a refinement job, or pass --poses pose.pkl"),
        )

    def _field(self, name: str, kinds: str, *shape: int) -> np.ndarray:
        """Read a field of one of these kinds of numpy and of this shape a row."""
        if name not in self._names:
            remedy = _passthrough_remedy(self.path, "pass --passthrough FILE.cs, the passthrough particles of that job")
            raise ParticleFileError(self.path, f"no {name} (found {_prefixes(self._names)})", remedy)
        values = self._table[name]
        if values.dtype.kind not in kinds or values.shape[1:] != shape:
            raise ParticleFileError(
                self.path,
                f"{name} holds {values.dtype} of shape {values.shape[1:]} a row, which cryoSPARC does not write",
                "pass the .cs file as cryoSPARC wrote it",
            )
        return values

    def _numbers(self, name: str, *shape: int) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # values of any bits: which are no numbers is found later, and said
            return self._field(name, "iuf", *shape).astype(np.float64)


def _prefixes(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.partition("/")[0] for name in names))


def _passthrough_remedy(path: str, otherwise: str) -> str:
    """Name the passthrough file beside a table, if there is one."""
    beside = [] if files.is_url(path) else sorted(glob.glob(f"{glob.escape(files.folder_of(path))}/*passthrough*.cs"))
    beside = [name for name in beside if name != files.absolute(path)]
    return f"pass --passthrough {beside[0]}" if beside else otherwise


def _join(path: str, table: np.ndarray, other_path: str, other: np.ndarray) -> np.ndarray:
    """Add the fields of another table to the rows of the same uid."""
    for name, each in ((path, table), (other_path, other)):
        if "uid" not in (each.dtype.names or ()):
            raise ParticleFileError(name, "no field uid, by which tables are joined", "pass tables of one job")
        if len(np.unique(each["uid"])) < len(each):
            raise ParticleFileError(name, "it has a uid more than once", "pass tables of one job")
    order = np.argsort(other["uid"])
    where = np.searchsorted(other["uid"], table["uid"], sorter=order)
    where = order[np.minimum(where, len(order) - 1)]
    missing = np.flatnonzero(other["uid"][where] != table["uid"])
    if len(missing):
        row = int(missing[0])
        raise ParticleFileError(
            path,
            f"uid {table['uid'][row]} is not in {other_path} ({len(missing):,} of {len(table):,} rows are not)",
            "pass the passthrough particles of the same job",
            row=row,
        )
    new = [name for name in other.dtype.names or () if name not in (table.dtype.names or ())]
    if not new:
        logger.info("%s: it adds no field", other_path)
        return table
    fields = [
        (name, each.dtype[name]) for each, names in ((table, table.dtype.names or ()), (other, new)) for name in names
    ]
    joined = np.empty(len(table), fields)
    for name, _ in fields:
        joined[name] = other[name][where] if name in new else table[name]
    return joined
