"""Small particle sets with known values, written as real files; and stacks that hold nothing but a header."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import starfile
from scipy.spatial.transform import Rotation

Refused = Callable[..., str]  # converts, checks that it is refused, returns the sentence (conftest.py)
FLOAT32_MODE, MACHINE_STAMP = 2, 0x4444


@dataclass
class StarSet:
    """A RELION 3.1 table and its stack; a test changes what it wants and writes it."""

    folder: Path
    images: np.ndarray
    particles: pd.DataFrame
    optics: pd.DataFrame
    stack_name: str = field(default="stack.mrcs")

    @property
    def stack(self) -> Path:
        return self.folder / self.stack_name

    def write(self, name: str = "particles.star") -> Path:
        write_stack(self.stack, self.images)
        return self.write_table(name)

    def write_table(self, name: str = "particles.star") -> Path:
        starfile.write({"optics": self.optics, "particles": self.particles}, self.folder / name, overwrite=True)
        return self.folder / name

    def set_value(self, row: int, column: str, text: str) -> None:
        """Put a text where numbers are."""
        self.particles[column] = self.particles[column].astype(object)
        self.particles.loc[row, column] = text


def random_set(folder: Path, count: int = 20, box_size: int = 16, seed: int = 0) -> StarSet:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    particles = pd.DataFrame(
        {
            "rlnImageName": [f"{number:06d}@stack.mrcs" for number in range(1, count + 1)],
            "rlnAngleRot": rng.uniform(-180, 180, count),
            "rlnAngleTilt": rng.uniform(0, 180, count),
            "rlnAnglePsi": rng.uniform(-180, 180, count),
            "rlnOriginXAngst": rng.normal(0, 3, count),
            "rlnOriginYAngst": rng.normal(0, 3, count),
            "rlnDefocusU": rng.uniform(8e3, 2e4, count),
            "rlnDefocusV": rng.uniform(8e3, 2e4, count),
            "rlnDefocusAngle": rng.uniform(-90, 90, count),
            "rlnOpticsGroup": 1,
            "rlnRandomSubset": 1 + np.arange(count) % 2,
        }
    )
    optics = pd.DataFrame(
        {
            "rlnOpticsGroup": [1],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
            "rlnImagePixelSize": [2.0],
        }
    )
    images = rng.standard_normal((count, box_size, box_size), np.float32)
    return StarSet(folder, images, particles, optics)


def small_table(count: int = 12, side: int = 16) -> np.ndarray:
    """A cryoSPARC table of images of noise."""
    rng = np.random.default_rng(3)
    fields = [
        ("uid", "<u8"),
        ("blob/path", "S20"),
        ("blob/idx", "<u4"),
        ("blob/shape", "<u4", (2,)),
        ("blob/psize_A", "<f4"),
        ("blob/sign", "<f4"),
        ("ctf/exp_group_id", "<u4"),
        ("ctf/accel_kv", "<f4"),
        ("ctf/cs_mm", "<f4"),
        ("ctf/amp_contrast", "<f4"),
        ("ctf/df1_A", "<f4"),
        ("ctf/df2_A", "<f4"),
        ("ctf/df_angle_rad", "<f4"),
        ("ctf/phase_shift_rad", "<f4"),
        ("alignments3D/split", "<u4"),
        ("alignments3D/shift", "<f4", (2,)),
        ("alignments3D/pose", "<f4", (3,)),
    ]
    table = np.zeros(count, fields)
    table["uid"] = rng.permutation(10_000)[:count]
    table["blob/path"], table["blob/idx"] = b"stack.mrcs", np.arange(count)
    table["blob/shape"], table["blob/psize_A"], table["blob/sign"] = side, 2.0, 1.0
    table["ctf/accel_kv"], table["ctf/cs_mm"], table["ctf/amp_contrast"] = 300, 2.7, 0.1
    table["ctf/df1_A"], table["ctf/df2_A"] = rng.uniform(8e3, 2e4, (2, count))
    table["ctf/df_angle_rad"], table["ctf/phase_shift_rad"] = 0.3, 0.1
    table["alignments3D/split"] = np.arange(count) % 2
    table["alignments3D/shift"] = rng.normal(0, 2, (count, 2))
    table["alignments3D/pose"] = Rotation.random(count, rng=rng).as_rotvec()
    return table


def write_stack(path: Path, images: np.ndarray) -> Path:
    with warnings.catch_warnings(), mrcfile.new(path, overwrite=True) as file:
        warnings.simplefilter("ignore")  # pixels that are not numbers are there on purpose
        file.set_data(images)
        file.set_image_stack()
    return path


def read_stack(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EMAN's headers lack the map's name
        return mrcfile.read(path)


def write_empty_stack(path: Path, count: int, box_size: int) -> None:
    """A header and a hole: as long as a stack of float32 images, but no block of the disk is used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = np.zeros(256, "<i4")
    words[:4] = box_size, box_size, count, FLOAT32_MODE
    words[52:54] = int.from_bytes(b"MAP ", "little"), MACHINE_STAMP
    with open(path, "wb") as file:
        file.write(words.tobytes())
        os.truncate(path, words.nbytes + 4 * count * box_size**2)


def write_empty_stacks_for(image_names: list[str], folder: Path, box_size: int) -> None:
    """Stacks long enough for every ``number@stack`` of a table whose images nobody has."""
    longest: dict[str, int] = {}
    for name in image_names:
        number, stack = name.split("@")
        longest[stack] = max(int(number), longest.get(stack, 0))
    for stack, count in longest.items():
        write_empty_stack(folder / stack, count, box_size)


def relion_matrix(rot: np.ndarray, tilt: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """RELION's ``Euler_angles2matrix``, written out."""
    ca, sa = np.cos(np.radians(rot)), np.sin(np.radians(rot))
    cb, sb = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    cg, sg = np.cos(np.radians(psi)), np.sin(np.radians(psi))
    rows = [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it; but not the parts that zarr was writing when it was killed."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
