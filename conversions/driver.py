"""Write a store from a particle table: measure a sample, then one task a shard."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from conversions import mrcs
from conversions.table import ParticleTable
from drgn_ray.distributed.tasks import run_tasks
from drgn_ray.errors import ConfigError, ParticleFileError, StoreError
from drgn_ray.particles import normalise
from drgn_ray.particles.store import ParticleStore, StoreInfo, StoreWriter
from drgn_ray.physics.fourier import fourier_crop
from drgn_ray.progress import Progress

logger = logging.getLogger(__name__)
READ_AT_ONCE = 64


class Options(NamedTuple):
    """How to write a store.

    Attributes
    ----------
    box_size
        D of the store, px; None keeps the source's.
    data_sign
        -1 or +1; None decides it from the data.
    """

    output: str
    box_size: int | None
    dtype: str
    data_sign: int | None
    overwrite: bool
    num_workers: int | None
    command: str


def convert(table: ParticleTable, options: Options) -> ParticleStore:
    """Write the store, or go on with one that was interrupted; return it opened."""
    box_size = _box_size(table, options)
    writer = StoreWriter(options.output)
    info = None if options.overwrite else writer.unfinished_info()
    if info is None:
        _check_output(writer, options)
        info = _plan(table, options, box_size)
        _create(writer, info, table)
    elif not _agrees(info, table, options, box_size):
        raise StoreError(
            options.output,
            f"an unfinished conversion with other settings or sources is here (`{info.command}`)",
            "finish that one with the same command, or pass --overwrite",
        )
    elif not writer.is_prepared:
        _create(writer, info, table)
    use = "inverted (times -1)" if info.data_sign < 0 else "as they are"
    logger.info("%s: %s; images are used %s", options.output, info.contrast, use)
    _write_shards(table, writer, info, options.num_workers)
    writer.finish()
    return ParticleStore(options.output)


def _check_output(writer: StoreWriter, options: Options) -> None:
    """Refuse to write where something else is."""
    if writer.is_free():
        return
    if not writer.is_store():
        raise StoreError(options.output, "something that is not a particle store is already here", "pass another -o")
    if not options.overwrite:
        raise StoreError(
            options.output, "a particle store is already here", "pass another -o, or --overwrite to replace it"
        )


def _create(writer: StoreWriter, info: StoreInfo, table: ParticleTable) -> None:
    columns = dict(table.columns)
    columns["apix"] = table.columns["apix"] * (table.box_size / info.box_size)
    try:
        writer.create(info, columns, table.tables)
    except OSError as error:
        raise StoreError(writer.path, f"no store can be made here ({error})", "pass another -o") from error


def _agrees(info: StoreInfo, table: ParticleTable, options: Options, box_size: int) -> bool:
    """Whether an unfinished store was begun from these particles with these options."""
    return (
        (info.table_sha256, info.box_size, info.dtype, info.has_ctf)
        == (table.checksum(), box_size, options.dtype, table.has_ctf)
        and info.sources == _describe_sources(table)
        and options.data_sign in (None, info.data_sign)
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread whoever runs it, since FFTs round otherwise with two; shards run in parallel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _box_size(table: ParticleTable, options: Options) -> int:
    box_size = table.box_size if options.box_size is None else options.box_size
    if box_size % 2 or not 2 <= box_size <= table.box_size:
        raise ConfigError(
            f"-D {box_size}",
            f"the images of {table.source} are {table.box_size} px",
            f"pass an even number up to {table.box_size}",
        )
    return box_size


@_one_thread()
def _plan(table: ParticleTable, options: Options, box_size: int) -> StoreInfo:
    """Measure the settings of the store on about 1,000 images: a function of the source alone."""
    rows = normalise.sample_rows(len(table))
    sample = torch.from_numpy(read_cropped(table, rows, box_size))
    scale = normalise.power_of_two_scale(sample)
    if options.data_sign is None:
        values = {name: torch.from_numpy(column[rows]).float() for name, column in table.columns.items()}
        values["apix"] = values["apix"] * (table.box_size / box_size)
        contrast = normalise.decide_contrast(sample, values, box_size=box_size, has_ctf=table.has_ctf)
    else:
        contrast = normalise.Contrast(options.data_sign, "said by the user")
    return StoreInfo(
        num_particles=len(table),
        box_size=box_size,
        apix=float(np.median(table.columns["apix"])) * table.box_size / box_size,
        dtype=options.dtype,
        scale=scale,
        hartley_std=normalise.hartley_std(sample) / scale,
        data_sign=contrast.data_sign,
        contrast=contrast.evidence,
        has_ctf=table.has_ctf,
        table_sha256=table.checksum(),
        sources=_describe_sources(table),
        command=options.command,
    )


def _describe_sources(table: ParticleTable) -> list[dict[str, object]]:
    described = []
    for path in dict.fromkeys((os.path.abspath(table.source), *table.stacks)):
        status = os.stat(path)
        described.append({"path": path, "bytes": status.st_size, "modified": status.st_mtime})
    if os.path.abspath(table.source) not in table.stacks:  # a stack may be of terabytes
        with open(table.source, "rb") as file:
            described[0]["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return described


def read_cropped(table: ParticleTable, rows: Int[np.ndarray, " n"], box_size: int) -> Float[np.ndarray, "n d d"]:
    """Images of these rows, Fourier-cropped, in the source's units; memory for a few dozen originals at a time."""
    cropped = np.empty((len(rows), box_size, box_size), np.float32)
    for start in range(0, len(rows), READ_AT_ONCE):
        part = rows[start : start + READ_AT_ONCE]
        images = _read_originals(table, part)
        cropped[start : start + len(part)] = fourier_crop(torch.from_numpy(images), box_size).numpy()
    return cropped


