"""Reading blocks of particles, and the plain stream of batches for one process without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from drgn_ray.errors import StoreError
from drgn_ray.particles.order import Block, ParticleOrder
from drgn_ray.particles.store import ParticleStore

Rows = dict[str, Shaped[np.ndarray, "n *row"]]


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
    return rebatch(_read_ahead(store, order, blocks), batch_size)


def stream_rows(store: ParticleStore, chunks: Iterable[int], batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of given chunks in the order of the store."""
    return rebatch((store.read(store.chunk_rows(chunk)) for chunk in chunks), batch_size)


def rebatch(parts: Iterable[Rows], batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Cut a sequence of rows into batches; nothing is dropped."""
    rest: Rows | None = None
    for part in parts:
        rows = part if rest is None else {name: np.concatenate([rest[name], part[name]]) for name in part}
        count = len(rows["images"])
        whole = count - count % batch_size
        for start in range(0, whole, batch_size):
            yield to_batch({name: values[start : start + batch_size] for name, values in rows.items()})
        rest = {name: values[whole:] for name, values in rows.items()} if whole < count else None
    if rest is not None:
        yield to_batch(rest)


def _read_ahead(store: ParticleStore, order: ParticleOrder, blocks: list[Block]) -> Iterator[Rows]:
    """Read the next block while the last one is in use."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = (pool.submit(read_block, store, order, block) for block in blocks)
        waiting = next(ahead, None)
        for following in chain(ahead, [None]):
            if waiting is None:
                return
            yield waiting.result()
            waiting = following


def refuse_not_finite(store: ParticleStore, batch: Mapping[str, Tensor]) -> None:
    """Refuse images that hold values that are no numbers, of which one would spoil every sum."""
    finite = batch["images"].float().sum(dim=(1, 2)).isfinite()
    if not finite.all():
        row = int(batch["source_row"][~finite][0])
        raise StoreError(store.path, "this image holds values that are no numbers", "leave it out with --ind", row)
