"""What every input format is turned into before images are read, and what a format has to answer for that."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, Shaped

from conversions.mrcs import StackHeader
from drgn_ray.errors import ConfigError, ParticleFileError
from drgn_ray.particles.schema import COLUMN
from drgn_ray.physics.observation import CTF_COLUMNS

CTF_OF_SOURCE = tuple(name for name in CTF_COLUMNS if name != "apix")
logger = logging.getLogger(__name__)
MANY_SEEKS = 10_000  # a minute or two of them, on a slow disk
SAME_APIX = 1e-4  # relative; such pixel sizes differ by rounding alone
Columns = dict[str, Shaped[np.ndarray, " N *row"]]


class Locations(NamedTuple):
    """For every particle its stack (by number) and its 0-based image in it."""

    stacks: tuple[str, ...]
    stack_of: Int[np.ndarray, " N"]
    index_of: Int[np.ndarray, " N"]


class Source(Protocol):
    """What a format says of its particles; a question that it has no answer to raises `ParticleFileError`."""

    @property
    def path(self) -> str:
        """The file the user named."""
        ...

    @property
    def files(self) -> tuple[str, ...]:
        """Tables that were read, for the record in the store."""
        ...

    @property
    def tables(self) -> dict[str, pa.Table]:
        """Original tables by name ("table" has one row a particle), kept in the store untouched."""
        ...

    @property
    def protein_is_white(self) -> bool | None:
        """What the file says of the contrast; None if nothing."""
        ...

    @property
    def assumptions(self) -> list[str]:
        """What was taken for granted in answering so far, where the file does not say."""
        ...

    def __len__(self) -> int: ...

    def check_raw(self) -> None:
        """Refuse images of which the file says that they were multiplied by their CTF or phase-flipped."""
        ...

    def images_named(self, rows: Int[np.ndarray, " n"]) -> Locations:
        """Read where the images of some rows are, with stacks as the file names them."""
        ...

    def locations(self, rows: Int[np.ndarray, " n"]) -> Locations:
        """Find the images of some rows."""
        ...

    def pixel_size(self) -> Float[np.ndarray, " N"]:
        """Read Å/px of the images."""
        ...

    def box_sizes(self) -> Float[np.ndarray, " N"] | None:
        """Read the box size that the file says its images have, px; None if it does not."""
        ...

    def rotation(self) -> Float[np.ndarray, "N 3 3"]:
        """Read rotation matrices."""
        ...

    def translation(self, apix: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
        """Read shifts, Å."""
        ...

    def ctf_column(self, name: str) -> Float[np.ndarray, " N"]:
        """Read one of the columns `CTF_OF_SOURCE`."""
        ...

    def aberrations(self) -> list[str]:
        """Name what the file says of the optics that no part of drgn_ray models."""
        ...

    def labels(self) -> Columns:
        """Read half set, optics group, particle, tilt index, dose and CTF damping, so far as they are there."""
        ...


class Sampling(NamedTuple):
    """Box size (px) and pixel size (Å) of images."""

    box_size: int
    apix: float

    @property
    def extent(self) -> float:
        """Width, Å."""
        return self.box_size * self.apix


def find_samplings(
    box_sizes: Int[np.ndarray, " N"], apix: Float[np.ndarray, " N"]
) -> tuple[tuple[Sampling, ...], Int[np.ndarray, " N"]]:
    """List the different box and pixel sizes, the most frequent first, and the number in the list of every image."""
    ordered = np.sort(apix)
    steps = np.flatnonzero(np.diff(ordered) > SAME_APIX * ordered[:-1])
    level = np.searchsorted(ordered[steps], apix, side="left")
    pairs, first, group, counts = np.unique(
        np.stack([box_sizes, level], -1), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    found = tuple(Sampling(int(pairs[i, 0]), float(apix[first[i]])) for i in order)
    return found, np.argsort(order)[group.ravel()]


def largest_sampling(samplings: tuple[Sampling, ...]) -> Sampling:
    """Find box and pixel size that all images can be brought to without inventing anything.

    It is as wide as the narrowest image and as coarse as the coarsest; 0 px where these exclude each other.
    """
    if len(samplings) == 1:
        return samplings[0]
    extent = min(sampling.extent for sampling in samplings)
    coarsest = max(sampling.apix for sampling in samplings)
    box_size = math.floor(extent / coarsest * (1 + 1e-6) / 2) * 2
    return Sampling(box_size, extent / box_size if box_size else coarsest)


@dataclass(frozen=True)
class ParticleTable:
    """Particles of one source: where each image is, and its columns.

    Attributes
    ----------
    source, files, tables, protein_is_white
        As in `Source`, of the rows kept.
    stacks
        Headers of the image files.
    stack_of, index_of
        As in `Locations`.
    columns
        Columns of `drgn_ray.particles.schema` for the original images (`apix` of the original).
    samplings, sampling_of
        Box and pixel sizes of the whole table, and for every particle the number of its own (`find_samplings`).
    num_source_rows
        Rows of the source before any were chosen.
    in_file_order
        Whether rows were put in the order of their files.
    """

    source: str
    files: tuple[str, ...]
    stacks: tuple[StackHeader, ...]
    stack_of: Int[np.ndarray, " N"]
    index_of: Int[np.ndarray, " N"]
    columns: Columns
    tables: dict[str, pa.Table]
    samplings: tuple[Sampling, ...]
    sampling_of: Int[np.ndarray, " N"]
    num_source_rows: int
    has_ctf: bool
    protein_is_white: bool | None = None
    in_file_order: bool = False

    def __len__(self) -> int:
        return len(self.stack_of)

    @cached_property
    def box_sizes(self) -> Int[np.ndarray, " N"]:
        """D of every original image, px."""
        return np.array([stack.box_size for stack in self.stacks])[self.stack_of]

    def sampling_at(self, box_size: int | None) -> Sampling:
        """Find the pixel size of a store of these images with a box size; None keeps all that the images hold."""
        largest = largest_sampling(self.samplings)
        if largest.box_size < 2:
            listed = ", ".join(f"{sampling.box_size} px of {sampling.apix:g} Å" for sampling in self.samplings)
            raise ParticleFileError(
                self.source, f"its images have no size in common ({listed})", "convert the optics groups one by one"
            )
        box_size = largest.box_size if box_size is None else box_size
        if box_size % 2 or not 2 <= box_size <= largest.box_size:
            raise ConfigError(
                f"-D {box_size}",
                f"the images of {self.source} hold {largest.box_size} px",
                f"pass an even number up to {largest.box_size}",
            )
        return Sampling(box_size, largest.extent / box_size)

    def checksum(self) -> str:
        """SHA-256 of all columns and of where every image is."""
        digest = hashlib.sha256()
        for name in sorted(self.columns):
            digest.update(np.ascontiguousarray(self.columns[name]).tobytes())
        for place in (self.stack_of, self.index_of, np.array([stack.path for stack in self.stacks])):
            digest.update(np.ascontiguousarray(place).tobytes())
        return digest.hexdigest()

    def take(self, rows: Int[np.ndarray, " n"]) -> ParticleTable:
        """Keep these rows, in this order."""
        return replace(
            self,
            stack_of=self.stack_of[rows],
            index_of=self.index_of[rows],
            sampling_of=self.sampling_of[rows],
            columns={name: values[rows] for name, values in self.columns.items()},
            tables={**self.tables, "table": self.tables["table"].take(rows)},
        )

    def in_order_of_files(self) -> ParticleTable:
        """Put rows in the order of the images in their files, where that saves many seeks; else keep their order.

        Tables are mostly in that order; one that was shuffled would be read image by image.  Rows that the user chose
        in an order of her own stay in it.
        """
        if (np.diff(self.columns["source_row"]) < 0).any():
            return self
        order = np.lexsort((self.index_of, self.stack_of))
        saved = self._seeks(np.arange(len(self))) - self._seeks(order)
        if saved < MANY_SEEKS:
            return self
        logger.info("%s: its rows are shuffled; they are stored in the order of the image files", self.source)
        return replace(self.take(order), in_file_order=True)

    def _seeks(self, order: Int[np.ndarray, " N"]) -> int:
        follows = (np.diff(self.stack_of[order]) == 0) & (np.diff(self.index_of[order]) >= 0)
        return int((~follows).sum())

    def images_of(self, rows: Int[np.ndarray, " n"]) -> ParticleTable:
        """Only what reading the images of these rows needs, so that a task carries kilobytes."""
        used, stack_of = np.unique(self.stack_of[rows], return_inverse=True)
        return replace(
            self,
            stacks=tuple(self.stacks[stack] for stack in used),
            stack_of=stack_of,
            index_of=self.index_of[rows],
            sampling_of=self.sampling_of[rows],
            columns={"source_row": self.columns["source_row"][rows]},
            tables={},
        )


def check_images(source: str, table: ParticleTable) -> None:
    """Check that every image is in its stack."""
    counts = np.array([stack.num_images for stack in table.stacks])
    bad = np.flatnonzero((table.index_of < 0) | (table.index_of >= counts[table.stack_of]))
    if len(bad):
        stack = table.stacks[table.stack_of[bad[0]]]
        raise ParticleFileError(
            source,
            f"image number {table.index_of[bad[0]] + 1} is outside {stack.path}, which holds {stack.num_images} images",
            "use the stack this table was written for",
            row=int(table.columns["source_row"][bad[0]]),
        )


def num_repeated_images(table: ParticleTable) -> int:
    """Count the rows whose image another row has already."""
    order = np.lexsort((table.index_of, table.stack_of))
    same = (np.diff(table.stack_of[order]) == 0) & (np.diff(table.index_of[order]) == 0)
    return int(same.sum())


def check_box_sizes(source: str, table: ParticleTable, said: Float[np.ndarray, " N"]) -> None:
    """Refuse images of another box size than their table was written for: its pixel size would be wrong."""
    bad = np.flatnonzero(said != table.box_sizes)
    if len(bad):
        stack = table.stacks[table.stack_of[bad[0]]]
        raise ParticleFileError(
            source,
            f"it says {said[bad[0]]:g} px, but the images of {stack.path} have {stack.box_size}",
            "pass --apix with the Å/px of these images, or use the table that belongs to them",
            row=int(table.columns["source_row"][bad[0]]),
        )


_RANGES = (
    ("apix", 1e-3, 1e3, "Å/px"),
    ("voltage", 10, 2000, "kV"),
    ("cs", 0, 100, "mm"),
    ("defocus_u", -2e5, 2e6, "Å"),
    ("defocus_v", -2e5, 2e6, "Å"),
    ("amplitude_contrast", 0, 1, ""),
    ("half_set", 0, 2, ""),
)


def check_values(source: str, columns: Columns) -> None:
    """Refuse numbers that cannot be meant, naming the first row."""
    row_of = columns["source_row"]
    for name, values in columns.items():
        dtype = COLUMN[name].dtype
        with np.errstate(over="ignore", invalid="ignore"):
            stored = values.astype(dtype)
        is_good = np.isfinite(stored) if stored.dtype.kind == "f" else stored == values
        bad = np.flatnonzero(~is_good.reshape(len(values), -1).all(axis=1))
        if len(bad):
            value = values[bad[0]]
            what = f"which {dtype} does not hold" if np.isfinite(value).all() else "not a number"
            raise ParticleFileError(
                source, f"{name} is {value}, {what}", "remove or mend that row", row=int(row_of[bad[0]])
            )
    for name, low, high, unit in _RANGES:
        if name not in columns:
            continue
        bad = np.flatnonzero((columns[name] < low) | (columns[name] > high))
        if len(bad):
            raise ParticleFileError(
                source,
                f"{name} is {columns[name][bad[0]]:g} {unit}, outside {low:g} to {high:g}",
                "check the unit of that column",
                row=int(row_of[bad[0]]),
            )


def no_ctf_columns(count: int) -> Columns:
    """Columns of images without CTF."""
    return {name: np.full(count, 300.0 if name == "voltage" else 0.0) for name in CTF_OF_SOURCE}


def single_particles(count: int) -> Columns:
    """Labels of particles of which nothing is known: each seen once, undamped, in no half set."""
    return {
        "half_set": np.zeros(count),
        "optics_group": np.ones(count),
        "particle": np.arange(count),
        "tilt_index": np.zeros(count),
        "dose": np.zeros(count),
        "ctf_scalefactor": np.ones(count),
        "ctf_bfactor": np.zeros(count),
    }
