"""cryoSPARC's ``.cs`` tables, in NumPy's format and in CSDAT (cryoSPARC 5), as structured arrays.

`cryosparc-tools`, the reference, crashes the process on damaged CSDAT files, so its reader is not used; the tests hold
this one against it.
"""

from __future__ import annotations

import io
import json
import math
import struct
from typing import Any

import lz4.block
import numpy as np
import pyarrow as pa

from conversions import files
from drgn_ray.errors import ParticleFileError

NUMPY_MAGIC, CSDAT_MAGIC = b"\x93NUMPY", b"\x95CSDAT"
_DTYPE = "drgn_ray.dtype"
_LARGEST_HEADER = 1 << 24
_LONGEST_TEXT = 4096  # bytes, as of a path; each row gets as many as the longest
_SCALARS = "iufb"
_KINDS = f"{_SCALARS}SU"


def read_cs(path: str) -> np.ndarray:
    """Read a table: one field a column, some of them vectors; text as bytes (``S``)."""
    raw = files.read(path, ".cs file")
    try:
        if raw.startswith(NUMPY_MAGIC):
            table = np.load(io.BytesIO(raw), allow_pickle=False, max_header_size=_LARGEST_HEADER)
        elif raw.startswith(CSDAT_MAGIC):
            table = _read_csdat(raw)
        else:
            raise ValueError(f"it begins with {raw[:6]!r}")
    except Exception as error:
        shown = " ".join(str(error).split())[:200]
        raise ParticleFileError(path, f"this is not a cryoSPARC table ({shown})", "pass a .cs file") from error
    if not table.dtype.names or not table.dtype.itemsize or table.ndim != 1:
        raise ParticleFileError(path, "this array has no named columns", "pass a .cs file")
    if not len(table):
        raise ParticleFileError(path, "the table is empty", "pass a .cs file with particles")
    for name in table.dtype.names:
        each = table.dtype[name].base
        if (
            each.kind not in _KINDS
            or not each.isnative
            or each.kind == "f"
            and each.itemsize > 8
            or not table[name].nbytes
        ):
            remedy = "pass the .cs file as cryoSPARC wrote it"
            raise ParticleFileError(path, f"{name} holds {each}, which cryoSPARC does not write", remedy)
    return table


def _read_csdat(raw: bytes) -> np.ndarray:
    """Parse magic, length and text of a JSON header, then every column (lz4 blocks), then the heap of strings."""
    position = len(CSDAT_MAGIC)

    def take(count: int) -> bytes:
        nonlocal position
        if position + count > len(raw):
            raise ValueError(f"cut short at byte {len(raw)}")
        position += count
        return raw[position - count : position]

    (size,) = struct.unpack("<I", take(4))
    header = json.loads(take(size))
    length = header["length"]
    if not isinstance(length, int) or not 0 <= length <= 1 << 32:
        raise ValueError(f"length {length!r}")
    packed = set(header["compressed_fields"])
    columns: dict[str, np.ndarray] = {}
    text: list[str] = []
    for name, kind, *shape in header["dtype"] if length else []:
        is_text = kind == "|O"
        dtype = np.dtype("<u8" if is_text else kind)
        if dtype.kind not in _SCALARS:
            raise ValueError(f"column {name} of type {kind}")
        dims = (length, *(int(n) for n in (shape[0] if shape else ())))
        if min(dims) < 1:
            raise ValueError(f"column {name} of shape {dims}")
        needed = math.prod(dims) * dtype.itemsize
        (size,) = struct.unpack("<I", take(4))
        content = take(size)
        if name in packed:
            if needed > 255 * size + 64:  # lz4 packs no denser
                raise ValueError(f"column {name} is too short")
            content = lz4.block.decompress(content, uncompressed_size=needed)
        if len(content) != needed:
            raise ValueError(f"column {name} has {len(content)} bytes, not {needed}")
        columns[name] = np.frombuffer(content, dtype).reshape(dims)
        text += [name] * is_text
    heap = raw[position:]
    for name in text:
        columns[name] = _strings(heap, columns[name])
    fields = [(name, values.dtype, values.shape[1:]) for name, values in columns.items()]
    table = np.zeros(length, fields)
    for name, values in columns.items():
        table[name] = values
    return table


def _strings(heap: bytes, offsets: np.ndarray) -> np.ndarray:
    """Look up zero-terminated strings."""
    starts, inverse = np.unique(offsets, return_inverse=True)
    if starts[-1] >= len(heap):
        raise ValueError(f"a string is said to be at {starts[-1]} of {len(heap)} bytes")
    words = [heap[start : start + _LONGEST_TEXT + 1].partition(b"\0")[0] for start in starts.tolist()]
    if max(map(len, words)) > _LONGEST_TEXT:
        raise ValueError(f"a text of more than {_LONGEST_TEXT} bytes")
    return np.array(words, dtype="S")[inverse]


def to_arrow(table: np.ndarray) -> pa.Table:
    """Turn a structured array into an Arrow table that `from_arrow` turns back exactly."""
    columns: dict[str, Any] = {}
    for name in table.dtype.names or ():
        values = np.ascontiguousarray(table[name])
        if values.ndim == 1:
            columns[name] = pa.array(values)
        else:
            width = int(np.prod(values.shape[1:]))
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
    dtype = json.dumps(table.dtype.descr)
    return pa.table(columns).replace_schema_metadata({_DTYPE: dtype})


def from_arrow(table: pa.Table) -> np.ndarray | None:
    """Turn the table of a store back into a structured array; None if it did not come from a ``.cs`` file."""
    dtype = json.loads((table.schema.metadata or {}).get(_DTYPE.encode(), b"null"))
    if dtype is None:
        return None
    fields = np.dtype([(name, kind, *(tuple(part) for part in shape)) for name, kind, *shape in dtype])
    rows = np.zeros(len(table), fields)
    for name in fields.names or ():
        column = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            rows[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(rows[name].shape)
        else:
            rows[name] = column.to_numpy(zero_copy_only=False)
    return rows


def write_cs(path: str, table: np.ndarray) -> None:
    """Write a table in NumPy's format, which every cryoSPARC reads."""
    filesystem, name = files.filesystem(path)
    with filesystem.open(name, "wb") as file:
        np.save(file, table, allow_pickle=False)
