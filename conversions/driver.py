"""Write a store from a particle table: measure a sample, then one task a shard."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from conversions import files, mrcs
from conversions.table import SAME_APIX, ParticleTable, Sampling
from drgn_ray.distributed.tasks import is_cluster_there, run_tasks
from drgn_ray.errors import ParticleFileError, StoreError
from drgn_ray.particles import normalise
from drgn_ray.particles.store import ParticleStore, StoreInfo, StoreWriter
from drgn_ray.physics.fourier import fourier_crop, fourier_resample
from drgn_ray.progress import Progress

logger = logging.getLogger(__name__)
ROUNDING = 1e-6  # of the mean: a spread that is no more is none
LARGEST_MEAN = 100  # spreads: float16 then rounds by 2% of a spread
WORTH_STARTING_RAY = 32  # shards, 1 GiB; starting it takes as long as writing some dozens
READ_BYTES = 1 << 23  # of float32 originals in memory at a time


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
    """Write the store, or go on with one that was interrupted, or leave it if it is done; return it opened."""
    table = table.in_order_of_files()
    target = table.sampling_at(options.box_size)
    writer = StoreWriter(options.output)
    info = None if options.overwrite else writer.unfinished_info()
    if info is None:
        done = ParticleStore(options.output) if writer.is_store() and not options.overwrite else None
        if done is not None and _agrees(done.info, table, options, target):
            logger.info("%s: it is whole already, of these particles; nothing is converted again", options.output)
            return done
        _check_output(writer, options)
        info = _plan(table, options, target)
        _create(writer, info, table, target)
    elif not _agrees(info, table, options, target):
        raise StoreError(
            options.output,
            f"an unfinished conversion with other settings or sources is here (`{info.command}`)",
            "finish that one with the same command, or pass --overwrite",
        )
    elif not writer.is_prepared:
        _create(writer, info, table, target)
    use = "inverted (times -1)" if info.data_sign < 0 else "as they are"
    logger.info("%s: %s; images are used %s", options.output, info.contrast, use)
    _write_shards(table, writer, info, target, options.num_workers)
    try:
        writer.finish()
    except OSError as error:
        again = "mend that and give the same command again: all images are written"
        raise StoreError(options.output, f"it cannot be marked as whole ({error})", again) from error
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


def _create(writer: StoreWriter, info: StoreInfo, table: ParticleTable, target: Sampling) -> None:
    try:
        originals = {"source_box_size": table.box_sizes, "source_apix": table.columns["apix"]}
        writer.create(info, {**table.columns, **originals, "apix": _stored_apix(table, target)}, table.tables)
    except OSError as error:
        raise StoreError(writer.path, f"no store can be made here ({error})", "pass another -o") from error


def _stored_apix(table: ParticleTable, target: Sampling) -> Float[np.ndarray, " N"]:
    """Å/px of the stored images: each its own where all have one sampling but for rounding."""
    if len(table.samplings) == 1:
        return table.columns["apix"] * (table.samplings[0].box_size / target.box_size)
    return np.full(len(table), target.apix)


def _agrees(info: StoreInfo, table: ParticleTable, options: Options, target: Sampling) -> bool:
    """Whether a store was begun from these particles with these options."""
    return (
        (info.table_sha256, info.box_size, info.dtype, info.has_ctf)
        == (table.checksum(), target.box_size, options.dtype, table.has_ctf)
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


@_one_thread()
def _plan(table: ParticleTable, options: Options, target: Sampling) -> StoreInfo:
    """Measure the settings of the store on about 1,000 images: a function of the source alone."""
    rows = normalise.sample_rows(len(table))
    apix = _stored_apix(table, target)
    measured = normalise.measure(_batches(table.images_of(rows), target, table.samplings[0]), len(rows))
    if measured.pixel_std <= ROUNDING * abs(measured.pixel_mean):
        logger.warning(
            "%s: the %s images that were sampled are blank; extract them again", table.source, f"{len(rows):,}"
        )
    if options.dtype == "float16" and abs(measured.pixel_mean) > LARGEST_MEAN * measured.pixel_std:
        raise ParticleFileError(
            table.source,
            f"the mean of the pixels ({measured.pixel_mean:.4g}) is so far above their spread"
            f" ({measured.pixel_std:.4g}) that float16 would round the images away",
            "pass --dtype float32, or subtract the mean",
        )
    scale = normalise.power_of_two_scale(measured.pixel_std)
    if options.data_sign is None:
        values = {name: torch.from_numpy(column[rows]).float() for name, column in table.columns.items()}
        values["apix"] = torch.from_numpy(apix[rows]).float() * target.box_size / measured.small.shape[-1]
        contrast = normalise.decide_contrast(
            measured.small, values, has_ctf=table.has_ctf, protein_is_white=table.protein_is_white
        )
    else:
        contrast = normalise.Contrast(options.data_sign, "said by the user")
    return StoreInfo(
        num_particles=len(table),
        box_size=target.box_size,
        apix=float(np.median(apix)),
        dtype=options.dtype,
        scale=scale,
        hartley_std=measured.hartley_std / scale,
        data_sign=contrast.data_sign,
        contrast=contrast.evidence,
        has_ctf=table.has_ctf,
        table_sha256=table.checksum(),
        sources=_describe_sources(table),
        num_source_rows=table.num_source_rows,
        in_file_order=table.in_file_order,
        command=options.command,
    )


def _describe_sources(table: ParticleTable) -> list[dict[str, Any]]:
    """Files the store is made of; the stacks, which may be of terabytes, without a checksum."""
    tables = [files.describe(files.absolute(path), checksum=True) for path in table.files]
    return tables + files.at_the_same_time(files.describe, [stack.path for stack in table.stacks])


def read_cropped(table: ParticleTable, target: Sampling, reference: Sampling) -> Float[np.ndarray, "n d d"]:
    """Images of a table at the sampling of the store, in the source's units; all in memory.

    Parameters
    ----------
    reference
        The sampling whose grey values are kept; images of another are scaled so that white noise of unit variance has
        the same spectrum.
    """
    cropped = np.empty((len(table), target.box_size, target.box_size), np.float32)
    for rows, images in _batches(table, target, reference):
        cropped[rows] = images.numpy()
    return cropped


def _batches(
    table: ParticleTable, target: Sampling, reference: Sampling
) -> Iterator[tuple[Int[np.ndarray, " n"], Float[Tensor, "n d d"]]]:
    """Rows of a table and their images at the target sampling, a few at a time, in the order of the files."""
    order = np.lexsort((table.index_of, table.stack_of, table.sampling_of))
    for number, sampling in enumerate(table.samplings):
        mine = order[table.sampling_of[order] == number]
        step = max(1, READ_BYTES // (4 * sampling.box_size**2))
        for start in range(0, len(mine), step):
            rows = mine[start : start + step]
            images = torch.from_numpy(_read_originals(table, rows))
            if len(table.samplings) == 1 or math.isclose(sampling.extent, target.extent, rel_tol=SAME_APIX):
                images = fourier_crop(images, target.box_size)
            else:
                images = fourier_resample(images, sampling.apix, target.box_size, target.apix)
                images *= target.apix**2 / sampling.apix**2
            yield rows, images if sampling == reference else images * (sampling.apix / reference.apix)


def _read_originals(table: ParticleTable, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n D D"]:
    images = mrcs.read_images(table.stacks, table.stack_of[rows], table.index_of[rows])
    bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2)))
    if len(bad):
        row = rows[bad[0]]
        stack = table.stacks[table.stack_of[row]].path
        raise ParticleFileError(
            table.source,
            f"image {table.index_of[row] + 1} of {stack} has pixels that are not numbers",
            "remove that particle",
            row=int(table.columns["source_row"][row]),
        )
    return images


class ShardTask(NamedTuple):
    """One shard of the store: the images that go into it, and how; called in a process of its own."""

    shard: int
    part: ParticleTable
    target: Sampling
    reference: Sampling
    output: str
    info: StoreInfo

    @_one_thread()
    def __call__(self) -> int:
        """Write the shard; return its number of images."""
        side = self.info.box_size
        stored = torch.empty((len(self.part), side, side), dtype=getattr(torch, self.info.dtype))
        for rows, images in _batches(self.part, self.target, self.reference):
            pixels = (images / self.info.scale).to(stored.dtype)
            stored[torch.from_numpy(rows)] = pixels
            if not np.isfinite(pixels.numpy()).all():  # torch's own is ten times slower
                raise ParticleFileError(
                    self.part.source,
                    f"pixels do not fit {self.info.dtype} (shard {self.shard})",
                    "pass --dtype float32",
                )
        try:
            StoreWriter(self.output).write_shard(self.shard, stored.numpy())
        except OSError as error:
            raise StoreError(
                self.output,
                f"shard {self.shard} cannot be written ({error.strerror or error})",
                "mend that and give the same command again: it goes on where it was",
            ) from error
        return len(self.part)


def _write_shards(
    table: ParticleTable, writer: StoreWriter, info: StoreInfo, target: Sampling, num_workers: int | None
) -> None:
    pending = writer.pending_shards()
    done = len(table) - sum(len(writer.shard_rows(shard)) for shard in pending)
    if done:
        logger.info("%s: going on after %s of %s images", writer.path, f"{done:,}", f"{len(table):,}")
    light = replace(info, sources=[])
    tasks = (
        ShardTask(
            shard,
            table.images_of(np.array(writer.shard_rows(shard))),
            target,
            table.samplings[0],
            files.absolute(writer.path),
            light,
        )
        for shard in pending
    )
    if num_workers is None and len(pending) < WORTH_STARTING_RAY and not is_cluster_there():
        num_workers = 0
    with Progress("convert", len(table) - done, "images") as progress:
        for count in run_tasks(tasks, num_workers=num_workers):
            progress.update(count)
