"""Point groups: the rotations that leave a symmetric molecule as it is.

Axes as in RELION, Xmipp and Heymann et al. (2005), J. Struct. Biol. 151, 196: Cn and Dn about z, Dn with a two-fold
axis on x; T with a three-fold axis on z; O with four-fold axes on x, y and z; I is I2 (two-fold axes on x, y and z,
a five-fold axis in the xz plane), I1 is I2 turned by 90 degrees about z, I3 and I4 have a five-fold axis on z or near
it.  A volume with symmetry S has V(S x) = V(x), so a particle seen at ``rotation`` is as well seen at ``rotation @ S``.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from drgn_ray.errors import ConfigError

_GOLDEN = (1 + 5**0.5) / 2
_X, _Z, _DIAGONAL = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0)
# Each group by the fold and direction of axes that generate it.
_GENERATORS = {
    "T": ((3, _Z), (2, (0.0, 2**0.5, 1.0))),
    "O": ((3, _DIAGONAL), (4, _Z)),
    "I1": ((2, _X), (5, (_GOLDEN, 0.0, -1.0)), (3, (_GOLDEN**2, 1.0, 0.0))),
    "I2": ((2, _Z), (5, (1.0, 0.0, _GOLDEN)), (3, (0.0, 1.0, _GOLDEN**2))),
    "I3": ((2, (-1.0, 0.0, _GOLDEN)), (5, _Z)),
    "I4": ((2, (1.0, 0.0, _GOLDEN)), (5, (2.0, 0.0, 1.0))),
}
_GENERATORS["I"] = _GENERATORS["I2"]
_LARGEST_FOLD = 100


def point_group(name: str) -> Float[np.ndarray, "G 3 3"]:
    """List the rotations of a point group, the identity first.

    Parameters
    ----------
    name
        C1, C2, ..., D1, D2, ..., T, O, I (or I1, I2, I3, I4); RELION's ``--sym``.

    Raises
    ------
    ConfigError
        There is no such group.
    """
    return _closure([_turn(fold, axis) for fold, axis in _generators(name)])


def _generators(name: str) -> tuple[tuple[int, tuple[float, ...]], ...]:
    if name.upper() in _GENERATORS:
        return _GENERATORS[name.upper()]
    match = re.fullmatch(r"([CD])([1-9]\d*)", name.upper())
    if match is None or int(match[2]) > _LARGEST_FOLD:
        raise ConfigError(
            f"--sym {name}", "there is no such point group", "pass Cn or Dn (as C4, D2), T, O, I, I1, I2, I3 or I4"
        )
    about_z = (int(match[2]), _Z)
    return (about_z,) if match[1] == "C" else (about_z, (2, _X))


def _turn(fold: int, axis: tuple[float, ...]) -> Float[np.ndarray, "3 3"]:
    direction = np.array(axis) / np.linalg.norm(axis)
    return Rotation.from_rotvec(2 * np.pi / fold * direction).as_matrix()


def _closure(generators: list[Float[np.ndarray, "3 3"]]) -> Float[np.ndarray, "G 3 3"]:
    """Multiply until nothing new comes."""
    group = np.eye(3)[None]
    new = group
    while len(new):
        products = np.concatenate([new @ generator for generator in generators])
        found = []
        for product in products:
            known = np.concatenate([group, np.reshape(found, (-1, 3, 3))])
            if np.abs(known - product).max(axis=(1, 2)).min() > 1e-6:
                found.append(product)
        new = np.reshape(found, (-1, 3, 3))
        group = np.concatenate([group, new])
    return group
