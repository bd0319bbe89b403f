"""The order in which particles are seen: a pure function of (seed, epoch), whoever reads them.

Chunks (a few dozen neighbouring images, the unit of reading) are permuted over the whole store, grouped into read
blocks, and rows are permuted inside a block.  Ray Data and the plain loader read the same blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

CHUNKS_A_BLOCK = 16
ROWS_A_SLICE = 500_000
_SPLIT, _CHUNKS, _ROWS, _HALVES = 0, 1, 2, 3  # separate random streams


@dataclass(frozen=True)
class Block:
    """Chunks that are read together, and the seed of their rows' order."""

    chunks: tuple[int, ...]
    seed: tuple[int, ...]

    def permutation(self, num_rows: int) -> Integer[np.ndarray, " num_rows"]:
        """Order of the block's rows."""
        return np.random.default_rng(self.seed).permutation(num_rows)


@dataclass(frozen=True)
class ParticleOrder:
    """Split and order of a store with `num_chunks` chunks.

    Attributes
    ----------
    slices_per_epoch
        An epoch is read in this many parts; slice s belongs to epoch s // slices_per_epoch.
    half_set
        1 or 2: only one half of the chunks is there, which is the same half whatever the seed; None: all of them.
    """

    num_particles: int
    chunk_size: int
    seed: int
    val_fraction: float
    slices_per_epoch: int
    half_set: int | None = None

    @property
    def num_chunks(self) -> int:
        """Chunks of the store, the last of which may be short."""
        return -(-self.num_particles // self.chunk_size)

    def chunks(self) -> Integer[np.ndarray, " chunks"]:
        """Chunks that there are, ascending."""
        if self.half_set is None:
            return np.arange(self.num_chunks)
        drawn = np.random.default_rng((0, _HALVES)).permutation(self.num_chunks)
        return np.sort(np.array_split(drawn, 2)[self.half_set - 1])

    def val_chunks(self) -> Integer[np.ndarray, " chunks"]:
        """Chunks held out for validation, ascending."""
        chunks = self.chunks()
        count = round(self.val_fraction * len(chunks))
        if self.val_fraction > 0:
            count = min(max(count, 1), len(chunks) - 1)
        rng = np.random.default_rng((self.seed, _SPLIT))
        return np.sort(rng.permutation(chunks)[:count])

    def train_chunks(self) -> Integer[np.ndarray, " chunks"]:
        """All other chunks, ascending."""
        return np.setdiff1d(self.chunks(), self.val_chunks())

    def slice_blocks(self, slice_index: int) -> list[Block]:
        """List what is read, in order, in one slice of training."""
        epoch, part = divmod(slice_index, self.slices_per_epoch)
        chunks = np.random.default_rng((self.seed, _CHUNKS, epoch)).permutation(self.train_chunks())
        mine = np.array_split(chunks, self.slices_per_epoch)[part]
        starts = range(0, len(mine), CHUNKS_A_BLOCK)
        return [Block(tuple(mine[i : i + CHUNKS_A_BLOCK].tolist()), (self.seed, _ROWS, slice_index, i)) for i in starts]

    def rows_of(self, chunk: int) -> slice:
        """Rows of the store in a chunk."""
        return slice(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, self.num_particles))

    def num_rows(self, chunks: Integer[np.ndarray, " chunks"] | tuple[int, ...]) -> int:
        """Rows in several chunks."""
        return int(sum(rows.stop - rows.start for rows in map(self.rows_of, chunks)))


def default_slices(num_particles: int) -> int:
    """Slices an epoch when the user does not say: one for every 500,000 particles."""
    return max(1, round(num_particles / ROWS_A_SLICE))
