"""Volumes in MRC files: reading, writing, decoding latents to them; and as a picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import mrcfile
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from drgn_ray.errors import ParticleFileError
from drgn_ray.models.model import Model
from drgn_ray.particles.store import ParticleStore, StoreInfo
from drgn_ray.physics.volume import Finish
from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.embed import trained_model
from drgn_ray.training.run_directory import RunDirectory


def write_mrc(path: Path, volume: Float[np.ndarray, "Z Y X"], apix: float, label: str) -> None:
    """Write a volume (z, y, x) as MRC mode 2 with its voxel size (Å) and a label; it appears when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    with mrcfile.new(partial, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(volume, np.float32))
        file.voxel_size = apix
        file.add_label(label[:79])
    partial.replace(path)


def volume_name(number: int) -> str:
    """Name the file of a volume of a folder: ``vol_000.mrc``, ``vol_001.mrc``, ..."""
    return f"vol_{number:03d}.mrc"


def volume_files(folder: Path) -> list[Path]:
    """Find the volumes of a folder, in the order of their numbers."""
    return sorted(folder.glob("vol_*.mrc"), key=lambda path: (len(path.name), path.name))  # 1000 comes after 999


class MrcVolume(NamedTuple):
    """A volume (z, y, x) and its voxel size, Å."""

    data: Float[np.ndarray, "Z Y X"]
    apix: float


def read_mrc(path: str) -> MrcVolume:
    """Read a volume.

    Raises
    ------
    ParticleFileError
        There is no such file, or it is no volume (a stack, complex, of other dimensions), or its voxels are not cubes.
    """
    if not Path(path).is_file():
        raise ParticleFileError(path, "there is no such file", "check the path")
    if path.endswith(".mrcs"):
        raise ParticleFileError(path, "its name says that it is a stack of images", "pass a map, as .mrc")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd headers, which are common; what matters is checked below
            with mrcfile.open(path, permissive=True) as file:
                data, size = file.data, file.voxel_size
                if data is not None and np.iscomplexobj(data):
                    raise ValueError("its values are complex")
                data = None if data is None else np.array(data, np.float32)
                sides = tuple(float(getattr(size, axis)) for axis in "xyz")
    except (OSError, ValueError) as error:
        raise ParticleFileError(path, f"it cannot be read as MRC ({error})", "pass a map") from error
    if data is None or data.ndim != 3 or min(data.shape) < 2:
        found = "no data" if data is None else " x ".join(map(str, data.shape))
        raise ParticleFileError(path, f"this is no volume ({found})", "pass a map of three dimensions")
    if not np.isfinite(data).all():
        raise ParticleFileError(path, "it holds values that are no numbers", "pass another map")
    if not np.allclose(sides, sides[0], rtol=1e-3):
        raise ParticleFileError(
            path, f"its voxels are {' x '.join(f'{side:.4g}' for side in sides)} Å, no cubes", "resample the map"
        )
    return MrcVolume(data, sides[0])


def decode(model: Model, z: Float[np.ndarray, " Z"], info: StoreInfo) -> Float[np.ndarray, "D D D"]:
    """Volume of a latent, on the grey scale of the source images."""
    device = model.observer.k.device
    volume = model.decode_volume(torch.as_tensor(z, dtype=torch.float32, device=device))
    return volume.cpu().numpy() * (info.hartley_std * info.scale)


def decode_files(
    run_path: str, particles: str, files: Sequence[tuple[Path, Float[np.ndarray, " Z"]]], finish: Finish
) -> int:
    """Decode latents of a run that was trained on `particles`, each to a file; how many."""
    model, info = _loaded(run_path, particles, load_position(RunDirectory(run_path).checkpoints).images_seen)
    apix = finish.apix(info.box_size, info.apix)
    for path, z in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        label = "drgn_ray z = " + " ".join(f"{value:.4g}" for value in z)
        write_mrc(path, finish(decode(model, z, info), info.apix), apix, label)
    return len(files)


def decode_part(
    run_path: str, particles: str, start: int, z: Float[np.ndarray, "n Z"], finish: Finish
) -> tuple[int, Float32[np.ndarray, "n d d d"]]:
    """Decode some latents of a run that was trained on `particles`; `start` is handed back with their volumes."""
    model, info = _loaded(run_path, particles, load_position(RunDirectory(run_path).checkpoints).images_seen)
    return start, np.stack([finish(decode(model, each, info), info.apix) for each in z])


@lru_cache(maxsize=1)
def _loaded(run_path: str, particles: str, images_seen: int) -> tuple[Model, StoreInfo]:
    """Load a checkpoint once for all volumes that a process makes of it."""
    del images_seen  # only tells checkpoints apart
    run, store = RunDirectory(run_path), ParticleStore(particles)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return trained_model(run, run.config(), store, device), store.info


def brightest(volume: Float[np.ndarray, "D D D"]) -> float:
    """Density that all but one in two thousand voxels are below."""
    return max(float(np.percentile(volume, 99.95)), 1e-12)


def slice_montage(
    volume: Float[np.ndarray, "D D D"], white: float | None = None, num_slices: int = 8
) -> UInt8[np.ndarray, "h w"]:
    """Evenly spaced z slices in two rows, grey from 0 (and below) to `white`; None: the volume's `brightest`."""
    size = volume.shape[0]
    positions = np.linspace(0.2 * size, 0.8 * size, num_slices).astype(int)
    rows = np.array_split(volume[positions], 2)
    tiled = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    grey = np.clip(tiled / (white or brightest(volume)), 0, 1)
    enlarge = max(1, 256 // size)
    return np.kron((255 * grey).astype(np.uint8), np.ones((enlarge, enlarge), np.uint8))
