"""cryoDRGN's pickles: poses, CTF and selections, opened without running what they may hold."""

from __future__ import annotations

import os
import pickle
import warnings
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from conversions import mrcs
from conversions.relion import NO_CTF
from conversions.table import ParticleTable, check_stacks, check_values
from drgn_ray import units
from drgn_ray.errors import ParticleFileError

_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_ALLOWED = {
    (module, name) for module in _NUMPY for name in ("_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer")
}
_ALLOWED.add(("_codecs", "encode"))


class _NumpyUnpickler(pickle.Unpickler):
    """Knows numpy arrays and plain containers, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}")
        return super().find_class(module, name)


def read_pickle(path: str) -> Any:
    """Read the first object of a pickle of numpy arrays."""
    if not os.path.isfile(path):
        raise ParticleFileError(path, "there is no such file", "check the path")
    try:
        with open(path, "rb") as file:
            return _NumpyUnpickler(file).load()
    except Exception as error:
        raise ParticleFileError(
            path, f"this is not a pickle of numpy arrays ({error})", "pass a file written by cryodrgn"
        ) from error


def read_mrcs_with_pickles(stack: str, *, poses: str, ctf: str | None, apix: float | None) -> ParticleTable:
    """Read an MRC stack with cryoDRGN's ``pose.pkl`` and ``ctf.pkl`` (None: the images carry no CTF)."""
    header = mrcs.read_header(stack)
    count = header.num_images
    rotation, fraction = _read_poses(poses, count)
    if ctf is not None:
        parameters = _read_ctf(ctf, count)
        # Columns: D, Å/px, defocus U and V, angle, kV, Cs, amplitude contrast, phase shift; D is that of the original.
        pixel = parameters[:, 1] * parameters[:, 0] / header.box_size
        names = ("defocus_u", "defocus_v", "defocus_angle", "voltage", "cs", "amplitude_contrast", "phase_shift")
        columns = dict(zip(names, parameters[:, 2:].T, strict=True))
    elif apix is None:
        raise ParticleFileError(stack, "no pixel size without a ctf.pkl", "pass --apix with the Å/px of the images")
    else:
        pixel = np.full(count, apix)
        columns = {name: make(count) for name, make in NO_CTF.items()} | {"phase_shift": np.zeros(count)}
    columns |= {
        "rotation": rotation,
        "translation": units.shift_fraction_to_angstrom(fraction, header.box_size, pixel),
        "apix": pixel,
        "half_set": np.zeros(count),
        "optics_group": np.ones(count),
        "source_row": np.arange(count),
    }
    check_values(stack, columns)
    rows = np.arange(count)
    table = pd.DataFrame({"image": rows, "stack": os.path.abspath(stack)})
    where = (os.path.abspath(stack),), np.zeros(count, np.int64), rows
    return ParticleTable(stack, *where, columns, {"table": table}, check_stacks(stack, *where), ctf is not None)


def read_selection(path: str, count: int) -> Int[np.ndarray, " n"]:
    """Rows to keep: a pickle (cryoDRGN's ``ind.pkl``), ``.npy`` or text of 0-based integers, or of booleans."""
    if path.endswith(".pkl"):
        chosen = _rows(path, read_pickle(path))
    else:
        try:
            with warnings.catch_warnings(action="ignore"):  # numpy's of an empty file, which is refused below
                chosen = (
                    np.load(path, allow_pickle=False)
                    if path.endswith(".npy")
                    else np.loadtxt(path, dtype=np.int64, ndmin=1)
                )
        except (OSError, ValueError, EOFError) as error:
            raise ParticleFileError(
                path, f"cannot be read as row numbers ({error})", "pass a .pkl, .npy or text file"
            ) from error
    if chosen.dtype == bool and chosen.shape == (count,):
        chosen = np.flatnonzero(chosen)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not len(chosen):
        raise ParticleFileError(
            path, f"holds {chosen.dtype} of shape {chosen.shape}, not row numbers", "pass a list of integers"
        )
    if chosen.min() < 0 or chosen.max() >= count:
        raise ParticleFileError(
            path,
            f"row numbers run from {chosen.min()} to {chosen.max()}, the particles from 0 to {count - 1}",
            "make the selection from the same particles",
        )
    if len(np.unique(chosen)) < len(chosen):
        raise ParticleFileError(path, "it names a row more than once", "keep each row once")
    return chosen.astype(np.int64)


def _rows(path: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ParticleFileError(path, f"holds no list of row numbers ({error})", "pass a list of integers") from error


def _read_poses(path: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    poses = read_pickle(path)
    parts = poses if isinstance(poses, tuple) and poses else (poses,)
    rotation = _numbers(path, parts[0])
    fraction = _numbers(path, parts[1]) if len(parts) > 1 else np.zeros((count, 2))
    if rotation.shape != (count, 3, 3) or fraction.shape != (count, 2):
        raise ParticleFileError(
            path,
            f"holds poses of shape {rotation.shape} and shifts of shape {fraction.shape} for {count} images",
            "pass the pose.pkl of this stack",
        )
    bad = np.flatnonzero(np.abs(fraction).max(axis=1) > 1)
    if len(bad):
        row = int(bad[0])
        raise ParticleFileError(
            path,
            f"the shift is {fraction[row]}, but shifts are fractions of the box",
            "divide them by the box size",
            row=row,
        )
    return rotation, fraction


def _read_ctf(path: str, count: int) -> np.ndarray:
    parameters = _numbers(path, read_pickle(path))
    if parameters.shape != (count, 9):
        raise ParticleFileError(
            path, f"holds an array of shape {parameters.shape}, not ({count}, 9)", "pass the ctf.pkl of this stack"
        )
    return parameters


def _numbers(path: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ParticleFileError(path, f"holds no array of numbers ({error})", "pass the file of this stack") from error
