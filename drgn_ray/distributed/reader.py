"""The store as a Ray Data source whose every execution is the next slice of training.

Ray plans a dataset anew at each execution, and counts executions; the source turns the count into a slice.  The
count is private to Ray, so every row also carries its slice, and the worker checks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np
import ray
from ray.data import DataIterator
from ray.data.block import Block as ArrowBlock
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import Datasource, ReadTask
from torch import Tensor

from drgn_ray.distributed.cluster import resource_picture
from drgn_ray.errors import ResourceError
from drgn_ray.particles.loader import Rows, read_block, rebatch
from drgn_ray.particles.order import Block, ParticleOrder
from drgn_ray.particles.store import ParticleStore, reopen

T = TypeVar("T")
SLICE_COLUMN = "slice"
CPUS_OF_READING = 0.5  # of a task: what workers leave of each machine has room for one (`trainer.SLIVER`)
WAIT_SECONDS = 300.0  # for a block, whose reading takes one
_COLUMN_BYTES = 128  # a row without its image, roughly


class SliceSource(Datasource):
    """Blocks of the slice `first_slice` + number of executions so far.

    Parameters
    ----------
    store_path
        Opened again by every read task.
    image_bytes
        Bytes of one stored image.
    """

    def __init__(self, store_path: str, order: ParticleOrder, first_slice: int, image_bytes: int) -> None:
        super().__init__()
        self.store_path, self.order, self.first_slice = store_path, order, first_slice
        self.row_bytes = image_bytes + _COLUMN_BYTES

    def get_name(self) -> str:
        """Name in Ray's logs."""
        return "Particles"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of a slice."""
        return self.row_bytes * self.order.num_rows(self.order.train_chunks()) // self.order.slices_per_epoch

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task a block of the slice."""
        del parallelism  # blocks are already of a good size
        executions = 0 if data_context is None else data_context._execution_idx
        slice_index = self.first_slice + executions
        tasks = []
        for block in self.order.slice_blocks(slice_index):
            rows = self.order.num_rows(block.chunks)
            metadata = BlockMetadata(num_rows=rows, size_bytes=rows * self.row_bytes, input_files=None, exec_stats=None)
            read = _reader(self.store_path, self.order, block, slice_index)
            tasks.append(ReadTask(read, metadata, per_task_row_limit=per_task_row_limit))
        return tasks


@lru_cache(maxsize=4)
def _opened(store_path: str) -> ParticleStore:
    """Open a store once a process: its files are listed and its columns read at the first task only."""
    return reopen(store_path)


def _reader(store_path: str, order: ParticleOrder, block: Block, slice_index: int):
    def read() -> Iterator[ArrowBlock]:
        rows = read_block(_opened(store_path), order, block)
        rows[SLICE_COLUMN] = np.full(len(rows["images"]), slice_index)
        yield BlockAccessor.batch_to_arrow_block(rows)

    return read


def slice_dataset(store: ParticleStore, order: ParticleOrder, first_slice: int) -> ray.data.Dataset:
    """Make a dataset whose n-th execution is slice `first_slice` + n."""
    image_bytes = store.info.box_size**2 * np.dtype(store.info.dtype).itemsize
    source = SliceSource(store.path, order, first_slice, image_bytes)
    return ray.data.read_datasource(source, ray_remote_args={"num_cpus": CPUS_OF_READING})


def stream_batches(shard: DataIterator, slice_index: int, batch_size: int) -> Iterator[Mapping[str, Tensor]]:
    """Yield the worker's batches of a slice; the last may be short, on all workers alike."""
    return rebatch(_blocks(shard, slice_index), batch_size)


def _blocks(shard: DataIterator, slice_index: int) -> Iterator[Rows]:
    """Blocks as Ray read them: it cuts batches at several times the cost."""
    whole = shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)  # type: ignore[arg-type]
    for block in in_time(iter(whole), WAIT_SECONDS):
        rows = {str(name): np.array(values) for name, values in block.items()}  # Ray's are read-only
        slices = rows.pop(SLICE_COLUMN)
        assert (slices == slice_index).all(), f"Ray Data gave slice {np.unique(slices)} instead of {slice_index}"
        yield rows


def in_time(blocks: Iterator[T], seconds: float) -> Iterator[T]:
    """Pass blocks on; Ray Data waits for a free CPU for ever, and without a word.

    Raises
    ------
    ResourceError
        The next one did not come within so many seconds.
    """
    reading = ThreadPoolExecutor(1)
    try:
        while (block := reading.submit(next, blocks, None).result(seconds)) is not None:
            yield block
    except TimeoutError as error:
        found = f"no particles came in {seconds:g} s; {resource_picture()}"
        remedy = "give the same command again when a CPU is free for reading, or pass fewer workers"
        raise ResourceError("Ray Data", found, remedy) from error
    finally:
        reading.shutdown(wait=False)
