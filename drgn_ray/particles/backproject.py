"""Back-projecting the particles of a store: which image goes where, with what weight, and the sums of a range of them.

Several volumes may be made in one pass over the images, each from two halves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from drgn_ray.particles.loader import refuse_not_finite, to_batch
from drgn_ray.particles.normalise import sample_rows
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.backproject import BackProjector
from drgn_ray.physics.ctf import compute_ctf
from drgn_ray.physics.gridding import Kernel
from drgn_ray.physics.observation import CTF_COLUMNS, DAMPING_COLUMNS, Observer
from drgn_ray.physics.symmetry import point_group

BATCH_SIZE = 256
FLUSH_IMAGES = 4_000  # images that are added up in float32 before the sums go to float64
_COLUMNS = ("rotation", "translation", *CTF_COLUMNS, *DAMPING_COLUMNS)


@dataclass(frozen=True)
class Method:
    """How images are back-projected.

    Attributes
    ----------
    sym
        Point group, see `drgn_ray.physics.symmetry`.
    like_cryodrgn
        As ``cryodrgn backproject_voxel``: its kernel, its window on the images, its shifts of D + 1 px a box.
    dose_per_tilt, angle_per_tilt
        e/Å² and degrees a tilt, which replace the doses of the store and turn its ranks into cosines of the tilt
        angle, for a dose-symmetric scheme (cryoDRGN-ET); None: the doses and scale factors of the store.
    """

    sym: str = "C1"
    like_cryodrgn: bool = False
    dose_per_tilt: float | None = None
    angle_per_tilt: float = 3.0


class Assignment(NamedTuple):
    """What the images of consecutive rows are for.

    Attributes
    ----------
    weight
        How much each image counts in each of V volumes.
    half
        0 or 1, the half map it belongs to.
    """

    weight: Float32[np.ndarray, "V n"]
    half: Int[np.ndarray, " n"]


class PartialSums(NamedTuple):
    """Sums of some images: for each volume and half, as in `drgn_ray.physics.gridding`."""

    num_images: int
    sums: Float32[np.ndarray, "V 2 S S H 3"]


def half_maps(
    columns: Mapping[str, np.ndarray], *, used: Bool[np.ndarray, " N"] | None = None, like_cryodrgn: bool = False
) -> Int[np.ndarray, " N"]:
    """Half (0 or 1) of every image: the half sets of the source where all have one, else every other particle.

    The images of one tilt series stay together; cryoDRGN puts every other image of the table into a half.

    Parameters
    ----------
    used
        Images that are back-projected at all, among which halves alternate; None: all.
    """
    num_images = len(columns["half_set"])
    used = np.ones(num_images, bool) if used is None else used
    half = np.zeros(num_images, np.int64)
    if like_cryodrgn:
        order = np.argsort(columns["source_row"])
        half[order] = (np.cumsum(used[order]) - 1) % 2
    elif has_half_sets(columns):
        half[:] = columns["half_set"] - 1
    else:
        _, particle = np.unique(columns["particle"][used], return_inverse=True)
        half[used] = particle % 2
    return half


def has_half_sets(columns: Mapping[str, np.ndarray]) -> bool:
    """Whether the source puts every image into one of two halves."""
    return set(np.unique(columns["half_set"])) == {1, 2}


def mean_squared_ctf(store: ParticleStore) -> Float[Tensor, " R"]:
    """Mean squared CTF of a sample of the store, the same for all tasks, at the radii 0 to D/2 along one axis."""
    size = store.info.box_size
    radius = torch.arange(size // 2 + 1)
    if not store.info.has_ctf:
        return torch.ones(len(radius))
    freq = torch.stack([radius / size, torch.zeros(len(radius))], dim=-1)
    rows = sample_rows(len(store))
    columns = {name: torch.from_numpy(store.columns[name][rows]) for name in CTF_COLUMNS}
    return (compute_ctf(freq, **columns) ** 2).mean(dim=0)


def accumulate(
    store_path: str, first_chunk: int, last_chunk: int, assignment: Assignment, method: Method
) -> PartialSums:
    """Back-project the images of a range of chunks.

    Needs the memory of the sums in float32 and in float64, whatever the number of images.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = ParticleStore(store_path)
    observer = _observer(store, method).to(device)
    symmetry = torch.from_numpy(point_group(method.sym)).float()
    kernel: Kernel = "cryodrgn" if method.like_cryodrgn else "trilinear"
    num_volumes = len(assignment.weight)
    of_ctf = mean_squared_ctf(store).to(device)
    projectors = [
        BackProjector(observer.half_disc, kernel=kernel, symmetry=symmetry, mean_squared_ctf=of_ctf)
        for _ in range(2 * num_volumes)
    ]
    totals = torch.stack([projector.sums for projector in projectors]).double()
    waiting = 0
    for rows, batch in _batches(store, first_chunk, last_chunk, assignment):
        seen = observer(_prepared(batch, store, method, device))
        for volume, half in np.ndindex(num_volumes, 2):
            weight = assignment.weight[volume, rows]
            mine = torch.from_numpy(np.flatnonzero((weight > 0) & (assignment.half[rows] == half)))
            if len(mine):
                chosen = mine.to(device)
                projectors[2 * volume + half].insert(
                    seen.coefficients[chosen],
                    seen.ctf[chosen],
                    seen.rotation[chosen],
                    torch.from_numpy(weight)[mine].to(device),
                )
        waiting += len(rows)
        if waiting >= FLUSH_IMAGES:
            _flush(projectors, totals)
            waiting = 0
    _flush(projectors, totals)
    sums = totals.float().cpu().numpy().reshape(num_volumes, 2, *totals.shape[1:])
    return PartialSums(assignment.weight.shape[1], sums)


