"""Every change of sign, unit, axis or index base between RELION, cryoDRGN and drgn_ray.

Ours: pixel 0-based; shifts in Å, positive moves the image content to larger x (columns) and y (rows);
slice points are row vectors ``(kx, ky, 0) @ rotation``; defocus in Å, positive is underfocus; the CTF is
negative at low frequency (dark protein), so RELION's white protein needs ``data_sign`` -1.
Each function is pinned by a test in ``tests/oracles``.
"""

from __future__ import annotations

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
    """Turn rotation matrices into RELION's (rot, tilt, psi) in degrees; the inverse of `rotation_from_relion`."""
    return Rotation.from_matrix(rotation.swapaxes(-1, -2)).as_euler("ZYZ", degrees=True)


def shift_px_to_angstrom(shift_px: Float[np.ndarray, "N 2"], apix: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
    """RELION 3.0 ``rlnOriginX/Y`` (px of the original image) to Å."""
    return shift_px * apix[:, None]


def shift_fraction_to_angstrom(
    fraction: Float[np.ndarray, "N 2"], box_size: int, apix: Float[np.ndarray, " N"]
) -> Float[np.ndarray, "N 2"]:
    """Turn a cryoDRGN ``pose.pkl`` translation (fraction of the box) into Å.

    cryoDRGN multiplies by D + 1 when it trains, an error of 1/D that we do not repeat.
    """
    return fraction * box_size * apix[:, None]


def apix_from_magnification(
    detector_pixel_size_um: Float[np.ndarray, " N"], magnification: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """RELION 3.0 ``rlnDetectorPixelSize`` (µm) over ``rlnMagnification`` to Å/px."""
    return ANGSTROM_PER_MICROMETRE * detector_pixel_size_um / magnification


def image_index_from_relion(number: Integer[np.ndarray, " N"]) -> Integer[np.ndarray, " N"]:
    """Turn the 1-based image number of ``rlnImageName`` (``000001@stack.mrcs``) into a 0-based index."""
    return number.astype(np.int64) - 1
