"""Maps from the sums of a back-projection, how far they can be trusted, and the files that say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from drgn_ray.analysis.figures import fsc_figure, volume_figure
from drgn_ray.analysis.volumes import MrcVolume, decode, write_mrc
from drgn_ray.errors import ConfigError, StoreError
from drgn_ray.models.model import Model
from drgn_ray.particles.normalise import UNDECIDED_SKEWNESS, skewness_in_sphere
from drgn_ray.particles.store import StoreInfo
from drgn_ray.physics.backproject import (
    LEAST_FSC,
    cryodrgn_volume,
    multiply_shells,
    signal_share,
    unfiltered_volume,
    wiener_volume,
)
from drgn_ray.physics.fsc import (
    GOLD_STANDARD,
    HALF,
    RANDOMISE_BELOW,
    ShellConvention,
    corrected_curve,
    first_shell_below,
    fourier_shell_correlation,
    resolution,
)
from drgn_ray.physics.local_resolution import NUM_BANDS, local_resolution
from drgn_ray.physics.mask import disc_mask, sphere_mask, threshold_mask
from drgn_ray.progress import Progress

LOOSE, TIGHT = (25.0, 15.0), (6.0, 6.0)  # Å of dilation and of soft edge, as cryoSPARC and cryoDRGN have them
LEAST_LOOSE, LEAST_TIGHT = 5, 3  # px of either, so that an edge is soft where voxels are coarse
# RELION finds the second half map by the first one's name; cryoDRGN calls them a and b.
HALF_NAMES = {"relion": ("half1_unfil.mrc", "half2_unfil.mrc"), "cryodrgn": ("half_map_a.mrc", "half_map_b.mrc")}


class Maps(NamedTuple):
    """A volume (z, y, x) and the two that each half of the images makes."""

    full: Float[np.ndarray, "D D D"]
    half1: Float[np.ndarray, "D D D"]
    half2: Float[np.ndarray, "D D D"]


@dataclass(frozen=True)
class Correlation:
    """FSC curves of two volumes under several masks.

    Attributes
    ----------
    curves
        By name: unmasked; spherical, loose and tight, or masked where a mask was given; corrected where phases were
        randomised.
    apix
        Å/px.
    convention
        What a shell is, see `drgn_ray.physics.fsc`.
    finest
        Å of the finest resolution that is said, where agreement beyond says nothing; None: that of the last shell.
    """

    curves: Mapping[str, Float[np.ndarray, " shells"]]
    box_size: int
    apix: float
    convention: ShellConvention = "relion"
    finest: float | None = None

    @property
    def best_name(self) -> str:
        """The curve that counts: corrected if there is one, else inside the mask that was given, else the tight one."""
        return next(name for name in ("corrected", "masked", "tight") if name in self.curves)

    def resolution(self, name: str, threshold: float) -> float:
        """Å at the first crossing (cryoDRGN's convention: at the last shell that reaches the threshold)."""
        last = self.convention == "cryodrgn"
        found = resolution(self.curves[name], self.box_size, self.apix, threshold, last=last)
        return found if self.finest is None else max(found, self.finest)

    def table(self) -> pd.DataFrame:
        """One row a shell: its number, resolution in Å, and all curves."""
        shells = np.arange(len(self.curves["unmasked"]))
        angstrom = np.divide(self.box_size * self.apix, shells, out=np.full(len(shells), np.inf), where=shells > 0)
        return pd.DataFrame({"shell": shells, "resolution": angstrom, **self.curves})


def make_maps(sums: Float[np.ndarray, "2 S S H 3"], *, like_cryodrgn: bool = False) -> Maps:
    """Volumes of the sums of two halves: unfiltered halves, and both together weighed by their FSC.

    With `like_cryodrgn` all three are made as ``cryodrgn backproject_voxel`` makes them.
    """
    first, second = (torch.from_numpy(half) for half in sums)
    if not (first[..., :2].any() and second[..., :2].any()):
        raise StoreError(
            "particles", "those of a half map are blank or none, so that it is 0", "leave blank images out"
        )
    if like_cryodrgn:
        return Maps(*(_array(cryodrgn_volume(each)) for each in (first + second, first, second)))
    halves = [_array(unfiltered_volume(half)) for half in (first, second)]
    fsc = torch.from_numpy(fourier_shell_correlation(halves[0], halves[1]))
    return Maps(_array(wiener_volume(first + second, fsc)), *halves)


def merge_halves(half1: Float[np.ndarray, "D D D"], half2: Float[np.ndarray, "D D D"]) -> Maps:
    """Half maps and their mean, weighed by 2 FSC / (1 + FSC) so that a mask of it is one of signal, not of noise."""
    fsc = torch.from_numpy(fourier_shell_correlation(half1, half2)).clamp(LEAST_FSC, 1)
    mean = torch.from_numpy((half1 + half2) / 2)
    return Maps(_array(multiply_shells(mean, signal_share(fsc).to(mean))), half1, half2)


def correlate_halves(
    maps: Maps,
    apix: float,
    convention: ShellConvention = "relion",
    *,
    mask: Float[np.ndarray, "D D D"] | None = None,
) -> Correlation:
    """FSC of half maps under masks of the full map, and corrected for the tight one by randomised phases.

    A mask that is given takes the place of those, as ``masked``.
    """
    size, name = len(maps.full), "tight" if mask is None else "masked"
    masks = make_masks(maps.full, apix, convention) if mask is None else {name: mask}
    curves = _masked_curves(maps.half1, maps.half2, masks, convention)
    if convention == "cryodrgn":
        tight = resolution(curves[name], size, apix, GOLD_STANDARD, last=True)
        start = max(int(0.75 * size * apix / tight), 1)
    else:
        start = first_shell_below(curves["unmasked"], RANDOMISE_BELOW)
    curves["corrected"] = corrected_curve(maps.half1, maps.half2, masks[name], start, convention=convention)
    return Correlation(curves, size, apix, convention)


def correlate(
    first: Float[np.ndarray, "D D D"],
    second: Float[np.ndarray, "D D D"],
    apix: float,
    mask: Float[np.ndarray, "D D D"] | None = None,
) -> Correlation:
    """FSC of two volumes under masks of the first, or under a mask that is given (the curve ``masked``)."""
    masks = make_masks(first, apix) if mask is None else {"masked": mask}
    return Correlation(_masked_curves(first, second, masks, "relion"), len(first), apix)


def make_masks(
    volume: Float[np.ndarray, "D D D"], apix: float, convention: ShellConvention = "relion"
) -> dict[str, Float[np.ndarray, "D D D"]]:
    """Spherical, loose and tight mask of a volume; with cryoDRGN's convention as it makes them."""
    size = len(volume)
    if convention == "cryodrgn":
        sphere = np.broadcast_to(disc_mask(size), volume.shape)
        return {"spherical": sphere, "loose": _mask(volume, apix, LOOSE), "tight": _mask(volume, apix, TIGHT)}
    if density_sign(volume)[0] < 0:
        volume = -volume  # which is said; a mask of the other sign would be one of the solvent
    return {
        "spherical": sphere_mask(size, size / 2),
        "loose": _mask(volume, apix, LOOSE, LEAST_LOOSE),
        "tight": _mask(volume, apix, TIGHT, LEAST_TIGHT),
    }


def _mask(
    volume: Float[np.ndarray, "D D D"], apix: float, widths: tuple[float, float], least: int = 0
) -> Float[np.ndarray, "D D D"]:
    dilate, edge = (max(width, least * apix) for width in widths)
    return threshold_mask(volume, apix=apix, dilate=dilate, soft_edge=edge)


def _masked_curves(
    first: Float[np.ndarray, "D D D"],
    second: Float[np.ndarray, "D D D"],
    masks: Mapping[str, Float[np.ndarray, "D D D"]],
    convention: ShellConvention,
) -> dict[str, Float[np.ndarray, " shells"]]:
    curves = {"unmasked": fourier_shell_correlation(first, second, convention)}
    return curves | {
        name: fourier_shell_correlation(first * mask, second * mask, convention) for name, mask in masks.items()
    }


def density_sign(volume: Float[np.ndarray, "D D D"]) -> tuple[int, float]:
    """Whether density is positive (1) or negative (-1), or cannot be told (0); and the skewness that says so."""
    skewness = skewness_in_sphere(torch.from_numpy(np.ascontiguousarray(volume)))
    if not abs(skewness) >= UNDECIDED_SKEWNESS:
        return 0, skewness
    return (1 if skewness > 0 else -1), skewness


def describe(maps: Maps, correlation: Correlation, info: StoreInfo, num_images: int, halves: str) -> list[str]:
    """Lines on resolution and contrast; `halves` says where the half sets are from."""
    lines = [f"{num_images:,} images; halves: {halves}", f"half maps: {resolutions(correlation)}"]
    sign, skewness = density_sign(maps.full)
    if sign > 0:
        lines.append(f"density is positive, as it should be (skewness {skewness:+.2f})")
    elif sign < 0:
        flag = "--no-invert" if info.data_sign < 0 else "--invert"
        lines.append(f"DENSITY IS NEGATIVE (skewness {skewness:+.2f}): convert the particles again with {flag}")
    else:
        lines.append(f"the sign of the density cannot be told (skewness {skewness:+.2f}); look at the map")
    return lines


def resolutions(correlation: Correlation) -> str:
    """Say at which resolution the curve that counts, and the unmasked one, fall below 0.5 and 0.143."""
    said = []
    for name in (correlation.best_name, "unmasked"):
        half, gold = (correlation.resolution(name, threshold) for threshold in (HALF, GOLD_STANDARD))
        said.append(f"{name} {half:.2f} Å at FSC {HALF}, {gold:.2f} Å at {GOLD_STANDARD}")
        if gold <= 2 * correlation.apix:
            said[-1] += " (Nyquist)"
    return "; ".join(said)


def write_maps(
    folder: Path, maps: Maps, correlation: Correlation, apix: float, *, like_cryodrgn: bool = False
) -> list[Path]:
    """Write ``backproject.mrc``, the half maps, ``mask.mrc``, ``fsc.csv``, ``fsc.png`` and ``slices.png``.

    Half maps are named as RELION wants them, or with `like_cryodrgn` as cryoDRGN calls them.  Returns the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first, second = HALF_NAMES["cryodrgn" if like_cryodrgn else "relion"]
    mask = make_masks(maps.full, apix, "cryodrgn" if like_cryodrgn else "relion")["tight"]
    volumes = {first: maps.half1, second: maps.half2, "mask.mrc": mask, "backproject.mrc": maps.full}
    written = [*write_correlation(folder, correlation, "fsc"), folder / "slices.png"]
    volume_figure(maps.full, apix).savefig(folder / "slices.png", dpi=150)
    for name, volume in volumes.items():  # the map last: where it is, all is
        write_mrc(folder / name, volume, apix, f"drgn_ray back-projection {name}")
    return [*written, *(folder / name for name in volumes)]


def write_reconstruction(
    folder: Path, model: Model, info: StoreInfo, sums: Float[np.ndarray, "2 S S H 3"]
) -> Correlation:
    """Write ``reconstruct.mrc``, the volume of a model without latents, and its FSC with the back-projection.

    The back-projection's own files are written too (`write_maps`).
    """
    volume = decode(model, np.zeros(0), info)
    maps = make_maps(sums)
    write_maps(folder, maps, correlate_halves(maps, info.apix), info.apix)
    write_mrc(folder / "reconstruct.mrc", volume, info.apix, "drgn_ray, one volume for all particles")
    volume_figure(volume, info.apix).savefig(folder / "reconstruct.png", dpi=150)
    against = correlate(maps.full, volume, info.apix)
    write_correlation(folder, against, "fsc_backproject")
    return against


def write_correlation(folder: Path, correlation: Correlation, name: str) -> list[Path]:
    """Write the table and the figure of some curves; return the files."""
    correlation.table().to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    marks = {threshold: correlation.resolution(correlation.best_name, threshold) for threshold in (HALF, GOLD_STANDARD)}
    fsc_figure(correlation.curves, correlation.box_size, correlation.apix, marks).savefig(
        folder / f"{name}.png", dpi=150
    )
    return [folder / f"{name}.csv", folder / f"{name}.png"]


def write_local_resolution(
    folder: Path, maps: Maps, apix: float, mask: Float[np.ndarray, "D D D"] | None = None
) -> str:
    """Write ``local_resolution.mrc`` (Å, in ChimeraX: ``color sample``); a line on what it says inside the mask.

    Parameters
    ----------
    mask
        Where the line is about; None: the tight mask of the map.
    """
    with Progress("local resolution", NUM_BANDS, "bands") as progress:
        found = local_resolution(maps.half1, maps.half2, apix, progress=progress.update)
    write_mrc(folder / "local_resolution.mrc", found, apix, "drgn_ray local resolution, Angstrom")
    inside = make_masks(maps.full, apix)["tight"] if mask is None else mask
    low, middle, high = np.percentile(found[inside > 0.5 * inside.max()], (5, 50, 95))
    return f"local resolution inside the mask: median {middle:.2f} Å, 5% to 95% of the voxels {low:.2f} to {high:.2f} Å"


def check_same_grid(name: str, volume: MrcVolume, other: str, shape: int | tuple[int, ...], apix: float) -> None:
    """Refuse to compare a volume with one of another shape (or box size of a cube) or pixel size (Å)."""
    shape = (shape,) * 3 if isinstance(shape, int) else shape
    if volume.data.shape != shape:
        same_extent = np.isclose(volume.data.shape[0] * volume.apix, shape[0] * apix, rtol=0.01)
        how = f"--crop {shape[0]}" if np.isclose(volume.apix, apix, rtol=0.01) else "--crop, -D or --apix"
        how = f"-D {shape[0]}" if same_extent else how
        raise ConfigError(
            name,
            f"it has {_by(volume.data.shape)} voxels of {volume.apix:.4g} Å, {other} has {_by(shape)} of {apix:.4g} Å",
            f"bring it there with `drgn-ray volume {name} -o resampled.mrc` and {how}",
        )
    if not np.isclose(volume.apix, apix, rtol=0.01):
        raise ConfigError(
            name,
            f"its voxels are {volume.apix:.4g} Å, those of {other} {apix:.4g} Å",
            "compare maps of the same sampling, or set a wrong header right with `drgn-ray volume --apix`",
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _array(volume: torch.Tensor) -> Float[np.ndarray, "D D D"]:
    return volume.float().numpy()
