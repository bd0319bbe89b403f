"""The columns of a store: name, shape, type, unit, and what RELION calls them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One value (or vector, or matrix) a particle.

    Attributes
    ----------
    shape
        Shape of a row; () is a number.
    unit
        As in `drgn_ray.units`.
    relion
        Columns it comes from, in order of preference; looked up in the particle block, then in the optics block.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    unit: str
    relion: tuple[str, ...] = ()


COLUMNS: tuple[Column, ...] = (
    Column("rotation", (3, 3), "float32", "", ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")),
    Column("translation", (2,), "float32", "Å", ("rlnOriginXAngst", "rlnOriginYAngst")),
    Column("apix", (), "float32", "Å/px of the store's images", ("rlnImagePixelSize",)),
    Column("defocus_u", (), "float32", "Å", ("rlnDefocusU",)),
    Column("defocus_v", (), "float32", "Å", ("rlnDefocusV",)),
    Column("defocus_angle", (), "float32", "degrees", ("rlnDefocusAngle",)),
    Column("voltage", (), "float32", "kV", ("rlnVoltage",)),
    Column("cs", (), "float32", "mm", ("rlnSphericalAberration",)),
    Column("amplitude_contrast", (), "float32", "1", ("rlnAmplitudeContrast",)),
    Column("phase_shift", (), "float32", "degrees", ("rlnPhaseShift",)),
    Column("half_set", (), "int8", "1 or 2; 0 is none", ("rlnRandomSubset",)),
    Column("optics_group", (), "int32", "as in the source", ("rlnOpticsGroup",)),
    Column("source_row", (), "int64", "0-based row of the source table"),
)
COLUMN = {column.name: column for column in COLUMNS}
CTF_FROM_STAR = (
    "defocus_u",
    "defocus_v",
    "defocus_angle",
    "voltage",
    "cs",
    "amplitude_contrast",
)
