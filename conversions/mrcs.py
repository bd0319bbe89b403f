"""MRC image stacks: headers checked, images read in long runs; local or remote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import dtype_from_mode

from conversions import files
from drgn_ray.errors import ParticleFileError

HEADER_BYTES = 1024
BIG_ENDIAN_STAMP = 0x11
BYTE_MODE = 0
IMOD_STAMP, IMOD_SIGNED_BYTES = 1146047817, 1
GAP_BYTES = 1 << 18  # a gap is read over where that is quicker than going to the next image
RUN_BYTES = 1 << 23  # of files in memory at a time


@dataclass(frozen=True)
class StackHeader:
    """What a stack holds and where its images start.

    Attributes
    ----------
    apix
        Å/px as the header says, which is often wrong; 0 where it does not say.
    file_bytes
        Length of the file.
    """

    path: str
    num_images: int
    box_size: int
    dtype: np.dtype
    offset: int
    apix: float
    file_bytes: int

    @property
    def image_bytes(self) -> int:
        """Bytes of an image in the file."""
        return self.box_size**2 * self.dtype.itemsize

    @property
    def is_cube(self) -> bool:
        """Whether it is as deep as wide, as a volume is."""
        return self.num_images == self.box_size

    @property
    def num_present(self) -> int:
        """Images that the file is long enough for, at most those the header says."""
        return min(max(self.file_bytes - self.offset, 0) // self.image_bytes, self.num_images)


def read_header(path: str) -> StackHeader:
    """Read and check a stack's header, and that all its images are there; a ``.mrc`` suffix is as good as ``.mrcs``."""
    stack = read_header_alone(path)
    if stack.num_present < stack.num_images:
        raise ParticleFileError(
            path,
            f"the file is cut short: its header says {stack.num_images} images, {stack.num_present} are there",
            "copy it again",
        )
    return stack


def read_header_alone(path: str) -> StackHeader:
    """Read and check a stack's header; its images may be fewer than it says."""
    files.check_file(path, "image file")
    size = files.describe(path)["bytes"]
    (first,) = files.read_ranges([(path, 0, min(HEADER_BYTES, size))])
    if len(first) < HEADER_BYTES:
        raise ParticleFileError(path, f"this is not an MRC stack ({len(first)} bytes)", "pass an .mrcs file")
    header = np.frombuffer(first, HEADER_DTYPE)[0]
    if header["machst"][0] == BIG_ENDIAN_STAMP:
        header = np.frombuffer(first, HEADER_DTYPE.newbyteorder(">"))[0]
    try:
        dtype = dtype_from_mode(header["mode"]).newbyteorder(header.dtype["mode"].byteorder)
    except ValueError as error:
        raise ParticleFileError(path, f"this is not an MRC stack ({error})", "pass an .mrcs file") from error
    nx, ny, nz, extra = (int(header[name]) for name in ("nx", "ny", "nz", "nsymbt"))
    if nx != ny or nx <= 0 or nx % 2 or nz <= 0:
        raise ParticleFileError(
            path, f"its header says {nz} images of {nx} x {ny} px", "images must be square with an even box size"
        )
    if dtype.kind not in "iuf":
        raise ParticleFileError(path, f"MRC mode {int(header['mode'])} is not a real image", "convert it to mode 2")
    if extra < 0:
        raise ParticleFileError(path, f"its header says an extended header of {extra} bytes", "pass an .mrcs file")
    if header["mode"] == BYTE_MODE and _has_unsigned_bytes(header):
        dtype = np.dtype(np.uint8)
    width = float(header["cella"]["x"])
    apix = width / nx if np.isfinite(width) and width > 0 else 0.0
    return StackHeader(path, nz, nx, dtype, HEADER_BYTES + extra, apix, size)


def _has_unsigned_bytes(header: np.void) -> bool:
    """Whether IMOD wrote these bytes unsigned; MRC2014 says they are signed (IMOD's mrc_format, imodStamp and flags).

    The two words are the 4-byte integers at bytes 152 and 156, in the part of the header that MRC2014 leaves free.
    """
    extra = header.tobytes()
    stamp, flags = np.frombuffer(extra, header.dtype["mode"].str, 2, offset=152)
    return stamp == IMOD_STAMP and not flags & IMOD_SIGNED_BYTES


class _Run(NamedTuple):
    """Images that are read in one go: their places in the output, and the bytes of the file from first to last."""

    places: Int[np.ndarray, " n"]
    stack: StackHeader
    start: int
    end: int


def read_images(
    stacks: Sequence[StackHeader], stack_of: Int[np.ndarray, " n"], index_of: Int[np.ndarray, " n"]
) -> Float32[np.ndarray, "n D D"]:
    """Images of stacks of one box size, float32, in the order asked for.

    Neighbours in a file are read in one go, and so are images with small gaps between them.
    """
    sides = {stacks[stack].box_size for stack in np.unique(stack_of)}
    assert len(sides) == 1, sides
    side = sides.pop()
    images = np.empty((len(index_of), side, side), np.float32)
    for runs in _at_once(_runs(stacks, stack_of, index_of)):
        contents = files.read_ranges([(run.stack.path, run.start, run.end) for run in runs])
        for run, content in zip(runs, contents, strict=True):
            if len(content) != run.end - run.start:
                raise ParticleFileError(run.stack.path, "the file became shorter while it was read", "copy it again")
            values = np.frombuffer(content, run.stack.dtype).reshape(-1, side, side)
            index = index_of[run.places]
            images[run.places] = values[index - index[0]]
    return images


def _runs(
    stacks: Sequence[StackHeader], stack_of: Int[np.ndarray, " n"], index_of: Int[np.ndarray, " n"]
) -> Iterator[_Run]:
    """List what is read in one go, in the order of the files."""
    order = np.asarray(np.lexsort((index_of, stack_of)))
    for places in np.split(order, np.flatnonzero(np.diff(stack_of[order])) + 1):
        stack = stacks[int(stack_of[places[0]])]
        index = index_of[places]
        longest = max(RUN_BYTES // stack.image_bytes, 1)
        is_far = np.diff(index) - 1 > GAP_BYTES // stack.image_bytes
        is_full = np.diff(index // longest) != 0
        for run in np.split(places, np.flatnonzero(is_far | is_full) + 1):
            first, last = int(index_of[run[0]]), int(index_of[run[-1]])
            start = stack.offset + first * stack.image_bytes
            yield _Run(run, stack, start, start + (last + 1 - first) * stack.image_bytes)


def _at_once(runs: Iterable[_Run]) -> Iterator[list[_Run]]:
    """Group runs that are in memory, and asked for, at the same time."""
    group: list[_Run] = []
    size = 0
    for run in runs:
        if group and size + run.end - run.start > RUN_BYTES:
            yield group
            group, size = [], 0
        group.append(run)
        size += run.end - run.start
    yield group
