"""The latent space beside its volumes, as one HTML file that needs nothing else: no server, no network.

It has to work in the frame in which MLflow shows artifacts, whose sandbox allows scripts and WebGL, but no requests,
downloads, pop-ups or clipboard.  `explorer.html` is the page; data go into it as one compressed block.
"""

from __future__ import annotations

import base64
import gzip
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from plotly.offline import get_plotlyjs

from drgn_ray.analysis.chimerax import colours
from drgn_ray.analysis.latent_space import PrincipalComponents
from drgn_ray.analysis.surface import Framed
from drgn_ray.patience import write_whole
from drgn_ray.physics.volume import resample
from drgn_ray.training.embed import Latents

MOST_PARTICLES = 100_000  # drawn, at random where there are more
MOST_BYTES = 11_500_000  # of the file, which opens in seconds, nearly half of it plotly
MOST_BYTES_OF_VOLUMES, LEAST_SIDE = 3_500_000, 16  # compressed; px
BELOW_SURFACE = 0.5  # times the height of density above the surface is still told apart below it
MOST_CATEGORIES, MOST_CLUSTERS = 20, 255
_AS_TEXT = 4 / 3  # of a byte in base64


@dataclass(frozen=True)
class Colour:
    """What particles can be coloured by.

    Attributes
    ----------
    values
        One a particle: numbers, or where there are `categories`, their positions in that list.
    """

    label: str
    values: Float[np.ndarray, " N"] | Int[np.ndarray, " N"]
    categories: Sequence[str] | None = None


def by_category(label: str, values: Int[np.ndarray, " N"], most: int = MOST_CATEGORIES) -> Colour:
    """Colour by a whole number; where there are more than `most`, the rarer ones share a category."""
    numbers, positions, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(numbers) > most:
        common = np.sort(np.argsort(-counts, kind="stable")[: most - 1])
        place = np.full(len(numbers), len(common))
        place[common] = np.arange(len(common))
        names = [*(str(number) for number in numbers[common]), f"{len(numbers) - len(common):,} others"]
        return Colour(label, place[positions], names)
    return Colour(label, positions, [str(number) for number in numbers])


def of_particles(columns: Mapping[str, np.ndarray], source_row: Int[np.ndarray, " N"]) -> list[Colour]:
    """Colours from a store's columns: defocus, view, and whatever else tells some particles from others.

    Parameters
    ----------
    source_row
        Of the particles, in their order.
    """
    order = np.argsort(columns["source_row"])
    rows = order[np.searchsorted(columns["source_row"], source_row, sorter=order)]
    view = columns["rotation"][rows, 2].astype(np.float64)  # direction from which it is seen, in its own frame
    numbers = {
        "defocus, µm": (columns["defocus_u"][rows] + columns["defocus_v"][rows]) / 2e4,
        "view: tilt, °": np.degrees(np.arccos(np.clip(view[:, 2], -1, 1))),
        "view: rot, °": np.degrees(np.arctan2(view[:, 1], view[:, 0])),
        "dose, e/Å²": columns["dose"][rows],
    }
    found = [Colour(label, values) for label, values in numbers.items() if np.ptp(values) > 0]
    for label, name in (("half set", "half_set"), ("optics group", "optics_group")):
        values = columns[name][rows]
        if (values != values[0]).any():
            found.append(by_category(label, values))
    return found


def write_explorer(
    file: Path,
    run: Path,
    latents: Latents,
    pca: PrincipalComponents,
    by: Sequence[Colour],
    folders: Mapping[str, Path],
    volumes: Sequence[Framed],
    umap: Float[np.ndarray, "N 2"] | None = None,
) -> None:
    """Write the page.

    Parameters
    ----------
    run
        The run directory, for the command that the page shows.
    by
        Colours, of which the first is shown first.
    folders
        That hold the ``z_values.txt`` of volumes, by name; each is also a way to play.
    volumes
        Of each folder, in one frame.
    umap
        Other coordinates, NaN for particles that have none.
    """
    block = _Block()
    z = [np.loadtxt(folder / "z_values.txt", ndmin=2) for folder in folders.values()]
    counts = [len(each) for each in z]
    assert counts == [len(each.volumes) for each in volumes], counts
    groups = [
        {"name": name, "first": sum(counts[:number]), "count": counts[number]} for number, name in enumerate(folders)
    ]
    every = volumes[0]._replace(volumes=np.concatenate([each.volumes for each in volumes]))
    in_bytes, shown = _in_bytes(_that_fit(every))
    block.add("volumes", in_bytes)
    block.add("volume_z", np.concatenate(z).astype(np.float32))
    block.add("pca_axes", pca.axes.astype(np.float32))
    block.add("pca_mean", pca.mean.astype(np.float32))
    page = files("drgn_ray.analysis").joinpath("explorer.html").read_text()
    script = get_plotlyjs()
    left = (MOST_BYTES - len(page) - len(script)) / _AS_TEXT - block.compressed_bytes()
    drawn = _drawn(latents, by, umap, left)
    columns = {f"z{axis}": values for axis, values in enumerate(latents.z[drawn].T)}
    if umap is not None:
        columns |= {f"umap{axis + 1}": values for axis, values in enumerate(umap[drawn].T)}
    ranges = {name: block.add_scaled(name, values) for name, values in columns.items()}
    block.add("source_row", latents.source_row[drawn].astype(np.int32))
    coloured = [_colour(block, number, each, drawn) for number, each in enumerate(by)]
    zdim = latents.z.shape[1]
    about = {
        "run": str(run),
        "export": f"drgn-ray export {shlex.quote(str(run))}",
        "images_seen": latents.images_seen,
        "drawn": len(drawn),
        "particles": len(latents.z),
        "zdim": zdim,
        "axes": [*(f"pc{axis + 1}" for axis in range(len(pca.axes))), *columns],
        "variance": pca.variance_share.round(4).tolist(),
        "ranges": ranges,
        "colours": coloured,
        "palette": colours(MOST_CATEGORIES),
        "groups": groups,
        "volumes": shown,
        "arrays": block.arrays,
    }
    # In a script element only "<" could end it.
    described = json.dumps(about).replace("<", "\\u003c")
    for place, text in (("/*PLOTLY*/", script), ("/*ABOUT*/", described), ("/*DATA*/", block.text())):
        page = page.replace(place, text, 1)
    write_whole(file, page)


