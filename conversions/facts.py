"""What can be read of particles without stopping at the first mistake: what ``drgn-ray inspect`` judges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from conversions import cryodrgn, files, mrcs
from conversions.csdat import CSDAT_MAGIC
from conversions.driver import READ_BYTES
from conversions.inputs import open_source
from conversions.mrcs import StackHeader
from conversions.relion import star_file_of
from conversions.stacks import find_stacks, read_list
from conversions.star import RELION_31
from conversions.table import CTF_OF_SOURCE, Columns, Locations, Source, check_values
from drgn_ray import units
from drgn_ray.errors import ParticleFileError, UserError
from drgn_ray.particles import normalise
from drgn_ray.particles.store import ParticleStore, StoreInfo, StoreWriter, read_info
from drgn_ray.physics.ctf import compute_ctf
from drgn_ray.physics.fourier import fourier_crop
from drgn_ray.physics.observation import CTF_COLUMNS, OBSERVED_COLUMNS

T = TypeVar("T")
RELION_VERSIONS = {RELION_31: "3.1", 40001: "4", 50001: "5"}
ENOUGH_FOR_CONTRAST = 100  # images; the consensus of fewer is streaks, whose skewness says nothing
CTF_AZIMUTHS = 8  # directions in which an astigmatic CTF is evaluated for its rotational mean


class Line(NamedTuple):
    """One thing that was found, for the screen."""

    label: str
    value: str


class Unread(NamedTuple):
    """Something that could not be read, and why."""

    what: str
    error: UserError


class Attempts(list[Unread]):
    """Reads, and remembers what could not be read."""

    def __call__(self, what: str, read: Callable[..., T], *arguments: Any) -> T | None:
        """Read; None where that fails."""
        try:
            return read(*arguments)
        except UserError as error:
            self.append(Unread(what, error))
            return None


@dataclass(frozen=True)
class ImageFiles:
    """Where the images are.

    Attributes
    ----------
    names
        All files.
    headers
        What the files that could be read say, by number; the files may be cut short.
    missing
        Files that are not there, by number.
    file_of, index_of
        For every particle its file, by number, and its 0-based image in it.
    """

    names: tuple[str, ...]
    headers: Mapping[int, StackHeader]
    missing: tuple[int, ...]
    file_of: Int[np.ndarray, " N"]
    index_of: Int[np.ndarray, " N"]

    @cached_property
    def box_size(self) -> Float[np.ndarray, " N"]:
        """Box size that the files' headers say, px; not a number where there is none."""
        return self.of_file(lambda stack: stack.box_size)

    @cached_property
    def is_there(self) -> Bool[np.ndarray, " N"]:
        """Images that can be read."""
        return self.is_below(lambda stack: stack.num_present)

    def is_below(self, count: Callable[[StackHeader], int]) -> Bool[np.ndarray, " N"]:
        """Images whose number in their file is below a count of that file."""
        return (self.index_of >= 0) & (self.index_of < self.of_file(count))

    def of_file(self, value: Callable[[StackHeader], float]) -> Float[np.ndarray, " N"]:
        """Look a value of its file up for every image; not a number where the file could not be read."""
        values = np.full(len(self.names), np.nan)
        values[list(self.headers)] = [value(header) for header in self.headers.values()]
        return values[self.file_of]

    def read(self, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n D D"]:
        """Images that are there, of one box size."""
        used, stack_of = np.unique(self.file_of[rows], return_inverse=True)
        return mrcs.read_images([self.headers[int(number)] for number in used], stack_of, self.index_of[rows])


class Sample(NamedTuple):
    """What at most 1,000 images say.

    Attributes
    ----------
    rows
        Their particles.
    is_finite, spread
        Whether all pixels are numbers, and the pixels' standard deviation.
    pictured
        Those that went into what follows: finite, and of the first image's box size.
    """

    rows: Int[np.ndarray, " n"]
    is_finite: Bool[np.ndarray, " n"]
    spread: Float[np.ndarray, " n"]
    pictured: Int[np.ndarray, " m"]
    mean_image: Float[np.ndarray, "D D"]
    mean_power: Float[np.ndarray, " D//2"]
    small: Float[torch.Tensor, "m d d"]


@dataclass(frozen=True)
class Facts:
    """All that is known of some particles; what is not known is absent.

    Attributes
    ----------
    columns
        Columns of `drgn_ray.particles.schema` that could be read and hold numbers alone.
    said_box_size
        Box size that the table says, px.
    extent, shift_unit
        Width of the images in the unit of the shifts, which is Å, or the box in a ``pose.pkl``.
    keys
        What no two particles may share, as integers.
    sign, protein_is_white
        What is said of the contrast, in words and as in `Source`.
    unread
        What could not be read.
    notes
        Lines of this kind of file alone.
    """

    path: str
    kind: str
    count: int
    columns: Columns = field(default_factory=dict)
    said_box_size: Float[np.ndarray, " N"] | None = None
    extent: Float[np.ndarray, " N"] | None = None
    shift_unit: str = "Å"
    images: ImageFiles | None = None
    keys: Mapping[str, Int[np.ndarray, " N"]] = field(default_factory=dict)
    sample: Sample | None = None
    sign: str = ""
    protein_is_white: bool | None = None
    has_ctf: bool = True
    aberrations: Sequence[str] = ()
    unread: Sequence[Unread] = ()
    notes: Sequence[Line] = ()

    @cached_property
    def box_size(self) -> Float[np.ndarray, " N"] | None:
        """Box size of the images, px: what their files say, else the table; not a number where nothing does."""
        read = np.full(self.count, np.nan) if self.images is None else self.images.box_size
        said = np.full(self.count, np.nan) if self.said_box_size is None else self.said_box_size
        box_size = np.where(np.isnan(read), said, read)
        return None if np.isnan(box_size).all() else box_size

    @cached_property
    def width(self) -> Float[np.ndarray, " N"] | None:
        """Width of the images in the unit of the shifts; not a number where it is unknown."""
        if self.extent is not None or self.box_size is None or "apix" not in self.columns:
            return self.extent
        return self.box_size * self.columns["apix"]

    @cached_property
    def num_particles(self) -> int:
        """Particles, each of which may have several images."""
        return len(np.unique(self.columns["particle"])) if "particle" in self.columns else self.count

    @property
    def is_tilt_series(self) -> bool:
        """Whether particles have several images."""
        return self.num_particles < self.count

    @cached_property
    def directions(self) -> Float[np.ndarray, "N 3"] | None:
        """Viewing directions: the normals of the central slices."""
        return self.columns["rotation"][:, 2] if "rotation" in self.columns else None

    @cached_property
    def contrast(self) -> normalise.Contrast | None:
        """What the sampled images say of the contrast, where they are enough and have poses and CTF."""
        needed = set(OBSERVED_COLUMNS) - {"images"} - (set() if self.has_ctf else set(CTF_OF_SOURCE))
        if self.sample is None or not needed <= set(self.columns) or len(self.sample.pictured) < ENOUGH_FOR_CONTRAST:
            return None
        rows, small = self.sample.pictured, self.sample.small
        values = {name: torch.from_numpy(self.columns[name][rows]).float() for name in needed}
        values["apix"] = values["apix"] * (len(self.sample.mean_image) / small.shape[-1])
        return normalise.decide_contrast(small, values, has_ctf=self.has_ctf, protein_is_white=self.protein_is_white)

    @cached_property
    def mean_squared_ctf(self) -> Float[np.ndarray, " D//2"] | None:
        """Mean CTF² of the sampled images at the frequencies of their mean power."""
        if self.sample is None or not self.has_ctf or not set(CTF_COLUMNS) <= set(self.columns):
            return None
        num_rings = len(self.sample.mean_power)
        angles = torch.arange(CTF_AZIMUTHS) * (torch.pi / CTF_AZIMUTHS)
        radii = torch.arange(1, num_rings + 1) / (2 * num_rings)
        points = (radii[:, None, None] * torch.stack([angles.cos(), angles.sin()], -1)).reshape(-1, 2)
        rows = self.sample.pictured
        ctf = compute_ctf(points, **{name: torch.from_numpy(self.columns[name][rows]).float() for name in CTF_COLUMNS})
        return (ctf**2).mean(0).reshape(num_rings, CTF_AZIMUTHS).mean(1).numpy()


def particle_facts(path: str, *, datadir: str | None, passthrough: Sequence[str], apix: float | None) -> Facts:
    """Read a STAR or ``.cs`` file, and of its images the headers and a sample."""
    source, attempt = open_source(path, datadir=datadir, passthrough=passthrough), Attempts()
    count = len(source)
    rows = np.arange(count)
    tables = source.tables
    columns = {"source_row": rows, **(attempt("labels", source.labels) or {})}
    columns |= {name: attempt(name, source.ctf_column, name) for name in CTF_OF_SOURCE}
    columns["rotation"] = attempt("poses", source.rotation)
    columns["apix"] = attempt("pixel size", source.pixel_size) if apix is None else np.full(count, apix)
    if columns["apix"] is not None and columns["rotation"] is not None:
        columns["translation"] = attempt("shifts", source.translation, columns["apix"])
    attempt("images", source.check_raw)
    named = attempt("image names", source.images_named, rows)
    images = None if named is None else _find_images(attempt, path, named, datadir)
    keys = {} if named is None else {"image": named.stack_of * (2 + named.index_of.max()) + 1 + named.index_of}
    if "uid" in tables["table"].column_names:
        keys["uid"] = tables["table"]["uid"].to_numpy()
    columns = _without_gaps(attempt, path, columns)
    ranged = {name: values for name, values in columns.items() if name not in _JUDGED_ELSEWHERE}
    attempt("values", check_values, path, ranged)
    return Facts(
        path=path,
        kind=_kind_of_table(source, tables),
        count=count,
        columns=columns,
        said_box_size=attempt("box sizes", source.box_sizes),
        images=images,
        keys=keys,
        sample=None if images is None else attempt("sampled images", _sample_files, images),
        sign=_SIGN[source.protein_is_white],
        protein_is_white=source.protein_is_white,
        aberrations=source.aberrations(),
        unread=attempt,
    )


_JUDGED_ELSEWHERE = ("voltage", "amplitude_contrast")  # in `conversions.suspicions`, with a better remedy
_SIGN = {
    None: "the file says nothing of the contrast",
    True: "the file says that protein is white",
    False: "the file says that protein is dark",
}


def _kind_of_table(source: Source, tables: Mapping[str, Any]) -> str:
    star = star_file_of(tables)
    if star is None:
        (magic,) = files.read_ranges([(source.path, 0, len(CSDAT_MAGIC))])
        return f"cryoSPARC particles ({'CSDAT' if magic == CSDAT_MAGIC else 'NumPy format'})"
    if star.version is None:
        return f"RELION {'3.1 or later' if 'optics' in tables else '3.0'} STAR (no version line)"
    return f"RELION {RELION_VERSIONS.get(star.version, 'of unknown version')} STAR (version {star.version})"


def _without_gaps(attempt: Attempts, path: str, columns: Mapping[str, np.ndarray | None]) -> Columns:
    """Keep the columns that hold numbers alone."""
    kept: Columns = {}
    for name, values in columns.items():
        if values is None:
            continue
        bad = np.flatnonzero(~np.isfinite(values.astype(np.float64)).reshape(len(values), -1).all(axis=1))
        if len(bad):
            what = f"{name} is no number in {len(bad):,} of {len(values):,} rows, the first is row {bad[0]}"
            attempt.append(Unread(name, ParticleFileError(path, what, "remove or mend those rows")))
        else:
            kept[name] = values
    return kept


def stack_facts(path: str, *, datadir: str | None, apix: float | None) -> Facts:
    """Read an MRC stack, or a ``.txt`` list of stacks."""
    attempt = Attempts()
    if path.endswith(".txt"):
        found, there = find_stacks(path, read_list(path), datadir)
        kind = "list of MRC stacks"
    else:
        mrcs.read_header_alone(path)  # that of the file itself must be good
        found, there = (path,), [True]
        kind = "MRC stack"
    headers, missing = _read_headers(attempt, found, there)
    counts = np.array([header.num_images for header in headers.values()], np.int64)
    index_of = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    images = ImageFiles(found, headers, missing, np.repeat(np.array([*headers], np.int64), counts), index_of)
    return Facts(
        path=path,
        kind=kind,
        count=len(index_of),
        columns={} if apix is None else {"apix": np.full(len(index_of), apix)},
        images=images,
        sample=attempt("sampled images", _sample_files, images),
        sign="an image stack says nothing of the contrast, the poses or the CTF",
        unread=attempt,
    )


def _read_headers(
    attempt: Attempts, found: Sequence[str], there: Sequence[bool]
) -> tuple[dict[int, StackHeader], tuple[int, ...]]:
    """Read the headers of the files that are there and are stacks, and list the files that are not there."""
    present = np.flatnonzero(there).tolist()
    read = files.at_the_same_time(lambda n: attempt("image file", mrcs.read_header_alone, found[n]), present)
    headers = {number: header for number, header in zip(present, read, strict=True) if header is not None}
    return headers, tuple(np.flatnonzero(~np.array(there)).tolist())


def _find_images(attempt: Attempts, path: str, named: Locations, datadir: str | None) -> ImageFiles:
    found, there = find_stacks(path, named.stacks, datadir)
    return ImageFiles(found, *_read_headers(attempt, found, there), named.stack_of, named.index_of)


def _spread_evenly(count: int) -> Int[np.ndarray, " n"]:
    """At most 1,000 numbers below a count."""
    return np.unique(np.linspace(0, count - 1, min(count, normalise.NUM_SAMPLES)).astype(np.int64))


def _sample_files(images: ImageFiles) -> Sample | None:
    there = np.flatnonzero(images.is_there)
    if not len(there):
        return None
    rows = there[_spread_evenly(len(there))]

    def batches() -> Iterator[tuple[Int[np.ndarray, " b"], Float[np.ndarray, "b D D"]]]:
        sides, counts = np.unique(images.box_size[rows].astype(np.int64), return_counts=True)
        for side in sides[np.argsort(-counts)]:
            mine = rows[images.box_size[rows] == side]
            step = max(1, READ_BYTES // (4 * int(side) ** 2))
            for start in range(0, len(mine), step):
                part = mine[start : start + step]
                yield part, images.read(part)

    return _measure(batches())


def _measure(batches: Iterable[tuple[Int[np.ndarray, " b"], Shaped[np.ndarray, "b D D"]]]) -> Sample:
    """Measure images that come in batches, of which one is in memory."""
    rows, is_finite, spread, pictured, small = [], [], [], [], []
    total, power = torch.zeros(0, 0), torch.zeros(0, 0)
    for part, raw in batches:
        images = torch.from_numpy(raw.astype(np.float32))
        good = images.isfinite().all(-1).all(-1)
        deviation = images.double().std((-2, -1), correction=0)
        rows.append(part)
        is_finite.append(good.numpy())
        spread.append(deviation.numpy())
        if not len(total):
            side = images.shape[-1]
            total, power = torch.zeros(side, side).double(), torch.zeros(side, side // 2 + 1).double()
        if images.shape[-1] == len(total) and good.any():  # of no images, MKL makes no transform
            images = images[good]
            pictured.append(part[good.numpy()])
            small.append(fourier_crop(images, min(normalise.CONTRAST_BOX, len(total))))
            total += images.double().sum(0)
            power += (torch.fft.rfft2(images).abs() ** 2).double().sum(0)
    count = max(sum(map(len, pictured)), 1)
    return Sample(
        np.concatenate(rows),
        np.concatenate(is_finite),
        np.concatenate(spread),
        np.concatenate(pictured) if pictured else np.zeros(0, np.int64),
        (total / count).numpy(),
        _ring_means(power / (count * total.numel())),
        torch.cat(small) if small else torch.zeros(0, 0, 0),
    )


def _ring_means(power: Float[torch.Tensor, "D D//2+1"]) -> Float[np.ndarray, " D//2"]:
    """Mean over the rings 1 to D/2 of what ``rfft2`` holds."""
    side = len(power)
    ky, kx = torch.fft.fftfreq(side, 1 / side), torch.arange(side // 2 + 1)
    ring = (kx**2 + ky[:, None] ** 2).sqrt().round().long().ravel()
    total = torch.bincount(ring, weights=power.ravel())[1 : side // 2 + 1]
    return (total / torch.bincount(ring)[1 : side // 2 + 1]).numpy()


def store_facts(path: str) -> Facts:
    """Read a particle store, whole or not."""
    info, attempt = read_info(path), Attempts()
    if info is None:
        ParticleStore(path)  # says what is wrong
        raise AssertionError(path)
    store = attempt("store", ParticleStore, path)
    columns = {} if store is None else attempt("columns", lambda: store.columns) or {}
    without_ctf = set() if info.has_ctf else set(CTF_OF_SOURCE)
    return Facts(
        path=path,
        kind="particle store",
        count=info.num_particles,
        columns=_without_gaps(attempt, path, {n: v for n, v in columns.items() if n not in without_ctf}),
        said_box_size=np.full(info.num_particles, float(info.box_size)),
        sample=None if store is None else attempt("sampled images", _sample_store, store),
        sign=f"images are multiplied by {info.data_sign}; {info.contrast}",
        protein_is_white=info.data_sign == units.sign_of_white_protein(info.has_ctf),
        has_ctf=info.has_ctf,
        unread=attempt,
        notes=_store_notes(path, info, store),
    )


def _store_notes(path: str, info: StoreInfo, store: ParticleStore | None) -> tuple[Line, ...]:
    there = files.at_the_same_time(files.is_file, [source["path"] for source in info.sources])
    size = sum(source["bytes"] for source in info.sources) / 1e9
    gone = there.count(False)
    state = "yes, every file of it is there" if store is not None else "no"
    writer = StoreWriter(path)
    if store is None and writer.is_prepared:
        state += f": {len(writer.pending_shards())} of {writer.num_shards} shards are still to be written"
    return (
        Line("whole", state),
        Line("pixels", f"{info.dtype}, times {info.scale:g} gives the source's; Hartley std {info.hartley_std:.4g}"),
        Line(
            "sources", f"{len(there)} files, {size:.3g} GB" + (f"; {gone} of them are no longer there" if gone else "")
        ),
        Line("made by", info.command),
    )


def _sample_store(store: ParticleStore) -> Sample:
    """Read whole chunks, the unit of reading, spread evenly."""
    count = max(1, normalise.NUM_SAMPLES // store.chunk_size)
    chunks = np.unique(np.linspace(0, store.num_chunks - 1, min(count, store.num_chunks)).astype(int))
    spans = [store.chunk_rows(int(chunk)) for chunk in chunks]
    return _measure((np.arange(span.start, span.stop), store.read_images(span)) for span in spans)


def pose_facts(path: str, content: Any) -> Facts:
    """Read cryoDRGN's ``pose.pkl``."""
    attempt = Attempts()
    rotation = content[0] if isinstance(content, tuple) else content
    count = len(rotation)
    poses = attempt("poses", cryodrgn.read_poses, path, count)
    columns = {} if poses is None else {"rotation": poses.rotation, "translation": poses.fraction}
    return Facts(
        path=path,
        kind=f"cryoDRGN poses ({'rotations and shifts' if isinstance(content, tuple) else 'rotations alone'})",
        count=count,
        columns=_without_gaps(attempt, path, columns),
        extent=np.ones(count),
        shift_unit="of the box",
        unread=attempt,
    )


def ctf_facts(path: str, content: Any) -> Facts:
    """Read cryoDRGN's ``ctf.pkl``."""
    attempt = Attempts()
    ctf = attempt("CTF", cryodrgn.read_ctf, path, len(content))
    table = np.asarray(content, np.float64)
    columns = {} if ctf is None else {"apix": table[:, 1], **ctf.columns}
    return Facts(
        path=path,
        kind="cryoDRGN CTF",
        count=len(table),
        columns=_without_gaps(attempt, path, columns),
        said_box_size=table[:, 0],
        unread=attempt,
    )
