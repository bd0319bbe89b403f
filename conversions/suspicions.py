"""What is suspicious about particles: each check is a function of what is known, and yields findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from conversions.facts import Facts, Unread
from conversions.table import find_samplings, largest_sampling
from drgn_ray import units

SAME_HEADER_APIX = 0.01  # relative; headers are rounded, and calibrations differ by more
DEFOCUS_UNITS = ((1e-3, "m", "1e10"), (1e2, "µm", "10,000"))  # what is all below this was meant in that unit
LARGEST_VOLTAGE = 2000  # kV; what is above was meant in V
LARGEST_AMPLITUDE_CONTRAST = 0.3  # cryo-EM has 0.07 to 0.1, negative stain up to this
LARGEST_SHIFT = 0.25  # of the box
OUTLYING_APIX = 0.02  # relative; more than magnifications of one microscope differ by
FEWEST_GROUPS = 3  # of which one can be the outlier
DUPLICATED_POSES = 0.01  # of the particles; angular grids let a few coincide
AZIMUTH_BINS, HEIGHT_BINS = 18, 6  # of the half-sphere, all of one area, about 14° wide
POOR_COVERAGE = 0.5  # of the directions that as many particles, spread evenly, would show
ROTATION_TOLERANCE = 1e-2  # of R Rᵀ - 1: written with few digits, but not scaled or mirrored


class Finding(NamedTuple):
    """Something suspicious, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


class Coverage(NamedTuple):
    """Viewing directions in bins of equal area on the half-sphere (opposite views show the same, mirrored).

    Attributes
    ----------
    seen
        Share of the bins with a particle.
    expected
        Share that so many particles would see, spread evenly at random, with one image each.
    densest
        Particles in the fullest bin, over the mean.
    """

    seen: float
    expected: float
    densest: float


def coverage(directions: Float[np.ndarray, "N 3"], num_particles: int) -> Coverage:
    """Count the images in every bin of viewing directions."""
    towards = np.where(directions[:, 2:] < 0, -directions, directions) + 0.0  # + 0.0: the azimuth of (-0, -0) is -180°
    azimuth = np.arctan2(towards[:, 1], towards[:, 0]) / (2 * np.pi) % 1
    column = np.minimum((azimuth * AZIMUTH_BINS).astype(np.int64), AZIMUTH_BINS - 1)
    row = np.minimum((towards[:, 2] * HEIGHT_BINS).astype(np.int64), HEIGHT_BINS - 1)
    counts = np.bincount(row * AZIMUTH_BINS + column, minlength=AZIMUTH_BINS * HEIGHT_BINS)
    expected = 1 - (1 - 1 / len(counts)) ** num_particles
    return Coverage(float((counts > 0).mean()), expected, float(counts.max() / counts.mean()))


def _rows(bad: Bool[np.ndarray, " N"]) -> str:
    where = np.flatnonzero(bad)
    return f"in {len(where):,} of {len(bad):,} rows, the first is row {where[0]}"


def unread(facts: Facts) -> Iterator[Finding]:
    """Tell what could not be read; what one remedy mends is one finding."""
    by_remedy: dict[str, list[Unread]] = {}
    for entry in facts.unread:
        by_remedy.setdefault(entry.error.remedy, []).append(entry)
    for remedy, entries in by_remedy.items():
        error = entries[0].error
        row = "" if error.row is None else f" (row {error.row})"
        others = ", ".join(dict.fromkeys(entry.what for entry in entries[1:]))
        yield Finding(f"{error.found}{row}" + (f"; likewise {others}" if others else ""), remedy)


def missing_files(facts: Facts) -> Iterator[Finding]:
    """Image files that are not there."""
    if facts.images is not None and facts.images.missing:
        images = facts.images
        yield Finding(
            f"{len(images.missing):,} of {len(images.names):,} image files are missing, "
            f"the first is {images.names[images.missing[0]]}",
            "pass --datadir FOLDER, the folder the paths in the file start from",
        )


def truncated_stacks(facts: Facts) -> Iterator[Finding]:
    """Image files that are shorter than their headers say."""
    headers = [] if facts.images is None else facts.images.headers.values()
    short = [header for header in headers if header.num_present < header.num_images]
    if short:
        yield Finding(
            f"files cut short: {len(short):,}; the header of {short[0].path} says "
            f"{short[0].num_images:,} images, {short[0].num_present:,} are there",
            "copy them again",
        )


def volume(facts: Facts) -> Iterator[Finding]:
    """Tell a volume from an image stack."""
    if facts.path.endswith(".mrc") and facts.images is not None:
        (header,) = facts.images.headers.values()
        if header.is_cube:
            yield Finding(f"it is a cube of {header.box_size} px: rather a volume", "pass the particles' stack")