def _drawn(
    latents: Latents, by: Sequence[Colour], umap: Float[np.ndarray, "N 2"] | None, left: float
) -> Int[np.ndarray, " n"]:
    """Choose particles at random, as many as there is room for; first those with UMAP coordinates, if any have them."""
    bytes_each = 2 * latents.z.shape[1] + 4 + (0 if umap is None else 4) + 2 * len(by)
    most = min(MOST_PARTICLES, len(latents.z), int(left / bytes_each))
    assert most > 0, left
    order = np.random.default_rng(0).permutation(len(latents.z))
    if umap is not None:
        order = order[np.argsort(np.isnan(umap[order, 0]), kind="stable")]
    return np.sort(order[:most])


def _colour(block: _Block, number: int, by: Colour, drawn: Int[np.ndarray, " n"]) -> dict[str, Any]:
    name, values = f"colour{number}", by.values[drawn]
    if by.categories is None:
        return {"label": by.label, "array": name, "range": block.add_scaled(name, values)}
    block.add(name, values.astype(np.uint8))
    return {"label": by.label, "array": name, "categories": list(by.categories)}


def _in_bytes(shown: Framed) -> tuple[UInt8[np.ndarray, "n d d d"], dict[str, float]]:
    """Volumes from 0 to 255, of which 0 is what lies well below the surface, mostly solvent, which then packs well."""
    high = max(np.percentile(shown.volumes, 99.995), shown.level + 1e-12)
    low = min(np.percentile(shown.volumes, 80), shown.level - BELOW_SURFACE * (high - shown.level))
    step = (high - low) / 255
    values = np.clip((shown.volumes - low) / step, 0, 255).round().astype(np.uint8)
    about = {"apix": shown.apix, "low": float(low), "step": float(step), "level": float((shown.level - low) / step)}
    return values, {"side": values.shape[1], **about}


def _that_fit(shown: Framed) -> Framed:
    """Volumes made smaller until they leave room for particles."""
    side = len(shown.volumes[0])
    while side > LEAST_SIDE and len(_compressed(_in_bytes(shown)[0].tobytes())) > MOST_BYTES_OF_VOLUMES:
        smaller = side * 3 // 8 * 2
        volumes = np.stack([resample(volume, smaller) for volume in shown.volumes])
        shown, side = Framed(volumes, shown.apix * side / smaller, shown.level), smaller
    return shown


def _compressed(raw: bytes) -> bytes:
    return gzip.compress(raw, 6)  # the highest level takes thrice as long for 1% less


class _Block:
    """Arrays one after the other, each at a multiple of 8 bytes."""

    def __init__(self) -> None:
        self.arrays: dict[str, dict[str, Any]] = {}
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, name: str, values: np.ndarray) -> None:
        """Append an array of at most 32 bits a value."""
        raw = np.ascontiguousarray(values).tobytes()
        self.arrays[name] = {"dtype": values.dtype.name, "offset": self._length, "length": values.size}
        self._parts.append(raw + bytes(-len(raw) % 8))
        self._length += len(self._parts[-1])

    def add_scaled(self, name: str, values: Float[np.ndarray, " n"]) -> list[float]:
        """Append numbers in 16 bits; returns the number that 0 is, and the step to that of 1."""
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        step = max(high - low, 1e-12) / 65534
        scaled = np.where(np.isnan(values), 65535, ((values - low) / step).round())  # the last number is none
        self.add(name, scaled.astype(np.uint16))
        return [low, step]

    def compressed_bytes(self) -> int:
        """Size of what is in it so far."""
        return len(self._packed())

    def text(self) -> str:
        """Return all of it in base64."""
        return base64.b64encode(self._packed()).decode()

    def _packed(self) -> bytes:
        return _compressed(b"".join(self._parts))
