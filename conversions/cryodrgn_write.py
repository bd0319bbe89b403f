"""Writing cryoDRGN's inputs: ``particles.mrcs``, ``poses.pkl``, ``ctf.pkl`` and ``ind.pkl``."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from jaxtyping import Int

from conversions.mrcs import HEADER_BYTES
from drgn_ray import units
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.observation import CTF_COLUMNS
from drgn_ray.progress import Progress

STACK_NAME, POSES_NAME, CTF_NAME = "particles.mrcs", "poses.pkl", "ctf.pkl"


@contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """Give another path to write a file or folder to, which takes its name when all of it is written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise ConfigError(str(path), f"it cannot be written ({error})", "mend that or pass another name") from error
    finally:
        _remove(partial)


def free_folder(path: str | Path) -> Path:
    """Refuse a path where something is; return it absolute."""
    target = Path(path).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(str(target), "something is already here", "pass another folder")
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def write_pickle(path: Path, *objects: Any) -> None:
    """Write objects of numpy arrays as pickles, one after another, that numpy 1 and 2 open.

    Numpy 2 calls its own module ``numpy._core``, which numpy 1 may lack; both know the old name.
    """
    with open(path, "wb") as file:
        for content in objects:
            # Protocol 3 spells the name as text, once, before any data; later ones add its length.
            pickled = pickle.dumps(content, protocol=3)
            file.write(pickled.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1))


def write_selection(path: Path, rows: Int[np.ndarray, " n"]) -> None:
    """Write 0-based row numbers as cryoDRGN's ``ind.pkl``."""
    write_pickle(path, rows.astype(np.int64))


def write_inputs(folder: Path, store: ParticleStore, rows: Int[np.ndarray, " n"]) -> None:
    """Write these rows of a store, in this order, as a stack with its poses and, where there is one, its CTF.

    The grey values are those of the source, cropped in Fourier space to the store's box.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_stack(folder / STACK_NAME, store, rows)
    columns = {name: column[rows] for name, column in store.columns.items()}
    size = store.info.box_size
    fraction = units.shift_angstrom_to_fraction(columns["translation"], size * columns["apix"])
    write_pickle(folder / POSES_NAME, (columns["rotation"].astype(np.float32), fraction.astype(np.float32)))
    if store.info.has_ctf:
        parameters = [np.full(len(rows), size), *(columns[name] for name in CTF_COLUMNS)]
        write_pickle(folder / CTF_NAME, np.stack(parameters, axis=1).astype(np.float32))


def write_stack(path: Path, store: ParticleStore, rows: Int[np.ndarray, " n"]) -> None:
    """Write images chunk by chunk of the store, each to its place, so that any order takes little memory."""
    side = store.info.box_size
    order = np.argsort(rows, kind="stable")
    breaks = np.flatnonzero(np.diff(rows[order] // store.chunk_size)) + 1
    with mrcfile.new_mmap(path, (len(rows), side, side), mrc_mode=2, overwrite=True) as file:
        file.set_image_stack()
        file.voxel_size = store.info.apix
        file.reset_header_stats()
    with open(path, "r+b") as file, Progress("write images", len(rows), "images") as progress:
        for places in np.split(order, breaks):
            chunk = store.chunk_rows(int(rows[places[0]]) // store.chunk_size)
            images = store.read_images(chunk).astype("<f4") * np.float32(store.info.scale)
            for place in places:
                file.seek(HEADER_BYTES + int(place) * side * side * images.itemsize)
                file.write(images[rows[place] - chunk.start].tobytes())
            progress.update(len(places))