def _read_originals(table: ParticleTable, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n D D"]:
    images = np.empty((len(rows), table.box_size, table.box_size), np.float32)
    for stack in np.unique(table.stack_of[rows]):
        mine = np.flatnonzero(table.stack_of[rows] == stack)
        images[mine] = mrcs.read_images(table.stacks[stack], table.index_of[rows[mine]])
    bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2)))
    if len(bad):
        row = rows[bad[0]]
        raise ParticleFileError(
            table.source,
            f"image {table.index_of[row] + 1} of {table.stacks[table.stack_of[row]]} has pixels that are not numbers",
            "remove that particle",
            row=int(table.columns["source_row"][row]),
        )
    return images


@_one_thread()
def _write_shard(
    shard: int, *, part: ParticleTable, writer: StoreWriter, box_size: int, scale: float, dtype: str
) -> int:
    images = read_cropped(part, np.arange(len(part)), box_size) / scale
    with np.errstate(over="ignore"):  # what overflows is refused below
        stored = images.astype(dtype)
    if not np.isfinite(stored).all():
        raise ParticleFileError(part.source, f"pixels do not fit {dtype} (shard {shard})", "pass --dtype float32")
    writer.write_shard(shard, stored)
    return len(part)


def _write_shards(table: ParticleTable, writer: StoreWriter, info: StoreInfo, num_workers: int | None) -> None:
    pending = writer.pending_shards()
    done = len(table) - sum(len(writer.shard_rows(shard)) for shard in pending)
    if done:
        logger.info("%s: going on after %s of %s images", writer.path, f"{done:,}", f"{len(table):,}")
    settings = {"writer": StoreWriter(writer.path), "box_size": info.box_size, "scale": info.scale, "dtype": info.dtype}
    tasks = [
        partial(_write_shard, shard, part=_light(table.select(np.array(writer.shard_rows(shard)))), **settings)
        for shard in pending
    ]
    with Progress("convert", len(table) - done, "images") as progress:
        for count in run_tasks(tasks, num_workers=num_workers):
            progress.update(count)


def _light(table: ParticleTable) -> ParticleTable:
    """Only what reading images needs, so that a task carries kilobytes."""
    return ParticleTable(
        table.source,
        table.stacks,
        table.stack_of,
        table.index_of,
        {"source_row": table.columns["source_row"]},
        {"table": table.tables["table"].iloc[:0]},
        table.box_size,
        table.has_ctf,
    )
