"""cryoDRGN's pickles: poses, CTF and selections, opened without running what they may hold."""

from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from conversions import files
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
    return read_pickles(path, 1)[0]


def read_pickles(path: str, count: int) -> list[Any]:
    """Read the first `count` of the pickles of numpy arrays that follow one another in a file."""
    content = io.BytesIO(files.read(path, "pickle"))
    try:
        return [_NumpyUnpickler(content).load() for _ in range(count)]
    except Exception as error:
        raise ParticleFileError(
            path, f"this is not a pickle of numpy arrays ({error})", "pass a file written by cryodrgn"
        ) from error


def read_selection(path: str, count: int) -> Int[np.ndarray, " n"]:
    """Rows to keep: a pickle (cryoDRGN's ``ind.pkl``), ``.npy`` or text of 0-based integers, or of booleans."""
    if path.endswith(".pkl"):
        chosen = _rows(path, read_pickle(path))
    else:
        try:
            content = files.read(path, "selection")
            if path.endswith(".npy"):
                chosen = np.load(io.BytesIO(content), allow_pickle=False)
            else:
                chosen = np.array(content.decode().replace(",", " ").split(), np.int64)
        except (ValueError, EOFError, OverflowError) as error:
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


class PosePickle(NamedTuple):
    """What a ``pose.pkl`` holds; shifts are fractions of the box."""

    rotation: Float[np.ndarray, "N 3 3"]
    fraction: Float[np.ndarray, "N 2"]


def read_poses(path: str, count: int) -> PosePickle:
    """Rotation matrices and shifts (fractions of the box) of a ``pose.pkl``."""
    poses = read_pickle(path)
    parts = poses if isinstance(poses, tuple) and poses else (poses,)
    rotation = as_numbers(path, parts[0])
    fraction = as_numbers(path, parts[1]) if len(parts) > 1 else np.zeros((count, 2))
    if rotation.shape != (count, 3, 3) or fraction.shape != (count, 2):
        raise ParticleFileError(
            path,
            f"holds {' and '.join(str(np.shape(part)) for part in parts)} numbers, not poses (rotation matrices"
            f" and shifts) for {count} images",
            "pass the pose.pkl of these particles",
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
    return PosePickle(rotation, fraction)


class CtfPickle(NamedTuple):
    """What a ``ctf.pkl`` holds.

    Attributes
    ----------
    extent
        Box size times pixel size, Å: of the original images as well as of smaller ones made of them.
    columns
        The columns `conversions.table.CTF_OF_SOURCE`.
    """

    extent: Float[np.ndarray, " N"]
    columns: dict[str, Float[np.ndarray, " N"]]


def read_ctf(path: str, count: int) -> CtfPickle:
    """Read a ``ctf.pkl``: columns D, Å/px, defocus U and V, angle, kV, Cs, amplitude contrast, phase shift."""
    parameters = as_numbers(path, read_pickle(path))
    if parameters.shape != (count, 9):
        raise ParticleFileError(
            path, f"holds an array of shape {parameters.shape}, not ({count}, 9)", "pass the ctf.pkl of these particles"
        )
    names = ("defocus_u", "defocus_v", "defocus_angle", "voltage", "cs", "amplitude_contrast", "phase_shift")
    return CtfPickle(parameters[:, 0] * parameters[:, 1], dict(zip(names, parameters[:, 2:].T, strict=True)))


def as_numbers(path: str, values: Any) -> np.ndarray:
    """Make a float64 array of what a file held."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ParticleFileError(
            path, f"holds no array of numbers ({error})", "pass the file of these particles"
        ) from error
