"""What every input format is turned into before images are read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped

from conversions import mrcs
from drgn_ray.errors import ParticleFileError


@dataclass(frozen=True)
class ParticleTable:
    """Particles of one source: where each image is, and its columns.

    Attributes
    ----------
    source
        The file the user named.
    stacks
        Image files.
    stack_of, index_of
        For every particle its file and its 0-based image in it.
    columns
        Columns of `drgn_ray.particles.schema` for the original images (`apix` of the original).
    tables
        Original tables by name ("table" has one row a particle), written to the store untouched.
    box_size
        D of the original images, px.
    """

    source: str
    stacks: tuple[str, ...]
    stack_of: Int[np.ndarray, " N"]
    index_of: Int[np.ndarray, " N"]
    columns: dict[str, Shaped[np.ndarray, "N *row"]]
    tables: dict[str, pd.DataFrame]
    box_size: int
    has_ctf: bool

    def __len__(self) -> int:
        return len(self.stack_of)

    def checksum(self) -> str:
        """SHA-256 of all columns and of where every image is."""
        digest = hashlib.sha256()
        for name in sorted(self.columns):
            digest.update(np.ascontiguousarray(self.columns[name]).tobytes())
        for place in (self.stack_of, self.index_of, np.array(self.stacks)):
            digest.update(np.ascontiguousarray(place).tobytes())
        return digest.hexdigest()

    def select(self, rows: Int[np.ndarray, " n"]) -> ParticleTable:
        """Keep these rows, in this order."""
        kept = {name: frame for name, frame in self.tables.items()}
        kept["table"] = kept["table"].iloc[rows].reset_index(drop=True)
        return replace(
            self,
            stack_of=self.stack_of[rows],
            index_of=self.index_of[rows],
            columns={name: values[rows] for name, values in self.columns.items()},
            tables=kept,
        )


def check_stacks(
    source: str, stacks: tuple[str, ...], stack_of: Int[np.ndarray, " N"], index_of: Int[np.ndarray, " N"]
) -> int:
    """Check that every image is there and all have one box size; return it."""
    headers = [mrcs.read_header(path) for path in stacks]
    sizes = sorted({header.box_size for header in headers})
    if len(sizes) > 1:
        odd = next(h for h in headers if h.box_size != headers[0].box_size)
        raise ParticleFileError(
            source,
            f"its images have several box sizes ({', '.join(map(str, sizes))} px; {odd.path} has {odd.box_size})",
            "convert the optics groups one by one, or bring them to one box size and pixel size first",
        )
    counts = np.array([header.num_images for header in headers])
    bad = np.flatnonzero((index_of < 0) | (index_of >= counts[stack_of]))
    if len(bad):
        row = int(bad[0])
        header = headers[stack_of[row]]
        raise ParticleFileError(
            source,
            f"image number {index_of[row] + 1} is outside {header.path}, which holds {header.num_images} images",
            "use the stack this table was written for",
            row=row,
        )
    return sizes[0]


def check_values(source: str, columns: dict[str, Any]) -> None:
    """Refuse numbers that cannot be meant, naming the first row."""
    for name, values in columns.items():
        finite = np.isfinite(values.astype(np.float64)).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            raise ParticleFileError(
                source, f"{name} is {values[row]}, not a number", "remove or mend that row", row=row
            )
    for name, low, high, unit in (
        ("apix", 1e-3, 1e3, "Å/px"),
        ("voltage", 10, 2000, "kV"),
        ("defocus_u", -2e5, 2e6, "Å"),
        ("amplitude_contrast", 0, 1, ""),
    ):
        bad = np.flatnonzero((columns[name] < low) | (columns[name] > high))
        if len(bad):
            row = int(bad[0])
            raise ParticleFileError(
                source,
                f"{name} is {columns[name][row]:g} {unit}, outside {low:g} to {high:g}",
                "check the unit of that column",
                row=row,
            )
    apix = columns["apix"]
    if apix.max() > 1.01 * apix.min():
        row = int(np.argmax(apix))
        raise ParticleFileError(
            source,
            f"pixel sizes differ by more than 1% ({apix.min():g} to {apix.max():g} Å/px)",
            "convert the optics groups one by one, or bring them to one pixel size first",
            row=row,
        )
