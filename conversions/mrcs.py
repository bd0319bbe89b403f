"""MRC image stacks: headers checked, images read in long runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import dtype_from_mode

from drgn_ray.errors import ParticleFileError

HEADER_BYTES = 1024
BIG_ENDIAN_STAMP = 0x11


@dataclass(frozen=True)
class StackHeader:
    """What a stack holds and where its images start."""

    path: str
    num_images: int
    box_size: int
    dtype: np.dtype
    offset: int


@lru_cache(maxsize=4096)
def read_header(path: str) -> StackHeader:
    """Read and check a stack's header; a ``.mrc`` suffix is as good as ``.mrcs``."""
    if not os.path.isfile(path):
        raise ParticleFileError(path, "there is no such image file", "check the path, or pass --datadir")
    with open(path, "rb") as file:
        first = file.read(HEADER_BYTES)
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
    offset, needed = HEADER_BYTES + extra, nx * ny * nz * dtype.itemsize
    if os.path.getsize(path) < offset + needed:
        present = max(os.path.getsize(path) - offset, 0) // (nx * ny * dtype.itemsize)
        raise ParticleFileError(
            path, f"the file is cut short: its header says {nz} images, {present} are there", "copy it again"
        )
    return StackHeader(path, nz, nx, dtype, offset)


def read_images(path: str, indices: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n D D"]:
    """Images of a stack by 0-based index, float32; neighbours are read in one go."""
    header = read_header(path)
    side = header.box_size
    stack = np.memmap(path, header.dtype, "r", header.offset, (header.num_images, side, side))
    images = np.empty((len(indices), side, side), np.float32)
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    for first, last in zip([0, *breaks], [*breaks, len(indices)], strict=True):
        images[first:last] = stack[indices[first] : indices[first] + (last - first)]
    return images
