"""What a particle file, store or run holds, as lines for one screen, and what is suspicious about it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure
from mrcfile.utils import mode_from_dtype

from conversions import cryodrgn, files
from conversions.facts import (
    Attempts,
    Facts,
    Line,
    Unread,
    ctf_facts,
    particle_facts,
    pose_facts,
    stack_facts,
    store_facts,
)
from conversions.suspicions import AZIMUTH_BINS, HEIGHT_BINS, Finding, coverage, find_suspicious
from conversions.table import find_samplings
from drgn_ray.analysis.figures import particles_figure
from drgn_ray.config import RunConfig
from drgn_ray.errors import ConfigError, ParticleFileError, StoreError
from drgn_ray.particles.store import ParticleStore, StoreWriter
from drgn_ray.training.checkpoint import Position, load_position
from drgn_ray.training.embed import Latents, latents_of, trained_model
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.units import ANGSTROM_PER_MICROMETRE

SHOWN_GROUPS = 6  # optics groups that a screen has room for
BIN_DEGREES = math.degrees(math.sqrt(2 * math.pi / (AZIMUTH_BINS * HEIGHT_BINS)))


class Section(NamedTuple):
    """Lines that belong together."""

    title: str
    lines: tuple[Line, ...]


class Inspection(NamedTuple):
    """What was found in one file.

    Attributes
    ----------
    facts
        What is known of the particles, for the picture; None if these are none.
    """

    path: str
    sections: tuple[Section, ...]
    findings: tuple[Finding, ...]
    facts: Facts | None = None

    def __str__(self) -> str:
        """Lay it out for the screen."""
        rows = [
            ("" if number else section.title, *line)
            for section in self.sections
            for number, line in enumerate(section.lines)
        ]
        left, middle = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
        lines = [f"{title:{left}}  {label:{middle}}  {value}" for title, label, value in rows]
        suspicious = [f"- {finding}" for finding in self.findings] or ["nothing"]
        return "\n".join([self.path, *lines, "suspicious", *(f"  {line}" for line in suspicious)])


class Hints(NamedTuple):
    """What the user said to find or understand the images, as in ``convert``."""

    datadir: str | None = None
    passthrough: Sequence[str] = ()
    apix: float | None = None


def inspect(path: str, hints: Hints) -> Inspection:
    """Find out what something is, and look at it; what cannot be opened at all is a `UserError`."""
    if files.is_folder(path):
        reader = next((read for is_it, read in _FOLDERS if is_it(path)), None)
        if reader is None:
            raise StoreError(path, "this folder is neither a store nor a run", "pass the one or the other, or a file")
        return reader(path)
    suffix = next((suffix for suffix in _FILES if path.endswith(suffix)), None)
    if suffix is None and not files.is_file(path):
        raise ParticleFileError(path, "there is no such file or folder", "check the path")
    if suffix is None:
        raise ParticleFileError(
            path, f"its name ends in none of {', '.join(_FILES)}", "pass a particle file, a pickle, a store or a run"
        )
    return _FILES[suffix](path, hints)


def picture(inspection: Inspection) -> Figure:
    """Draw mean image, power spectrum, viewing directions and defocus, as far as they are known."""
    facts = inspection.facts
    if facts is None:
        raise ConfigError("--plot", f"{inspection.path} holds no particles", "pass the particle file or the store")
    sample, columns = facts.sample, facts.columns
    if sample is not None and not len(sample.pictured):
        sample = None
    return particles_figure(
        mean_image=None if sample is None else sample.mean_image,
        num_images=0 if sample is None else len(sample.pictured),
        mean_power=None if sample is None else sample.mean_power,
        mean_squared_ctf=facts.mean_squared_ctf,
        apix=float(np.median(columns["apix"][sample.pictured])) if sample is not None and "apix" in columns else None,
        directions=facts.directions,
        defocus_um=_mean_defocus(facts) / ANGSTROM_PER_MICROMETRE if _has(facts, "defocus_u", "defocus_v") else None,
        optics_group=columns.get("optics_group"),
        title=f"{Path(facts.path).name}: {facts.count:,} images",
    )


def _of_particles(facts: Facts) -> Inspection:
    """Lay out what is known of particles."""
    lines = {title: tuple(line for make in makers for line in make(facts)) for title, makers in _SECTIONS.items()}
    return Inspection(
        facts.path,
        tuple(Section(title, each) for title, each in lines.items() if each),
        find_suspicious(facts),
        facts,
    )


def _kind(facts: Facts) -> Iterator[Line]:
    yield Line("kind", facts.kind)
    yield from facts.notes


def _count(facts: Facts) -> Iterator[Line]:
    if not facts.is_tilt_series:
        yield Line("particles", f"{facts.count:,}")
        return
    _, images = np.unique(facts.columns["particle"], return_counts=True)
    dose = f"dose {_span(facts.columns['dose'], 'e/Å²')}"
    yield Line("tilt series", f"{len(images):,} particles, {_span(images)} images each, {facts.count:,} in all; {dose}")


def _samplings(facts: Facts) -> Iterator[Line]:
    if facts.extent is not None:
        return
    if facts.box_size is None or "apix" not in facts.columns:
        yield Line("box", "unknown" if facts.box_size is None else f"{_span(facts.box_size)} px")
        yield Line("Å/px", _span(facts.columns["apix"]) if "apix" in facts.columns else "unknown")
        return
    known = ~np.isnan(facts.box_size)
    found, number = find_samplings(facts.box_size[known].astype(np.int64), facts.columns["apix"][known])
    counts = np.bincount(number)
    for sampling, count in list(zip(found, counts, strict=True))[:SHOWN_GROUPS]:
        share = "" if len(found) == 1 else f": {count:,} images"
        value = f"{sampling.box_size} px of {sampling.apix:.4g} Å = {sampling.extent:.4g} Å{share}"
        yield Line("box, Å/px", value)


def _image_files(facts: Facts) -> Iterator[Line]:
    if facts.images is None:
        return
    images = facts.images
    kinds = sorted({f"mode {mode_from_dtype(h.dtype)} ({h.dtype.name})" for h in images.headers.values()})
    unreadable = len(images.names) - len(images.missing) - len(images.headers)
    parts = [f"{len(images.names):,}", *(f"MRC {kind}" for kind in kinds)]
    parts += [f"{len(images.missing):,} missing"] * bool(images.missing) + [f"{unreadable:,} unreadable"] * bool(
        unreadable
    )
    said = [header.apix for header in images.headers.values() if header.apix]
    parts += [f"headers say {_span(np.array(said))} Å/px"] if said else []
    yield Line("image files", ", ".join(parts))


def _grey_values(facts: Facts) -> Iterator[Line]:
    if facts.sample is not None and facts.sample.is_finite.any():
        good = facts.sample.is_finite
        spread = np.sqrt(np.mean(facts.sample.spread[good] ** 2))
        mean = facts.sample.mean_image.mean()
        yield Line("grey values", f"mean {mean:.3g}, std {spread:.3g} ({len(good):,} images sampled)")


def _contrast(facts: Facts) -> Iterator[Line]:
    if facts.sign:
        yield Line("sign", facts.sign)
    if facts.contrast is not None:
        yield Line("contrast", facts.contrast.evidence)


def _optics_groups(facts: Facts) -> Iterator[Line]:
    if "voltage" not in facts.columns and "cs" not in facts.columns:
        return
    groups = facts.columns.get("optics_group", np.ones(facts.count))
    values, counts = np.unique(groups, return_counts=True)
    shown = values[np.argsort(-counts, kind="stable")][:SHOWN_GROUPS]
    columns = dict(facts.columns) if facts.box_size is None else {**facts.columns, "box": facts.box_size}
    for value in shown:
        mine = groups == value
        parts = [
            f"{before}{_span(columns[name][mine])}{after}" for name, before, after in _OF_OPTICS if name in columns
        ]
        yield Line(f"group {value:g}", f"{', '.join(parts)}: {mine.sum():,} images")
    if len(values) > len(shown):
        yield Line("", f"and {len(values) - len(shown):,} smaller groups")


_OF_OPTICS = (
    ("box", "", " px"),
    ("apix", "", " Å/px"),
    ("voltage", "", " kV"),
    ("cs", "Cs ", " mm"),
    ("amplitude_contrast", "amplitude contrast ", ""),
)


def _defocus(facts: Facts) -> Iterator[Line]:
    if not facts.has_ctf:
        yield Line("CTF", "the images carry none")
    elif _has(facts, "defocus_u", "defocus_v"):
        mean = _mean_defocus(facts)
        astigmatism = np.abs(facts.columns["defocus_u"] - facts.columns["defocus_v"])
        yield Line("defocus", f"{_quartiles(mean)} Å (min, median, max)")
        yield Line("astigmatism", f"{np.median(astigmatism):,.0f} Å median, {astigmatism.max():,.0f} max")
    if "phase_shift" in facts.columns and facts.has_ctf and facts.columns["phase_shift"].any():
        yield Line("phase shift", f"{_span(facts.columns['phase_shift'])}°")


def _aberrations(facts: Facts) -> Iterator[Line]:
    if facts.aberrations:
        yield Line("not modelled", ", ".join(facts.aberrations))


def _views(facts: Facts) -> Iterator[Line]:
    if facts.directions is None:
        return
    views = coverage(facts.directions, facts.num_particles)
    seen = (
        f"{views.seen:.0%} of all directions ({BIN_DEGREES:.0f}° bins, opposite as one; evenly: {views.expected:.0%})"
    )
    enough = facts.num_particles >= AZIMUTH_BINS * HEIGHT_BINS
    yield Line("views", seen + f"; densest bin {views.densest:.1f} times the mean" * enough)


def _shifts(facts: Facts) -> Iterator[Line]:
    if "translation" not in facts.columns:
        return
    length = np.linalg.norm(facts.columns["translation"], axis=1)
    rms = math.sqrt(float((length**2).mean()))
    relative = facts.extent is None and facts.width is not None and bool(np.nanmin(facts.width) > 0)
    share = f" ({np.nanmax(length / facts.width):.1%} of the box)" if relative else ""
    yield Line("shifts", f"rms {rms:.3g}, max {length.max():.3g} {facts.shift_unit}{share}")


def _half_sets(facts: Facts) -> Iterator[Line]:
    if "half_set" in facts.columns:
        values, counts = np.unique(facts.columns["half_set"], return_counts=True)
        pairs = zip(values, counts, strict=True)
        yield Line(
            "half sets", ", ".join(f"{count:,} in {f'{value:g}' if value else 'none'}" for value, count in pairs)
        )


_SECTIONS: dict[str, tuple[Callable[[Facts], Iterator[Line]], ...]] = {
    "file": (_kind, _count),
    "images": (_image_files, _samplings, _grey_values, _contrast),
    "optics": (_optics_groups, _defocus, _aberrations),
    "poses": (_views, _shifts, _half_sets),
}


def _has(facts: Facts, *names: str) -> bool:
    return set(names) <= set(facts.columns)


def _mean_defocus(facts: Facts) -> Float[np.ndarray, " N"]:
    return (facts.columns["defocus_u"] + facts.columns["defocus_v"]) / 2


def _span(values: Shaped[np.ndarray, " N"], unit: str = "") -> str:
    """One number, or the least and the greatest."""
    low, high = float(np.nanmin(values)) + 0.0, float(np.nanmax(values)) + 0.0  # + 0.0: no minus before a zero
    shown = f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g} to {high:.4g}"
    return f"{shown} {unit}".rstrip()


def _quartiles(values: Float[np.ndarray, " N"]) -> str:
    return ", ".join(f"{value:,.0f}" for value in np.quantile(values, (0, 0.5, 1)))


def _inspect_pickle(path: str, hints: Hints) -> Inspection:
    """Read a pickle of cryoDRGN: poses, CTF, or row numbers."""
    content = cryodrgn.read_pickle(path)
    first = content[0] if isinstance(content, tuple) and content else content
    shape = np.shape(first) if isinstance(first, np.ndarray | list) else ()
    if len(shape) == 3 and shape[0]:
        return _of_particles(pose_facts(path, content))
    if len(shape) == 2 and shape[0] and shape[1] == _CTF_WIDTH:
        return _of_particles(ctf_facts(path, content))
    return _of_rows(path, content)


_CTF_WIDTH = 9


def _of_rows(path: str, content: Any) -> Inspection:
    """Lay out a list of row numbers; anything else is named by its shape."""
    try:
        rows = np.asarray(content)
    except ValueError:
        rows = np.asarray(None)
    if rows.ndim != 1 or rows.dtype.kind not in "iub" or not len(rows):
        what = f"{rows.dtype} of shape {rows.shape}" if rows.dtype.kind != "O" else type(content).__name__
        finding = Finding("it is no pose.pkl, ctf.pkl or selection of cryoDRGN", "see what wrote it")
        return Inspection(path, (Section("file", (Line("kind", f"pickle: {what}"),)),), (finding,))
    if rows.dtype.kind == "b":
        value, repeated, negative = f"{rows.sum():,} of {len(rows):,} (a mask)", False, False
    else:
        value = f"{len(rows):,}, from {rows.min():,} to {rows.max():,}"
        repeated, negative = len(np.unique(rows)) < len(rows), rows.min() < 0
    findings = [Finding("it names a row more than once", "keep each row once")] if repeated else []
    findings += [Finding("it names negative rows", "rows count from 0")] if negative else []
    lines = (Line("kind", "cryoDRGN selection (0-based rows)"), Line("rows", value))
    return Inspection(path, (Section("file", lines),), tuple(findings))


def _inspect_run(path: str) -> Inspection:
    """Read a run directory: its settings, how far it came, and what is in it."""
    run = RunDirectory(path)
    config, position = run.config(), load_position(run.checkpoints)
    attempt = Attempts()
    store = attempt("store", ParticleStore, config.particles)
    zdim, found = config.model.zdim if config.model.model == "vae" else 0, None
    if config.model.is_fitted and position.history and store is not None:
        model = trained_model(run, config, store, torch.device("cpu"))
        zdim, found = model.zdim, model.describe()
    latents = attempt("latents", latents_of, run) if position.history and store is not None and zdim else None
    return Inspection(
        path,
        (
            Section("file", tuple(_run_lines(config, store, found))),
            Section("training", tuple(_training_lines(run, config, position, latents))),
        ),
        tuple(_run_findings(run, config, position, store, latents, attempt)),
    )


def _run_lines(config: RunConfig, store: ParticleStore | None, found: str | None) -> Iterator[Line]:
    model = config.model
    held = "" if store is None else f": {len(store):,} particles, {store.info.box_size} px of {store.info.apix:.4g} Å"
    yield Line("kind", "run directory")
    yield Line("store", config.particles + held)
    of_pixels = f"encoder {model.enc_layers} x {model.enc_dim}"
    encoder = of_pixels if model.encoder == "residual" else f"{model.encoder} encoder"
    models = {
        "vae": f"zdim {model.zdim}, {encoder}, ",
        "homogeneous": "homogeneous, ",
        "linear": f"linear, {found or f'at most {model.zdim} dimensions'}",
        "curved": f"curved, {found or f'at most {model.zdim} dimensions'}",
    }
    decoders = {
        "coordinate": f"decoder {model.dec_layers} x {model.dec_dim}, {model.pe_type} encoding",
        "residual": f"consensus and decoder {model.dec_layers} x {model.dec_dim}, {model.pe_type} encoding",
        "basis": f"basis of {model.num_basis} volumes",
    }
    yield Line("model", models[model.model] + decoders.get(model.decoder, model.decoder) * (not model.is_fitted))


def _losses(position: Position) -> dict[str, float]:
    """Losses of the last finished epoch."""
    last = position.history[-1] if position.history else {}
    return {label: last[name] for name, label in _LOSSES.items() if name in last}


def _training_lines(
    run: RunDirectory, config: RunConfig, position: Position, latents: Latents | None
) -> Iterator[Line]:
    done, wanted = len(position.history), config.num_epochs
    checkpoints = sorted(folder.name for folder in run.checkpoints.glob("[!.]*"))
    analyses = [*run.analyses().values()]
    known = "none yet" if latents is None else f"{latents.z.shape[0]:,} particles, {latents.z.shape[1]} dimensions"
    yield Line("epochs", f"{done} of {wanted}; {position.images_seen:,} images seen")
    yield Line("loss", ", ".join(f"{label} {loss:.5g}" for label, loss in _losses(position).items()) or "none yet")
    yield Line("checkpoints", ", ".join(checkpoints) or "none yet")
    yield Line("latents", known)
    yield Line("analyses", ", ".join(folder.name for folder in analyses) or "none yet")


def _run_findings(
    run: RunDirectory,
    config: RunConfig,
    position: Position,
    store: ParticleStore | None,
    latents: Latents | None,
    unread: Sequence[Unread],
) -> Iterator[Finding]:
    for entry in unread:
        yield Finding(f"{entry.error.source}: {entry.error.found}", entry.error.remedy)
    done, wanted = len(position.history), config.num_epochs
    if done < wanted:
        remedy = f"unless it is still running, go on with `drgn-ray train -o {shlex.quote(str(run.path))}`"
        yield Finding(f"{done} of {wanted} epochs are finished", remedy)
    if not all(math.isfinite(loss) for loss in _losses(position).values()):
        yield Finding("the loss is no number", "train again with a lower --lr, or with --precision fp32")
    if store is not None and latents is not None and len(latents.z) != len(store):
        yield Finding(
            f"there are latents of {len(latents.z):,} particles, but the store has {len(store):,}",
            f"type `drgn-ray embed {run.path}`",
        )


_LOSSES = {"train_epoch/loss": "training", "val/loss": "held out"}


def _inspect_table(path: str, hints: Hints) -> Inspection:
    return _of_particles(particle_facts(path, **hints._asdict()))


def _inspect_stack(path: str, hints: Hints) -> Inspection:
    return _of_particles(stack_facts(path, datadir=hints.datadir, apix=hints.apix))


_FILES: dict[str, Callable[[str, Hints], Inspection]] = {
    ".star": _inspect_table,
    ".cs": _inspect_table,
    ".mrcs": _inspect_stack,
    ".mrc": _inspect_stack,
    ".txt": _inspect_stack,
    ".pkl": _inspect_pickle,
}
_FOLDERS: tuple[tuple[Callable[[str], bool], Callable[[str], Inspection]], ...] = (
    (lambda path: files.is_file(files.join(path, "config.yaml")), _inspect_run),
    (lambda path: StoreWriter(path).is_store(), lambda path: _of_particles(store_facts(path))),
)
