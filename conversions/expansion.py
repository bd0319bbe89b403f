"""Symmetry expansion: every particle once for each rotation of a point group, as ``relion_particle_symmetry_expand``.

The copies of a particle follow one another, the particle as it was first.  They differ in their pose alone, so that
each shows another asymmetric unit where the first one shows its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int
from numpy.lib import recfunctions

from drgn_ray import units
from drgn_ray.errors import ConfigError
from drgn_ray.particles.backproject import has_half_sets
from drgn_ray.particles.schema import COLUMN
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.symmetry import point_group

POSE_FIELDS = ("alignments3D/pose", "alignments_class_0/pose")
SAME_POSE = 1e-4  # largest difference of the elements of two rotation matrices that are the same but for rounding
UID_STEP = np.uint64(0xD1342543DE82EF95)  # far from a multiple of a step between the originals, see `export`
_ANGLES = COLUMN["rotation"].relion


class Expansion(NamedTuple):
    """Rows of a store, each as often as a group has rotations.

    Attributes
    ----------
    sym
        The point group.
    group
        Its rotations, the identity first.
    rows
        Rows of the store to write, the copies of one after the other.
    """

    sym: str
    group: Float[np.ndarray, "G 3 3"]
    rows: Int[np.ndarray, " n"]

    @property
    def copy(self) -> Int[np.ndarray, " n"]:
        """Which rotation of the group each row has; 0 is the particle as it was."""
        return np.arange(len(self.rows)) % len(self.group)

    @property
    def is_original(self) -> Bool[np.ndarray, " n"]:
        """Rows that keep their pose."""
        return self.copy == 0

    def turned(self, rotation: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n 3 3"]:
        """Poses of the rows, ``rotation @ operation``."""
        return rotation.astype(np.float64) @ self.group[self.copy]


def expand(store: ParticleStore, rows: Int[np.ndarray, " n"], sym: str) -> Expansion:
    """Repeat rows for the rotations of a point group.

    Raises
    ------
    ConfigError
        There is no such group; or the images are tilt series, whose copies would pass for more tilts of a particle.
    """
    group = point_group(sym)
    if len(group) > 1 and len(np.unique(store.columns["particle"])) < len(store):
        raise ConfigError(
            f"--sym {sym}",
            f"the images of {store.path} are tilt series, whose copies would pass for more tilts of one particle",
            "expand the table of the 3-D particles instead",
        )
    return Expansion(sym, group, np.repeat(rows, len(group)))


def expand_star(table: pa.Table, store: ParticleStore, expansion: Expansion) -> pa.Table:
    """Write the turned angles into the rows of a STAR table; those of the originals stay as they are written.

    Parameters
    ----------
    table
        The particles, in the rows of the expansion.
    """
    if len(expansion.group) == 1:
        return table
    missing = [name for name in _ANGLES if name not in table.column_names]
    if missing:
        raise _foreign_poses(expansion, f"the table has no column {missing[0]}")
    written = [table[name].cast(pa.float64()).to_numpy() for name in _ANGLES]
    rotation = units.rotation_from_relion(*written)
    _check_same(store, expansion, rotation)
    angles = units.relion_from_rotation(expansion.turned(rotation))
    for name, values in zip(_ANGLES, angles.T, strict=True):
        position = table.column_names.index(name)
        column = table[name].combine_chunks()
        texts = np.where(expansion.is_original, column.to_numpy(zero_copy_only=False), np.char.mod("%.6f", values))
        table = table.set_column(position, name, pa.array(texts.tolist(), column.type))
    half_set, (name,) = missing_half_sets(store, expansion), COLUMN["half_set"].relion
    if half_set is not None:
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table.append_column(name, pa.array(map(str, half_set.tolist()), pa.string()))
    return table


def expand_cs(table: np.ndarray, store: ParticleStore, expansion: Expansion) -> np.ndarray:
    """Write the turned poses into the rows of a cryoSPARC table, and give each copy a ``uid`` of its own.

    Parameters
    ----------
    table
        The particles, in the rows of the expansion.
    """
    if len(expansion.group) == 1:
        return table
    poses = [name for name in POSE_FIELDS if name in (table.dtype.names or ())]
    if not poses:
        raise _foreign_poses(expansion, f"the table has no {POSE_FIELDS[0]}")
    rotations = {name: units.rotation_from_cryosparc(table[name]) for name in poses}
    used = [name for name in poses if _are_same(store, expansion, rotations[name])]
    if not used:
        _check_same(store, expansion, rotations[poses[0]])
    table = table.copy()
    for name in used:
        turned = units.cryosparc_from_rotation(expansion.turned(rotations[name]))
        table[name] = np.where(expansion.is_original[:, None], table[name], turned)
    if "uid" in (table.dtype.names or ()):
        table["uid"] = copied_uids(table["uid"], expansion)
    half_set, name = missing_half_sets(store, expansion), COLUMN["half_set"].cryosparc
    if half_set is None:
        return table
    split = units.cryosparc_from_half_set(half_set).astype(np.uint32)
    if name in (table.dtype.names or ()):
        table[name] = split
        return table
    return recfunctions.append_fields(table, name, split, usemask=False)


def missing_half_sets(store: ParticleStore, expansion: Expansion) -> Int[np.ndarray, " n"] | None:
    """Half sets (1 or 2) that keep the copies of a particle together, where the source has none."""
    if len(expansion.group) == 1 or has_half_sets(store.columns):
        return None
    return np.repeat(np.arange(len(expansion.rows) // len(expansion.group)), len(expansion.group)) % 2 + 1


def copied_uids(uid: np.ndarray, expansion: Expansion) -> np.ndarray:
    """Give each copy a 64-bit number of its own; the originals keep theirs."""
    return uid + expansion.copy.astype(np.uint64) * UID_STEP


def _are_same(store: ParticleStore, expansion: Expansion, rotation: Float[np.ndarray, "n 3 3"]) -> bool:
    return bool(np.abs(rotation - store.columns["rotation"][expansion.rows]).max() < SAME_POSE)


def _check_same(store: ParticleStore, expansion: Expansion, rotation: Float[np.ndarray, "n 3 3"]) -> None:
    """Refuse a table whose poses are not those that the store was converted with."""
    if not _are_same(store, expansion, rotation):
        raise _foreign_poses(expansion, "the poses of the store are not those of its table")


def _foreign_poses(expansion: Expansion, found: str) -> ConfigError:
    return ConfigError(
        f"--sym {expansion.sym}",
        f"{found}: they were given by --poses",
        "convert a table that has them, or the stack alone with --poses, and export that",
    )
