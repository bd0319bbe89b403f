"""A selection of particles written back in the formats of the field: STAR, CS, MRC stacks and lists of rows.

A table that came from the same format is written as it was read, with every column.  From another format it is made
of the store's columns; either way it names the original images.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from conversions import cryodrgn_write, csdat, relion, star
from conversions.expansion import Expansion, copied_uids, expand, expand_cs, expand_star, missing_half_sets
from drgn_ray import units
from drgn_ray.errors import ConfigError
from drgn_ray.particles.backproject import has_half_sets
from drgn_ray.particles.schema import COLUMN
from drgn_ray.particles.store import ParticleStore

logger = logging.getLogger(__name__)
Rows = Int[np.ndarray, " n"]
DARK, WHITE = -1.0, 1.0


def export(store: ParticleStore, rows: Rows, outputs: Sequence[str], sym: str = "C1") -> None:
    """Write rows of a store to every output, whose suffix says what it is.

    Parameters
    ----------
    sym
        Point group by which particles are multiplied (`conversions.expansion`).

    Raises
    ------
    ConfigError
        For an unknown suffix, or one without poses where particles are multiplied, before anything is written.
    """
    writers = [_writer_of(output) for output in outputs]
    expansion = expand(store, rows, sym)
    if len(expansion.group) > 1:
        for output in outputs:
            if Path(output).suffix not in _WITH_POSES:
                raise ConfigError(f"-o {output} --sym {sym}", "it would hold no poses", "expand to a .star or .cs file")
        if not has_half_sets(store.columns):
            logger.info("%s: every other particle goes into each half set, so that copies stay together", store.path)
    for output, write in zip(outputs, writers, strict=True):
        path = Path(output)
        with cryodrgn_write.made_whole(path) as partial:
            write(store, expansion, partial)


def _writer_of(output: str) -> Callable[[ParticleStore, Expansion, Path], None]:
    suffix = Path(output).suffix
    if "://" in output:
        raise ConfigError(f"-o {output}", "exports are written to local files", "pass a path")
    if suffix not in _WRITERS:
        raise ConfigError(f"-o {output}", f"its name ends in none of {', '.join(_WRITERS)}", "pass a file of that kind")
    return _WRITERS[suffix]


def _write_star(store: ParticleStore, expansion: Expansion, path: Path) -> None:
    tables = store.tables()
    table = tables["table"].take(expansion.rows)
    is_star = relion.star_file_of(tables) is not None
    original = relion.star_file_of({**tables, "table": expand_star(table, store, expansion)}) if is_star else None
    star.write_star_file(str(path), _star_of_columns(store, expansion) if original is None else original)


def _write_cs(store: ParticleStore, expansion: Expansion, path: Path) -> None:
    original = csdat.from_arrow(store.table().take(expansion.rows))
    made = _cs_of_columns(store, expansion) if original is None else expand_cs(original, store, expansion)
    csdat.write_cs(str(path), made)


def _write_stack(store: ParticleStore, expansion: Expansion, path: Path) -> None:
    cryodrgn_write.write_stack(path, store, expansion.rows)


def _write_pickle(store: ParticleStore, expansion: Expansion, path: Path) -> None:
    cryodrgn_write.write_selection(path, store.columns["source_row"][expansion.rows])


def _write_npy(store: ParticleStore, expansion: Expansion, path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, store.columns["source_row"][expansion.rows])


def _write_text(store: ParticleStore, expansion: Expansion, path: Path) -> None:
    np.savetxt(path, store.columns["source_row"][expansion.rows], fmt="%d")


_WITH_POSES = (".star", ".cs")
_WRITERS: dict[str, Callable[[ParticleStore, Expansion, Path], None]] = {
    ".star": _write_star,
    ".cs": _write_cs,
    ".mrcs": _write_stack,
    ".pkl": _write_pickle,
    ".npy": _write_npy,
    ".txt": _write_text,
}


class _Images(NamedTuple):
    """Stack (as the source names it) and 0-based image of every row."""

    stack: pa.Array
    index: Int[np.ndarray, " n"]


def _original_images(store: ParticleStore, rows: Rows) -> _Images:
    table = store.table().take(rows)
    names = table.column_names
    if relion.IMAGE_NAME in names:
        parts = relion.split_image_names(table[relion.IMAGE_NAME])
        return _Images(parts.stack, units.image_index_from_relion(parts.number))
    if "blob/path" in names:
        paths = table["blob/path"].cast(pa.string()).combine_chunks()
        return _Images(pc.replace_substring_regex(paths, "^>", ""), table["blob/idx"].to_numpy().astype(np.int64))
    return _Images(table["stack"].cast(pa.string()).combine_chunks(), table["image"].to_numpy())


def _columns(store: ParticleStore, expansion: Expansion) -> dict[str, np.ndarray]:
    columns = {name: values[expansion.rows] for name, values in store.columns.items()}
    columns |= {"rotation": expansion.turned(columns["rotation"])}
    half_set = missing_half_sets(store, expansion)
    return columns if half_set is None else columns | {"half_set": half_set}


def _star_of_columns(store: ParticleStore, expansion: Expansion) -> star.StarFile:
    """Make a RELION 3.1 file of the columns, for particles that came from elsewhere."""
    columns = _columns(store, expansion)
    images = _original_images(store, expansion.rows)
    numbers = pc.utf8_lpad(pa.array(units.relion_from_image_index(images.index)).cast(pa.string()), 6, "0")
    particles: dict[str, object] = {relion.IMAGE_NAME: pc.binary_join_element_wise(numbers, images.stack, "@")}
    particles |= dict(zip(COLUMN["rotation"].relion, units.relion_from_rotation(columns["rotation"]).T, strict=True))
    particles |= dict(zip(COLUMN["translation"].relion, columns["translation"].T, strict=True))
    in_particles = ["ctf_scalefactor", "ctf_bfactor"]
    in_optics = []
    if store.info.has_ctf:
        in_particles += ["defocus_u", "defocus_v", "defocus_angle", "phase_shift"]
        in_optics += ["voltage", "cs", "amplitude_contrast"]
    if columns["half_set"].all():
        in_particles.append("half_set")
    particles |= {COLUMN[name].relion[0]: columns[name] for name in in_particles}
    group, first = _optics_groups([columns[name] for name in ("source_box_size", "source_apix", *in_optics)])
    particles["rlnOpticsGroup"] = group + 1
    optics: dict[str, object] = {
        "rlnOpticsGroup": np.arange(1, len(first) + 1),
        "rlnOpticsGroupName": [f"opticsGroup{number}" for number in range(1, len(first) + 1)],
        **{COLUMN[name].relion[0]: columns[name][first] for name in in_optics},
        "rlnImagePixelSize": columns["source_apix"][first],
        "rlnImageSize": columns["source_box_size"][first],
        "rlnImageDimensionality": np.full(len(first), 2),
    }
    blocks = (("optics", optics), ("particles", particles))
    return star.StarFile(
        tuple(star.StarBlock(name, star.text_table(block), True) for name, block in blocks), star.RELION_31
    )


def _optics_groups(parts: list[np.ndarray]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " G"]]:
    """Find the different combinations of some columns: each row's number, and the first row of each."""
    _, first, group = np.unique(
        np.stack(parts, axis=-1).astype(np.float64), axis=0, return_index=True, return_inverse=True
    )
    return group.ravel(), first


