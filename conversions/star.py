"""STAR files as text: every value is kept as it is written, so that what is not changed comes back byte by byte.

The `starfile` package reads numbers as floats and writes six decimals, and loops over lines; this one hands each block
to pandas' parser.  It is the oracle of the tests.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from conversions import files
from drgn_ray.errors import ParticleFileError

ROWS_AT_ONCE = 100_000
RELION_31 = 30001
_BLOCK = re.compile(rb"^[ \t]*data_(\S*)[ \t]*(?:#.*)?$", re.MULTILINE)
_COMMENT = re.compile(rb"^[ \t]*#.*\n?", re.MULTILINE)
_VERSION = re.compile(rb"^[ \t]*#\s*version\s+(\d+)\s*$", re.MULTILINE)
_SINGLE_QUOTED = re.compile(rb"(?:^|\s)'", re.MULTILINE)
_TOO_MANY = "more values than columns"


@dataclass(frozen=True)
class StarBlock:
    """One ``data_`` block.

    Attributes
    ----------
    name
        What stands after ``data_``.
    table
        Columns of text; labels lack the underscore that begins them in the file.
    is_loop
        False for a block of label and value pairs, which is a table of one row.
    """

    name: str
    table: pa.Table
    is_loop: bool


@dataclass(frozen=True)
class StarFile:
    """All blocks in order, and RELION's version number where the file says it (30001 is 3.1)."""

    blocks: tuple[StarBlock, ...]
    version: int | None


def read_star_file(path: str) -> StarFile:
    """Read all blocks of a STAR file."""
    raw = files.read(path, "STAR file")
    if b"\0" in raw:
        raise ParticleFileError(path, "this is a binary file, not a STAR file", "pass a STAR file")
    if not raw.isascii():
        _check_utf8(path, raw)
    if b"\r" in raw:
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    heads = list(_BLOCK.finditer(raw))
    if not heads:
        raise ParticleFileError(path, "there is no line that begins with data_", "pass a STAR file")
    ends = [head.start() for head in heads[1:]] + [len(raw)]
    blocks = tuple(
        _read_block(path, raw, head.group(1).decode(), head.end(), end) for head, end in zip(heads, ends, strict=True)
    )
    version = _VERSION.search(raw)
    return StarFile(blocks, int(version.group(1)) if version else None)


def _check_utf8(path: str, raw: bytes) -> None:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ParticleFileError(
            path, f"line {line} holds the byte {raw[error.start]:#04x}, which is not UTF-8", "save the file as UTF-8"
        ) from error


def _read_block(path: str, raw: bytes, name: str, start: int, end: int) -> StarBlock:
    labels, values, body, is_loop = _read_head(raw, start, end)
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ParticleFileError(path, f"data_{name} has the column {twice} twice", "remove one of them")
    if not is_loop:
        return StarBlock(name, pa.table({label: [value] for label, value in zip(labels, values, strict=True)}), False)
    if not labels:
        raise ParticleFileError(path, f"data_{name} has a loop_ without columns", "check the file")
    return StarBlock(name, _read_rows(path, name, labels, raw[body:end]), True)


def _read_head(raw: bytes, start: int, end: int) -> tuple[list[str], list[str], int, bool]:
    """Labels, their values where they are pairs, where the rows begin, and whether the block is a loop."""
    labels: list[str] = []
    values: list[str] = []
    is_loop = False
    position = start
    while position < end:
        stop = raw.find(b"\n", position, end)
        stop = end if stop < 0 else stop
        words = raw[position:stop].split(None, 1)
        if not words or words[0].startswith(b"#"):
            pass
        elif words[0] == b"loop_" and not labels:
            is_loop = True
        elif words[0].startswith(b"_"):
            labels.append(words[0][1:].decode())
            rest = words[1].decode().strip() if len(words) > 1 else ""
            values.append(rest.strip("\"'") if rest[:1] in ('"', "'") else rest.split("#")[0].strip())
        else:
            return labels, values, position, is_loop
        position = stop + 1
    return labels, values, end, is_loop


def _read_rows(path: str, name: str, labels: list[str], body: bytes) -> pa.Table:
    if b"#" in body:
        body = _COMMENT.sub(b"", body)
    if not body.strip():
        return pa.table({label: pa.array([], pa.large_string()) for label in labels})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # of values too many, which are found below
            parts = [
                pa.Table.from_pandas(part, preserve_index=False)
                for part in pd.read_csv(
                    io.BytesIO(body),
                    sep=r"\s+",
                    header=None,
                    names=[*labels, _TOO_MANY],
                    index_col=False,
                    dtype=str,
                    na_filter=False,
                    quotechar="'" if b"'" in body and _SINGLE_QUOTED.search(body) else '"',
                    chunksize=ROWS_AT_ONCE,
                )
            ]
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        shown = " ".join(str(error).split())
        raise ParticleFileError(path, f"data_{name} cannot be read as a table ({shown})", "mend that line") from error
    table = pa.concat_tables(parts)
    may_be_empty = b'""' in body or b"''" in body
    for column, wrong, what in ((_TOO_MANY, True, "more"), (labels[-1], False, "fewer")):
        if what == "fewer" and may_be_empty:
            continue
        row = pc.index(pc.greater(pc.binary_length(table[column]), 0), pa.scalar(wrong)).as_py()
        if row >= 0:
            raise ParticleFileError(
                path, f"data_{name} has {what} values here than its {len(labels)} columns", "mend that row", row=row
            )
    return table.drop_columns(_TOO_MANY)


def text_table(columns: Mapping[str, Any]) -> pa.Table:
    """Write numbers as text, in the fewest digits that give them back."""
    return pa.table({name: pa.array(values).cast(pa.large_string()) for name, values in columns.items()})


def write_star_file(path: str, star: StarFile) -> None:
    """Write blocks as RELION does: a version line before each, columns numbered, values as they are."""
    filesystem, name = files.filesystem(path)
    with filesystem.open(name, "wb") as file:
        for block in star.blocks:
            for part in _block_bytes(block, star.version):
                file.write(part)


def _block_bytes(block: StarBlock, version: int | None) -> Iterator[bytes]:
    head = "" if version is None else f"\n# version {version}\n"
    yield f"{head}\ndata_{block.name}\n\n".encode()
    labels = block.table.column_names
    if not block.is_loop:
        (row,) = block.table.to_pylist()
        yield "".join(f"_{label} {_quoted(str(row[label]))}\n" for label in labels).encode() + b" \n"
        return
    yield ("loop_ \n" + "".join(f"_{label} #{number} \n" for number, label in enumerate(labels, 1))).encode()
    for batch in block.table.to_batches(ROWS_AT_ONCE):
        columns = [_quoted_column(column) for column in batch.columns]
        lines = pc.binary_join_element_wise(*columns, pa.scalar(" ", pa.large_string()))
        yield ("\n".join(lines.to_pylist()) + "\n").encode()
    yield b" \n"


_NEEDS_QUOTES = r"^$|\s|^[\"'#]"


def _quoted(value: str) -> str:
    return f'"{value}"' if re.search(_NEEDS_QUOTES, value) else value


def _quoted_column(column: pa.Array) -> pa.Array:
    text = column.cast(pa.large_string())
    needs = pc.match_substring_regex(text, _NEEDS_QUOTES)
    if not pc.any(needs).as_py():
        return text
    quote = pa.scalar('"', pa.large_string())
    return pc.if_else(needs, pc.binary_join_element_wise(quote, text, quote, pa.scalar("", pa.large_string())), text)
