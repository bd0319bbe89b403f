"""The columns of a store: name, shape, type, unit, and what RELION and cryoSPARC call them."""

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
        Columns it comes from; looked up in the particle block, then in the optics block.
    cryosparc
        Field it comes from.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    unit: str
    relion: tuple[str, ...] = ()
    cryosparc: str = ""


COLUMNS: tuple[Column, ...] = (
    Column("rotation", (3, 3), "float32", "", ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), "pose"),
    Column("translation", (2,), "float32", "Å", ("rlnOriginXAngst", "rlnOriginYAngst"), "shift"),
    Column("apix", (), "float32", "Å/px of the store's images", ("rlnImagePixelSize",), "blob/psize_A"),
    Column("defocus_u", (), "float32", "Å", ("rlnDefocusU",), "ctf/df1_A"),
    Column("defocus_v", (), "float32", "Å", ("rlnDefocusV",), "ctf/df2_A"),
    Column("defocus_angle", (), "float32", "degrees", ("rlnDefocusAngle",), "ctf/df_angle_rad"),
    Column("voltage", (), "float32", "kV", ("rlnVoltage",), "ctf/accel_kv"),
    Column("cs", (), "float32", "mm", ("rlnSphericalAberration",), "ctf/cs_mm"),
    Column("amplitude_contrast", (), "float32", "1", ("rlnAmplitudeContrast",), "ctf/amp_contrast"),
    Column("phase_shift", (), "float32", "degrees", ("rlnPhaseShift",), "ctf/phase_shift_rad"),
    Column("ctf_scalefactor", (), "float32", "1", ("rlnCtfScalefactor",), "ctf/scale"),
    Column("ctf_bfactor", (), "float32", "Å²", ("rlnCtfBfactor",), "ctf/bfactor"),
    Column("half_set", (), "int8", "1 or 2; 0 is none", ("rlnRandomSubset",), "alignments3D/split"),
    Column("optics_group", (), "int64", "as in the source", ("rlnOpticsGroup",), "ctf/exp_group_id"),
    Column("particle", (), "int64", "0-based; the tilts of one particle share it", ("rlnGroupName",)),
    Column("tilt_index", (), "int32", "0-based rank in its tilt series, by falling CTF scale factor, then by dose"),
    Column(
        "dose",
        (),
        "float32",
        "e/Å² as the source counts it: before the image (RELION 5) or with it (Warp); 0 outside of tilt series",
        ("rlnMicrographPreExposure",),
    ),
    Column("source_row", (), "int64", "0-based row of the source table"),
    Column("source_box_size", (), "int32", "px of the original image"),
    Column("source_apix", (), "float32", "Å/px of the original image"),
)
COLUMN = {column.name: column for column in COLUMNS}
