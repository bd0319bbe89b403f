"""cryoDRGN's pickles: poses, CTF and selections, opened without running what they may hold."""

# pyright: reportAttributeAccessIssue=false
# (what a subclass of Python's own unpickler works with is not in pyright's stubs)

from __future__ import annotations

import io
import pickle
import re
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Bool, Float, Int

from conversions import files
from drgn_ray.errors import ConfigError, ParticleFileError
from drgn_ray.particles.store import ParticleStore

NOT_ORTHOGONAL = 1e-3  # of an entry of R Rᵀ; float32 is within 1e-6
_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_NUMBER_TYPE = re.compile(r"[<>|=]?[biuf]\d{1,2}")
_TEXT_ENCODING = "latin1"  # that of bytes in pickles of protocol 2 and before
_NEVER_IN_ARRAYS = (
    *(pickle.DICT, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.EMPTY_SET, pickle.ADDITEMS),
    *(pickle.FROZENSET, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
)


class _NumberType:
    """A type of numbers by its name.

    A real ``numpy.dtype`` would take flags from the pickle; with the wrong ones numpy follows any bytes as pointers.
    """

    def __init__(self, name: str, *_: Any) -> None:
        if not _NUMBER_TYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"it wants to load an array of {name[:20]}")
        self.dtype = np.dtype(name)


def _reconstruct(*_: Any) -> np.ndarray:
    return np.empty(0)


def _scalar(number_type: _NumberType, content: bytes) -> Any:
    return _frombuffer(content, number_type, (1,))[0]


def _frombuffer(content: bytes, number_type: _NumberType, shape: Any, order: Any = "C", axes: Any = None) -> np.ndarray:
    """Make an array as numpy's function of this name does; `axes` is how an array of order K was transposed."""
    if not isinstance(content, bytes):  # an array could be filled anew, which would leave this one without memory
        raise pickle.UnpicklingError("it holds an array made of something else than bytes")
    flat = np.frombuffer(content, number_type.dtype)
    return flat.reshape(shape, order=order) if axes is None else flat.reshape(shape).transpose(axes)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != _TEXT_ENCODING:
        raise pickle.UnpicklingError(f"it wants to encode as {encoding}")
    return text.encode(_TEXT_ENCODING)


_ALLOWED: dict[tuple[str, str], Any] = {("_codecs", "encode"): _encode} | {
    (module, known): stands_for
    for module in _NUMPY
    for known, stands_for in {
        "_reconstruct": _reconstruct,
        "ndarray": None,  # what is passed to _reconstruct
        "dtype": _NumberType,
        "scalar": _scalar,
        "_frombuffer": _frombuffer,
    }.items()
}


class _ArrayUnpickler(pickle._Unpickler):
    """Knows arrays of numbers, lists and tuples, and nothing that could run code.

    It is the one of pure Python: that of C sets gigabytes aside for a file of ten bytes that says so.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}")
        return _ALLOWED[module, name]

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _NumberType):
            target.dtype = target.dtype.newbyteorder(state[1])
        elif isinstance(target, np.ndarray):
            _, shape, number_type, is_fortran, content = state
            target.__setstate__((1, shape, number_type.dtype, is_fortran, content))
        else:
            raise pickle.UnpicklingError("it holds an object")

    def _load_bytearray(self) -> None:
        """Read what is there, where the inherited one believes the length."""
        self.append(bytes(self.read(int.from_bytes(self.read(8), "little"))))

    def _refuse(self) -> NoReturn:
        raise pickle.UnpicklingError("it holds a dictionary, a set or an object")

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        **dict.fromkeys((code[0] for code in _NEVER_IN_ARRAYS), _refuse),
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }


def read_pickle(path: str) -> Any:
    """Read the first object of a pickle of numpy arrays."""
    return read_pickles(path, 1)[0]


def read_pickles(path: str, count: int) -> list[Any]:
    """Read the first `count` of the pickles of numpy arrays that follow one another in a file."""
    content = io.BytesIO(files.read(path, "pickle"))
    try:
        return [_ArrayUnpickler(content).load() for _ in range(count)]
    except Exception as error:
        raise ParticleFileError(
            path, f"this is not a pickle of numpy arrays ({error})", "pass a file written by cryodrgn"
        ) from error


def read_selection(path: str, count: int) -> Int[np.ndarray, " n"]:
    """Rows to keep: a pickle (cryoDRGN's ``ind.pkl``), ``.npy`` or text of 0-based integers, or of booleans."""
    if path.endswith(".pkl"):
        chosen = _rows(path, read_pickle(path))
    else:
        content = files.read(path, "selection")
        try:
            if path.endswith(".npy"):
                chosen = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
            else:
                chosen = np.array(content.decode().replace(",", " ").split(), np.int64)
        except Exception as error:
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


def read_selection_of(path: str, store: ParticleStore) -> Bool[np.ndarray, " N"]:
    """Which rows of a store a file selects (`read_selection`), by their rows in the source table."""
    source_row = store.columns["source_row"]
    chosen = read_selection(path, store.info.num_source_rows)
    unknown = chosen[~np.isin(chosen, source_row)]
    if len(unknown):
        raise ConfigError(path, f"row {unknown[0]} is not among the particles of the store", "choose from the same")
    return np.isin(source_row, chosen)


def _rows(path: str, values: Any) -> np.ndarray:
    if isinstance(values, list | tuple) and all(isinstance(value, int | np.integer | np.bool_) for value in values):
        values = np.array(values)
    if not isinstance(values, np.ndarray | np.number):
        raise ParticleFileError(path, "holds no list of row numbers", "pass a list of integers")
    return np.asarray(values)


class PosePickle(NamedTuple):
    """What a ``pose.pkl`` holds; shifts are fractions of the box."""

    rotation: Float[np.ndarray, "N 3 3"]
    fraction: Float[np.ndarray, "N 2"]


def read_poses(path: str, count: int) -> PosePickle:
    """Rotation matrices and shifts (fractions of the box) of a ``pose.pkl``."""
    poses = read_pickle(path)
    parts = poses[:2] if isinstance(poses, tuple) and poses else (poses,)
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
    with np.errstate(all="ignore"):
        off = np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max(axis=(1, 2))
        bad = np.flatnonzero((off > NOT_ORTHOGONAL) | (np.linalg.det(rotation) < 0))
    if len(bad):
        row = int(bad[0])
        raise ParticleFileError(
            path, f"{rotation[row].tolist()} is no rotation", "pass the pose.pkl that cryodrgn wrote", row=row
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
    bad = np.flatnonzero(~(parameters[:, :2] > 0).all(axis=1))
    if len(bad):
        row = int(bad[0])
        raise ParticleFileError(
            path,
            f"the images are said to have {parameters[row, 0]:g} px of {parameters[row, 1]:g} Å",
            "make it again with `cryodrgn parse_ctf_star -D BOX --Apix APIX`",
            row=row,
        )
    names = ("defocus_u", "defocus_v", "defocus_angle", "voltage", "cs", "amplitude_contrast", "phase_shift")
    return CtfPickle(parameters[:, 0] * parameters[:, 1], dict(zip(names, parameters[:, 2:].T, strict=True)))


def as_numbers(path: str, values: Any) -> np.ndarray:
    """Make a float64 array of an array that a file held."""
    if not isinstance(values, np.ndarray):
        raise ParticleFileError(
            path, f"holds no array of numbers but a {type(values).__name__}", "pass the file of these particles"
        )
    return np.asarray(values, np.float64)
