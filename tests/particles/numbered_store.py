"""A store whose images say which row they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from drgn_ray.particles.schema import COLUMNS
from drgn_ray.particles.store import StoreInfo, StoreWriter

NUM_PARTICLES, BOX_SIZE, SHARD_ROWS = 1000, 8, 256
COMMAND = "drgn-ray convert numbered.star -o numbered.zarr"


def write_numbered(path: Path, shards: list[int] | None = None) -> StoreWriter:
    """Write a store, or some of its shards: every pixel of image i is i, and row i came from source row 2 i."""
    info = StoreInfo(
        num_particles=NUM_PARTICLES,
        box_size=BOX_SIZE,
        apix=2.0,
        dtype="float16",
        scale=1.0,
        hartley_std=1.0,
        data_sign=-1,
        contrast="said by the test",
        has_ctf=True,
        table_sha256="",
        sources=[],
        num_source_rows=2 * NUM_PARTICLES,
        in_file_order=False,
        command=COMMAND,
    )
    numbers = np.arange(NUM_PARTICLES)
    columns = {
        column.name: np.broadcast_to(
            numbers.reshape(-1, *[1] * len(column.shape)) % 100, (NUM_PARTICLES, *column.shape)
        )
        for column in COLUMNS
    }
    columns["source_row"] = 2 * numbers
    writer = StoreWriter(str(path))
    writer.create(info, columns, {"table": pa.table({"name": [f"particle {number}" for number in numbers]})})
    for shard in range(writer.num_shards) if shards is None else shards:
        rows = np.array(writer.shard_rows(shard), np.float16)
        writer.write_shard(shard, np.broadcast_to(rows[:, None, None], (len(rows), BOX_SIZE, BOX_SIZE)))
    return writer