def images_outside(facts: Facts) -> Iterator[Finding]:
    """Image numbers that their file does not have."""
    if facts.images is None:
        return
    outside = ~np.isnan(facts.images.box_size) & ~facts.images.is_below(lambda stack: stack.num_images)
    if outside.any():
        yield Finding(f"image numbers are outside their stack {_rows(outside)}", "use the stack the table belongs to")


def header_apix(facts: Facts) -> Iterator[Finding]:
    """Å/px of the image files against that of the table."""
    if facts.images is None or "apix" not in facts.columns:
        return
    said, table = facts.images.of_file(lambda stack: stack.apix), facts.columns["apix"]
    differ = (said > 0) & (np.abs(said - table) > SAME_HEADER_APIX * table)
    if differ.any():
        first = np.flatnonzero(differ)[0]
        yield Finding(
            f"the image files' headers say {said[first]:.4g} Å/px, the table {table[first]:.4g} {_rows(differ)}",
            "the table's is used, as headers are often wrong; if they are right, pass --apix",
        )


def box_sizes(facts: Facts) -> Iterator[Finding]:
    """Box size of the image files against that of the table."""
    if facts.images is None or facts.said_box_size is None:
        return
    said, read = facts.said_box_size, facts.images.box_size
    differ = ~np.isnan(read) & (said != read)
    if differ.any():
        first = np.flatnonzero(differ)[0]
        yield Finding(
            f"the table says {said[first]:g} px, the image files {read[first]:g} {_rows(differ)}",
            "pass --apix with the Å/px of these images, or use the table that belongs to them",
        )


def samplings(facts: Facts) -> Iterator[Finding]:
    """More than one box or pixel size."""
    if facts.box_size is None or "apix" not in facts.columns:
        return
    known = ~np.isnan(facts.box_size) & (facts.columns["apix"] > 0)
    if not known.any():
        return
    found, _ = find_samplings(facts.box_size[known].astype(np.int64), facts.columns["apix"][known])
    if len(found) > 1:
        target = largest_sampling(found)
        shown = ", ".join(f"{sampling.box_size} px of {sampling.apix:.4g} Å" for sampling in found[:4])
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        remedy = f"convert brings all to {target.box_size} px of {target.apix:.4g} Å, or to less with -D"
        if target.box_size < 2:
            remedy = "they have no size in common: mend the pixel sizes, or convert the optics groups one by one"
        yield Finding(f"there are {len(found)} samplings ({shown}{more})", remedy)


def outlying_apix(facts: Facts) -> Iterator[Finding]:
    """One optics group or micrograph whose pixel size is unlike all others'."""
    if "apix" not in facts.columns:
        return
    for what, group, name in _groups(facts):
        groups, number = np.unique(group, return_inverse=True)
        typical = pd.Series(facts.columns["apix"]).groupby(number).median().to_numpy()
        median = np.median(typical)
        outliers = np.flatnonzero(np.abs(typical - median) > OUTLYING_APIX * median)
        if len(groups) >= FEWEST_GROUPS and len(outliers) == 1:
            yield Finding(
                f"{what} {name(int(groups[outliers[0]]))} alone has {typical[outliers[0]]:.4g} Å/px, "
                f"the other {len(groups) - 1:,} have {median:.4g}",
                "check that number: a wrong one blurs every volume",
            )
            return


def _groups(facts: Facts) -> Iterator[tuple[str, Int[np.ndarray, " N"], Callable[[int], str]]]:
    """List what particles are grouped by, the group of each, and the name of a group."""
    if "optics_group" in facts.columns:
        yield "optics group", facts.columns["optics_group"].astype(np.int64), str
    if facts.images is not None:
        yield "image file", facts.images.file_of, facts.images.names.__getitem__


def defocus(facts: Facts) -> Iterator[Finding]:
    """Defocus in another unit than Å, or none."""
    if "defocus_u" not in facts.columns:
        return
    largest = float(np.abs(facts.columns["defocus_u"]).max())
    if largest == 0:
        yield Finding("all defocus values are 0", "estimate the CTF, or pass --no-ctf if the images carry none")
        return
    for limit, unit, factor in DEFOCUS_UNITS:
        if largest < limit:
            yield Finding(f"no defocus exceeds {largest:.3g}: it looks like {unit}", f"multiply by {factor} for Å")
            return


def voltage(facts: Facts) -> Iterator[Finding]:
    """Voltage in V."""
    largest = float(facts.columns["voltage"].max()) if "voltage" in facts.columns else 0.0
    if largest > LARGEST_VOLTAGE:
        yield Finding(f"the voltage is {largest:g}: it looks like V", "divide by 1,000: kV is meant")


def cs(facts: Facts) -> Iterator[Finding]:
    """No spherical aberration."""
    if "cs" in facts.columns and (zero := facts.columns["cs"] == 0).any():
        yield Finding(f"Cs is 0 {_rows(zero)}", "write 2.7 (Titan Krios) or what your microscope has, unless corrected")


