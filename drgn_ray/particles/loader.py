"""Reading blocks of particles, and the plain stream of batches for one process without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from drgn_ray.errors import StoreError
from drgn_ray.particles.order import Block, ParticleOrder
from drgn_ray.particles.store import ParticleStore

Rows = dict[str, Shaped[np.ndarray, " n *row"]]
T = TypeVar("T")


def read_block(store: ParticleStore, order: ParticleOrder, block: Block) -> Rows:
    """Images and columns of a block, in the block's order."""
    parts = [store.read(order.rows_of(chunk)) for chunk in block.chunks]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    permutation = block.permutation(len(joined["images"]))
    return {name: values[permutation] for name, values in joined.items()}


def to_batch(rows: Rows) -> dict[str, Tensor]:
    """Torch tensors over the same memory."""
    return {name: torch.from_numpy(values) for name, values in rows.items()}


def stream_slice(
    store: ParticleStore, order: ParticleOrder, slice_index: int, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Batches of one slice of training, in order; the last may be short."""
    blocks = order.slice_blocks(slice_index)
    return rebatch(ahead(read_block(store, order, block) for block in blocks), batch_size)


def stream_rows(store: ParticleStore, chunks: Iterable[int], batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of given chunks in the order of the store."""
    return rebatch((store.read(store.chunk_rows(chunk)) for chunk in chunks), batch_size)


def rebatch(parts: Iterable[Rows], batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Cut a sequence of rows into batches; nothing is dropped."""
    rest: Rows | None = None
    for part in parts:
        start = 0
        if rest is not None:
            start = batch_size - len(rest["images"])
            rest = {name: np.concatenate([rest[name], part[name][:start]]) for name in part}
            if len(rest["images"]) < batch_size:
                continue
            yield to_batch(rest)
        count = len(part["images"])
        for at in range(start, count - batch_size + 1, batch_size):
            yield to_batch({name: values[at : at + batch_size] for name, values in part.items()})
        whole = start + max(count - start, 0) // batch_size * batch_size
        rest = {name: values[whole:] for name, values in part.items()} if whole < count else None
    if rest is not None:
        yield to_batch(rest)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Make the next item in a thread while the last one is in use."""
    end = object()
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(next, items, end)
        while (item := waiting.result()) is not end:
            waiting = pool.submit(next, items, end)
            yield cast("T", item)


def refuse_not_finite(store: ParticleStore, batch: Mapping[str, Tensor]) -> None:
    """Refuse images that hold values that are no numbers, of which one would spoil every sum."""
    finite = batch["images"].float().sum(dim=(1, 2)).isfinite()
    if not finite.all():
        row = int(batch["source_row"][~finite][0])
        raise StoreError(store.path, "this image holds values that are no numbers", "leave it out with --ind", row)
