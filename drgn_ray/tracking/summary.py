"""The note at the top of a run's page: what came out, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from drgn_ray.analysis.analyze import Analysis
from drgn_ray.analysis.consensus import Correlation, resolutions
from drgn_ray.analysis.support import Support
from drgn_ray.analysis.sweep_figures import CURVES, PARALLEL
from drgn_ray.particles.store import StoreInfo
from drgn_ray.progress import format_duration
from drgn_ray.text import as_cell
from drgn_ray.tracking.location import run_link
from drgn_ray.tracking.run import EXPLORER, PROMOTED, TrackedRun
from drgn_ray.training.checkpoint import Position
from drgn_ray.training.compare import Comparison
from drgn_ray.training.run_directory import RunDirectory


def summary(
    run: RunDirectory,
    info: StoreInfo,
    position: Position,
    analysis: Analysis,
    comparison: Comparison | None,
    supported: Support | None,
    described: str,
    explorer: str,
) -> str:
    """Markdown of a finished run.

    Parameters
    ----------
    comparison
        With the linear subspace that it started from, if any.
    supported
        With back-projections of states, if there are particles enough.
    described
        What the model is, in words.
    explorer
        Address of the page.
    """
    last = position.history[-1] if position.history else {}
    shares = ", ".join(f"{share:.0%}" for share in analysis.pca.variance_share[:4])
    rows = [
        ("particles", f"{info.num_particles:,} of {info.box_size} px, {info.apix:.4g} Å/px"),
        ("contrast", info.contrast),
        ("model", f"{run.config().model.model}: {described}"),
        ("epochs", str(last.get("epoch", 0))),
        *((label, f"{last[key]:.4f}") for label, key in _LOSSES if key in last),
        *((label, f"{last[key]:.0f} of {len(analysis.pca.variance_share)}") for label, key in _COUNTS if key in last),
        *_changed(last),
        *_cost(last),
        ("variance of PC1, PC2, ...", shares),
        ("k-means clusters", _sizes(analysis.clusters.labels)),
        ("Gaussian mixture", f"{_sizes(analysis.mixture.labels)}, by BIC, of at most {len(analysis.mixture.bic)}"),
        *(() if comparison is None else _compared(comparison)),
        *(() if supported is None else ((supported.about, str(supported)),)),
    ]
    table = "\n".join(f"| {name} | {as_cell(value)} |" for name, value in rows)
    config = run.config()
    path, ends = shlex.quote(str(run.path)), analysis.source_rows[[0, -1]]
    decode = f"    drgn-ray decode {path} --path {ends[0]},{ends[1]} -n 12 -o movie/"
    way = f"{decode}     # or, where particles lie far apart, --through line\n" if ends[0] != ends[1] else ""
    movie = "     # or movie_pc1.cxc" if len(analysis.volumes) > 1 else ""
    again = f"    drgn-ray train -o {path} -n {2 * int(last.get('epoch', 10))}     # train longer\n"
    longer = "" if config.model.is_fitted else again
    return f"""| | |
|---|---|
{table}

**Look** at the [explorer]({explorer}): latents beside volumes, and a lasso to choose particles. In ChimeraX,
the volumes of the k-means centres:

    cd {shlex.quote(str(analysis.folder))}; chimerax view_kmeans.cxc{movie}

**Next**

{way}    drgn-ray landscape {path}     # components and states of volumes, and every particle's place among them
    drgn-ray analyze {path} --umap
{longer}"""


def _changed(last: Mapping[str, float]) -> list[tuple[str, str]]:
    if "convergence/volume_change" not in last:
        return []
    latents = last.get("convergence/latent_change")
    said = "" if latents is None else f"latents by {latents:.1%} of their spread, "
    volumes = f"volumes by {last['convergence/volume_change']:.1%}"
    finest = f"(FSC 0.5 at {last['convergence/volume_resolution']:.3g} Å)"
    return [("the last epoch changed", f"{said}{volumes} {finest}")]


def _cost(last: Mapping[str, float]) -> list[tuple[str, str]]:
    if "perf/total_seconds" not in last:
        return []
    gpus = last.get("perf/gpu_hours", 0.0)
    return [
        ("training took", format_duration(last["perf/total_seconds"]) + (f", {gpus:.2f} GPU-hours" if gpus else ""))
    ]


def _sizes(labels: Int[np.ndarray, " N"]) -> str:
    counts = np.bincount(labels)
    return f"{len(counts)}, of {counts.min():,} to {counts.max():,} particles"


def one_volume_summary(run: RunDirectory, info: StoreInfo, position: Position, against: Correlation) -> str:
    """Markdown of a finished run without latents; `against` is its FSC with the back-projection."""
    last = position.history[-1] if position.history else {}
    rows = [
        ("particles", f"{info.num_particles:,} of {info.box_size} px, {info.apix:.4g} Å/px"),
        ("contrast", info.contrast),
        ("epochs", str(last.get("epoch", 0))),
        *((label, f"{last[key]:.4f}") for label, key in _LOSSES[:2] if key in last),
        *_changed(last),
        *_cost(last),
        ("FSC with the back-projection", resolutions(against)),
    ]
    table = "\n".join(f"| {name} | {as_cell(value)} |" for name, value in rows)
    folder = run.analysis(int(last.get("epoch", 0)))
    return f"""| | |
|---|---|
{table}

**Look** at `{folder.name}/fsc_backproject.png` and, in ChimeraX:

    chimerax {folder}/reconstruct.mrc {folder}/backproject.mrc

**Next**, the landscape of shapes:

    drgn-ray train {run.config().particles} -o {run.path.parent}/vae --zdim 8
"""


def sweep_note(sweep: TrackedRun, board: str) -> str:
    """Markdown of a sweep: where to look, and its leaderboard."""
    links = [
        f"[settings against gain]({sweep.link_to(PARALLEL)})",
        f"[gain after every epoch]({sweep.link_to(CURVES)})",
        f"[the leaderboard as a table]({sweep.link_to('leaderboard.csv')})",
    ]
    if explorer := sweep.tag(EXPLORER):
        links.append(f"[the winner's explorer]({sweep.link_to(explorer)})")
    if promoted := sweep.tag(PROMOTED):
        links.append(f"[the winner, trained in full]({run_link(sweep.uri, sweep.experiment_id, promoted)})")
    return f"**Look** at {', '.join(links)}.\n\n{board}"


def _compared(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    over = f"over one volume for all, nats an image ({comparison.num_images:,} held out)"
    if comparison.model_over_linear is None:
        return ((f"this model {over}", str(comparison.model)),)
    return (
        (f"this model {over}", str(comparison.model)),
        (f"linear subspace {over}", str(comparison.linear)),
        ("this model is", comparison.verdict),
    )


_COUNTS = (("latent dimensions in use", "latent/active_dims"),)
_LOSSES = (("training loss", "train_epoch/loss"), ("held-out loss", "val/loss"), ("KL divergence, nats", "val/kld"))
