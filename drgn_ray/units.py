"""Every change of sign, unit, axis or index base between RELION, cryoSPARC, cryoDRGN and drgn_ray.

Ours: pixel 0-based; shifts in Å, positive moves the image content to larger x (columns) and y (rows);
slice points are row vectors ``(kx, ky, 0) @ rotation``; defocus in Å, positive is underfocus; the CTF is
negative at low frequency (dark protein), so RELION's white protein needs ``data_sign`` -1.
Each function is pinned by a test in ``tests/oracles``.
"""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float, Integer
from scipy.spatial.transform import Rotation

ANGSTROM_PER_MM = 1e7
VOLT_PER_KILOVOLT = 1e3
ANGSTROM_PER_MICROMETRE = 1e4


def rotation_from_relion(
    rot: Float[np.ndarray, " N"], tilt: Float[np.ndarray, " N"], psi: Float[np.ndarray, " N"]
) -> Float[np.ndarray, "N 3 3"]:
    """Turn RELION Euler angles (degrees, ZYZ) into rotation matrices.

    RELION's matrix A = Rz(psi) Ry(tilt) Rz(rot) is scipy's intrinsic ZYZ rotation transposed.  A point p of the
    volume lands at ``(A p)[:2]``; a point of the central slice in Fourier space is ``(kx, ky, 0) @ A``.
    """
    angles = np.stack([rot, tilt, psi], axis=-1).astype(np.float64)
    return Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().swapaxes(-1, -2)


def relion_from_rotation(rotation: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 3"]:
    """Turn rotation matrices into RELION's (rot, tilt, psi) in degrees; the inverse of `rotation_from_relion`.

    With a tilt of 0 or 180 degrees only the sum or difference of the other two is defined, and psi is 0.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gimbal lock detected")
        return Rotation.from_matrix(rotation.swapaxes(-1, -2)).as_euler("ZYZ", degrees=True)


def shift_px_to_angstrom(shift_px: Float[np.ndarray, "N 2"], apix: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
    """RELION 3.0 ``rlnOriginX/Y`` (px of the original image) to Å."""
    return shift_px * apix[:, None]


def shift_fraction_to_angstrom(
    fraction: Float[np.ndarray, "N 2"], extent: Float[np.ndarray, " N"]
) -> Float[np.ndarray, "N 2"]:
    """Turn a cryoDRGN ``pose.pkl`` translation (fraction of the box) into Å.

    cryoDRGN multiplies by D + 1 when it trains, an error of 1/D that we do not repeat.

    Parameters
    ----------
    extent
        Width of the images, Å.
    """
    return fraction * extent[:, None]


def shift_angstrom_to_fraction(
    shift: Float[np.ndarray, "N 2"], extent: Float[np.ndarray, " N"]
) -> Float[np.ndarray, "N 2"]:
    """Turn shifts in Å into fractions of the box; the inverse of `shift_fraction_to_angstrom`."""
    return shift / extent[:, None]


def apix_from_magnification(
    detector_pixel_size_um: Float[np.ndarray, " N"], magnification: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """RELION 3.0 ``rlnDetectorPixelSize`` (µm) over ``rlnMagnification`` to Å/px."""
    return ANGSTROM_PER_MICROMETRE * detector_pixel_size_um / magnification


def image_index_from_relion(number: Integer[np.ndarray, " N"]) -> Integer[np.ndarray, " N"]:
    """Turn the 1-based image number of ``rlnImageName`` (``000001@stack.mrcs``) into a 0-based index."""
    return number.astype(np.int64) - 1


def relion_from_image_index(index: Integer[np.ndarray, " N"]) -> Integer[np.ndarray, " N"]:
    """Turn 0-based indices into the 1-based image numbers of ``rlnImageName``."""
    return index + 1


def rotation_from_cryosparc(pose: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3 3"]:
    """Turn cryoSPARC's ``alignments3D/pose`` (a rotation vector, radians) into rotation matrices.

    Our matrix is the transpose of the vector's exponential.
    """
    return Rotation.from_rotvec(pose.astype(np.float64)).as_matrix().swapaxes(-1, -2)


def cryosparc_from_rotation(rotation: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 3"]:
    """Turn rotation matrices into cryoSPARC's rotation vectors (radians)."""
    return Rotation.from_matrix(rotation.swapaxes(-1, -2)).as_rotvec()


def half_set_from_cryosparc(split: Integer[np.ndarray, " N"]) -> Integer[np.ndarray, " N"]:
    """Turn ``alignments3D/split`` (0 or 1) into half sets 1 and 2."""
    return split.astype(np.int64) + 1


def cryosparc_from_half_set(half_set: Integer[np.ndarray, " N"]) -> Integer[np.ndarray, " N"]:
    """Turn half sets 1 and 2 into ``alignments3D/split``."""
    return half_set.astype(np.int64) - 1


def sign_of_white_protein(has_ctf: bool) -> int:
    """Give the `data_sign` that makes density positive where protein is white.

    Our CTF is negative at low frequency, so it turns white protein dark; without CTF white protein is as it should be.
    """
    return -1 if has_ctf else 1


def dose_from_bfactor(bfactor: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Turn ``rlnCtfBfactor`` (Å²) of a tilt series into the dose (e/Å²): B = -4 dose, as Warp and M write it."""
    return -bfactor / 4