def _cs_of_columns(store: ParticleStore, expansion: Expansion) -> np.ndarray:
    """Make a cryoSPARC table of the columns, for particles that came from elsewhere."""
    columns = _columns(store, expansion)
    images, rows = _original_images(store, expansion.rows), expansion.rows
    paths = np.array(images.stack.to_numpy(zero_copy_only=False), dtype="S")
    white = store.info.data_sign == units.sign_of_white_protein(store.info.has_ctf)
    fields: dict[str, np.ndarray] = {
        "uid": copied_uids(_uids(store.info.table_sha256, columns["source_row"]), expansion),
        "blob/path": paths,
        "blob/idx": images.index.astype(np.uint32),
        "blob/shape": np.repeat(columns["source_box_size"].astype(np.uint32)[:, None], 2, axis=1),
        "blob/psize_A": columns["source_apix"],
        "blob/sign": np.full(len(rows), WHITE if white else DARK, np.float32),
        "alignments3D/shift": (columns["translation"] / columns["source_apix"][:, None]).astype(np.float32),
        "alignments3D/pose": units.cryosparc_from_rotation(columns["rotation"]).astype(np.float32),
        "alignments3D/psize_A": columns["source_apix"],
    }
    if columns["half_set"].all():
        fields["alignments3D/split"] = units.cryosparc_from_half_set(columns["half_set"]).astype(np.uint32)
    if store.info.has_ctf:
        fields["ctf/type"] = np.full(len(rows), b"imported")
        fields["ctf/exp_group_id"] = columns["optics_group"].astype(np.uint32)
        for name in ("defocus_u", "defocus_v", "voltage", "cs", "amplitude_contrast", "ctf_scalefactor", "ctf_bfactor"):
            fields[COLUMN[name].cryosparc] = columns[name]
        for name in ("defocus_angle", "phase_shift"):
            fields[COLUMN[name].cryosparc] = np.deg2rad(columns[name])
    table = np.zeros(len(rows), [(name, values.dtype, values.shape[1:]) for name, values in fields.items()])
    for name, values in fields.items():
        table[name] = values
    return table


def _uids(table_sha256: str, source_row: Int[np.ndarray, " n"]) -> np.ndarray:
    """Give every row of a source a number of its own, the same whenever it is exported.

    An odd factor permutes the 64-bit numbers, so that no two rows of a table share one.
    """
    start = int.from_bytes(hashlib.sha256(table_sha256.encode()).digest()[:8], "little")
    return source_row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
