"""Volumes to look at: cut to what holds density, drawn as surfaces, and as movies of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from torch.nn.functional import interpolate

from drgn_ray.analysis.volumes import read_mrc, volume_files
from drgn_ray.physics.volume import crop, resample

MOST_SIDE = 64  # px
VOLUMES_A_SECOND = 6  # of a movie
MAD_OF_GAUSSIAN = 0.6745  # median absolute deviation of a Gaussian, over its standard deviation
MARGIN = 1.1  # about the outermost density
PICTURE = 320  # px of a view's side
VIEWS = (Rotation.from_euler("x", -70, degrees=True), Rotation.from_euler("zx", (90, -70), degrees=True))
COLOUR, GROUND = np.array([0.50, 0.66, 0.85]), np.array([1.0, 1.0, 1.0])
LIGHT = np.array([-0.4, -0.5, -0.77])  # where it comes from: right, down, away from the eye


def surface_level(volume: Float[np.ndarray, "D D D"]) -> float:
    """Density that best parts molecule from solvent (Otsu, IEEE Trans. Syst. Man Cybern. 1979).

    Where the molecule is a small part of a noisy box, that would part noise from noise: so it is three standard
    deviations of the noise at least, and at least a thousandth of the box is inside.
    """
    counts, edges = np.histogram(volume, 256)
    middles, below = (edges[1:] + edges[:-1]) / 2, counts.cumsum()[:-1]
    above, sums = volume.size - below, (counts * middles).cumsum()
    apart = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    parted = edges[1:-1][(below * above * apart**2).argmax()]
    median = np.median(volume)
    noise = median + 3 * float(np.median(np.abs(volume - median))) / MAD_OF_GAUSSIAN
    return float(min(max(parted, noise), np.percentile(volume, 99.9)))


class Framed(NamedTuple):
    """Volumes of one cube about the origin.

    Attributes
    ----------
    apix
        Å/px.
    level
        Density of a surface that suits all of them.
    """

    volumes: Float32[np.ndarray, "n d d d"]
    apix: float
    level: float


def framed(folders: Sequence[Path]) -> list[Framed]:
    """Read the volumes of some folders, and cut and resample all of them alike to what holds density, at most 64 px."""
    files = [volume_files(folder) for folder in folders]
    reach, apix, levels = 2, 1.0, []
    for file in chain.from_iterable(files):
        volume, apix = read_mrc(str(file))
        middle = len(volume) // 2
        levels.append(surface_level(volume))
        outermost = np.abs(np.argwhere(volume > levels[-1]) - middle).max(initial=1)
        reach = min(max(reach, int(np.ceil(MARGIN * outermost))), middle)
    side = min(2 * reach, MOST_SIDE)
    new_apix, level = apix * 2 * reach / side, float(np.median(levels))
    cut = [np.stack([resample(crop(read_mrc(str(file)).data, 2 * reach), side) for file in each]) for each in files]
    return [Framed(volumes, new_apix, level) for volumes in cut]


def picture(volume: Float32[np.ndarray, "d d d"], level: float) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the surface of a volume (z, y, x), from the front and from the right, side by side."""
    return np.concatenate([_view(volume, level, rotation) for rotation in VIEWS], axis=1)


def write_movie(volumes: Framed, file: Path) -> None:
    """Write the surfaces of some volumes, forth and back, as an MP4 (H.264)."""
    import av

    pictures = [picture(volume, volumes.level) for volume in volumes.volumes]
    partial = file.with_name(f".{file.name}.partial.mp4")
    with av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=VOLUMES_A_SECOND, options={"crf": "20"})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        for each in (*pictures, *pictures[-2:0:-1]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
        container.mux(stream.encode())
    partial.replace(file)


def _view(volume: Float32[np.ndarray, "d d d"], level: float, rotation: Rotation) -> UInt8[np.ndarray, "h w 3"]:
    """Find where parallel rays first meet the surface, and light it by the angle of its normal."""
    side = len(volume)
    turned = _turned(volume, rotation)
    once = torch.from_numpy(turned)[None, None]
    values = interpolate(once, (side, PICTURE, PICTURE), mode="trilinear")[0, 0].numpy()
    above = values > level
    hit, first = above.any(axis=0), np.maximum(above.argmax(axis=0), 1)
    rows, columns = np.nonzero(hit)
    before, behind = values[first[hit] - 1, rows, columns], values[first[hit], rows, columns]
    depth = first[hit] - np.clip((behind - level) / np.maximum(behind - before, 1e-12), 0, 1)
    place = (depth, *((each + 0.5) / PICTURE * side - 0.5 for each in (rows, columns)))
    slopes = np.gradient(gaussian_filter(turned, 0.7))[::-1]
    normal = -np.stack([map_coordinates(each, place, order=1, prefilter=False) for each in slopes], axis=-1)
    lit = normal @ LIGHT / np.maximum(np.linalg.norm(normal, axis=-1), 1e-12)
    shown = np.tile(GROUND, (PICTURE, PICTURE, 1))
    shown[hit] = COLOUR * (0.35 + 0.65 * np.clip(lit, 0, 1) * (1 - 0.3 * depth / side))[:, None]
    return (255 * shown).round().astype(np.uint8)


def _turned(volume: Float32[np.ndarray, "d d d"], rotation: Rotation) -> Float32[np.ndarray, "d d d"]:
    """Volume in the axes of a picture: away from the eye, down, right."""
    side = len(volume)
    steps = np.arange(side) - (side - 1) / 2  # the origin in the middle of the picture
    away, down, right = rotation.inv().apply([[0, 0, -1], [0, -1, 0], [1, 0, 0]])
    points = steps[:, None, None, None] * away + steps[:, None, None] * down + steps[:, None] * right
    indices = np.moveaxis(points[..., ::-1], -1, 0) + side // 2  # z, y, x
    return map_coordinates(volume, indices, order=1, prefilter=False)