def amplitude_contrast(facts: Facts) -> Iterator[Finding]:
    """Amplitude contrast of none or too much."""
    if "amplitude_contrast" not in facts.columns:
        return
    values = facts.columns["amplitude_contrast"]
    odd = (values <= 0) | (values > LARGEST_AMPLITUDE_CONTRAST)
    if odd.any():
        first = values[np.flatnonzero(odd)[0]]
        yield Finding(f"the amplitude contrast is {first:g} {_rows(odd)}", "0.07 to 0.1 is usual for ice")


def poses(facts: Facts) -> Iterator[Finding]:
    """Poses that no refinement gives: all equal, duplicated, or no rotations."""
    if "rotation" not in facts.columns:
        return
    rotation = facts.columns["rotation"].astype(np.float64)
    off = np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max(axis=(1, 2)) > ROTATION_TOLERANCE
    off |= np.linalg.det(rotation) < 0
    if off.any():
        yield Finding(f"the poses are no rotation matrices {_rows(off)}", "write them again")
    if facts.count > 1 and np.ptp(rotation, axis=0).max() == 0:
        what = "unit rotation, as before any refinement" if np.allclose(rotation[0], np.eye(3)) else "same rotation"
        yield Finding(f"all {facts.count:,} poses are the {what}", "use the particles of a 3-D refinement")
        return
    parts = [rotation.reshape(facts.count, -1)]
    if "translation" in facts.columns:
        parts.append(facts.columns["translation"])
    twice = pd.DataFrame(np.concatenate(parts, axis=1)).duplicated().to_numpy()
    if twice.sum() > DUPLICATED_POSES * facts.count:
        yield Finding(f"the pose is another particle's too {_rows(twice)}", "check for particles that are there twice")


def view_coverage(facts: Facts) -> Iterator[Finding]:
    """Many missing views."""
    if facts.directions is None or facts.count == 1:
        return
    views = coverage(facts.directions, facts.num_particles)
    if views.seen < POOR_COVERAGE * views.expected:
        yield Finding(
            f"only {views.seen:.0%} of the viewing directions are seen, where {views.expected:.0%} is usual",
            "volumes will be stretched along the missing views, unless the refinement imposed symmetry",
        )


def shifts(facts: Facts) -> Iterator[Finding]:
    """Shifts that move the particle out of its box."""
    if "translation" not in facts.columns or facts.width is None:
        return
    far = np.linalg.norm(facts.columns["translation"], axis=1) > LARGEST_SHIFT * facts.width
    if far.any():
        yield Finding(
            f"shifts exceed a quarter of the box {_rows(far)}", "check their unit (px or Å), or extract again, centred"
        )


def duplicates(facts: Facts) -> Iterator[Finding]:
    """Images or uids that are there twice."""
    for what, values in facts.keys.items():
        twice = pd.Series(values).duplicated().to_numpy()
        if twice.any():
            yield Finding(
                f"the same {what} is there again {_rows(twice)}",
                "remove duplicates, unless a symmetry expansion made them",
            )


def half_sets(facts: Facts) -> Iterator[Finding]:
    """Half sets that are absent or all one."""
    if "half_set" not in facts.columns:
        return
    kinds = np.unique(facts.columns["half_set"])
    if len(kinds) == 1:
        what = "there are no half sets" if kinds[0] == 0 else f"all particles are in half set {kinds[0]:g}"
        yield Finding(what, "gold-standard resolution needs both; training does not")


def sampled_images(facts: Facts) -> Iterator[Finding]:
    """Images that hold nothing."""
    if facts.sample is None:
        return
    rows, is_finite = facts.sample.rows, facts.sample.is_finite
    for bad, what in (
        (~is_finite, "pixels that are not numbers"),
        (is_finite & (facts.sample.spread == 0), "no variance"),
    ):
        if bad.any():
            yield Finding(
                f"{bad.sum():,} of {len(rows):,} sampled images have {what}, the first is of row {rows[bad][0]}",
                "remove them, or extract them again",
            )


def contrast(facts: Facts) -> Iterator[Finding]:
    """Images that contradict what is said of their sign."""
    said = facts.protein_is_white
    if facts.contrast is None or said is None:
        return
    white = facts.contrast.data_sign == units.sign_of_white_protein(facts.has_ctf)
    if white != said:
        yield Finding(
            f"protein is said to be {'white' if said else 'dark'}, but the images say {'white' if white else 'dark'}",
            f"look at the mean image, and convert with {'--invert' if said == facts.has_ctf else '--no-invert'} "
            "if what is said is right",
        )


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    unread,
    missing_files,
    truncated_stacks,
    volume,
    images_outside,
    box_sizes,
    header_apix,
    outlying_apix,
    samplings,
    defocus,
    voltage,
    cs,
    amplitude_contrast,
    poses,
    view_coverage,
    shifts,
    duplicates,
    half_sets,
    sampled_images,
    contrast,
)


def find_suspicious(facts: Facts) -> tuple[Finding, ...]:
    """Make all checks."""
    return tuple(finding for check in CHECKS for finding in check(facts))
