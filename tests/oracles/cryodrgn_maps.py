"""Maps of particle files in our compatible mode: a store as ``drgn-ray convert`` writes it, back-projected."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np

from conversions.driver import Options, convert
from conversions.table import ParticleTable
from drgn_ray.analysis.consensus import Maps, make_maps
from drgn_ray.distributed.backproject import back_project
from drgn_ray.particles.backproject import Assignment, Method, half_maps


def compatible_maps(
    table: ParticleTable, folder: Path, data_sign: int, *, dose_per_tilt: float | None = None, ntilts: int | None = None
) -> Maps:
    """Full and half maps as ``cryodrgn backproject_voxel`` makes them."""
    store = convert(table, Options(str(folder / "store.zarr"), None, "float32", data_sign, True, 0, "drgn-ray convert"))
    used = np.ones(len(store), bool) if ntilts is None else store.columns["tilt_index"] < ntilts
    half = half_maps(store.columns, used=used, like_cryodrgn=True)
    assignment = Assignment(used[None].astype(np.float32), half)
    method = Method(like_cryodrgn=True, dose_per_tilt=dose_per_tilt)
    (sums,) = back_project(store, assignment, method, num_workers=0)
    return make_maps(sums, like_cryodrgn=True)


def read_map(path: Path) -> np.ndarray:
    return np.array(mrcfile.read(path), np.float32)