def _observer(store: ParticleStore, method: Method) -> Observer:
    info = store.info
    return Observer(
        box_size=info.box_size,
        data_sign=info.data_sign,
        hartley_std=1 / info.scale,  # grey values of the source
        window=method.like_cryodrgn,
        ctf=info.has_ctf,
        damping=store.has_damping or method.dose_per_tilt is not None,
    )


def _batches(
    store: ParticleStore, first_chunk: int, last_chunk: int, assignment: Assignment
) -> Iterator[tuple[Int[np.ndarray, " n"], dict[str, Tensor]]]:
    """Rows, counted within the range, and their columns, of the images that any volume wants."""
    start = first_chunk * store.chunk_size
    wanted = np.any(assignment.weight > 0, axis=0)
    step = max(BATCH_SIZE // store.chunk_size, 1)
    for chunk in range(first_chunk, last_chunk, step):
        rows = slice(chunk * store.chunk_size, store.chunk_rows(min(chunk + step, last_chunk) - 1).stop)
        mine = np.flatnonzero(wanted[rows.start - start : rows.stop - start])
        if len(mine):
            images = store.read_images(rows)[mine]
            columns = {name: store.columns[name][rows][mine] for name in (*_COLUMNS, "tilt_index", "source_row")}
            yield mine + rows.start - start, to_batch({"images": images, **columns})


def _prepared(
    batch: dict[str, Tensor], store: ParticleStore, method: Method, device: torch.device
) -> dict[str, Tensor]:
    refuse_not_finite(store, batch)
    if method.dose_per_tilt is not None:
        rank = batch["tilt_index"].float()
        cosine = torch.cos(torch.deg2rad(method.angle_per_tilt * torch.ceil(rank / 2)))
        batch |= {
            "dose": rank * method.dose_per_tilt,
            "ctf_scalefactor": batch["ctf_scalefactor"] * cosine if method.like_cryodrgn else cosine,
        }
    if method.like_cryodrgn:
        batch["translation"] = batch["translation"] * ((store.info.box_size + 1) / store.info.box_size)
    return {name: values.to(device) for name, values in batch.items()}


def _flush(projectors: list[BackProjector], totals: Float[Tensor, "V S S H 3"]) -> None:
    for projector, total in zip(projectors, totals, strict=True):
        total += projector.sums
        projector.sums.zero_()
