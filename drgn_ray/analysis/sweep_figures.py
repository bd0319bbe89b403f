"""Pictures of a sweep: settings against gain, and gain against epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from drgn_ray.patience import write_whole
from drgn_ray.training.compare import Gain, gain
from drgn_ray.training.leaderboard import reference_gain
from drgn_ray.training.sweep import Distribution, Trial
from drgn_ray.training.sweep_directory import CONSENSUS, SweepDirectory

PARALLEL, CURVES = "parallel_coordinates.html", "gain.png"
NUM_NAMED = 8  # the best trials, whose curves have a colour and a name
NUM_TICKS = 5
MOST_NAMES = 40  # of trials, that can be read beside an axis
SHADES = [[0.0, "#d0d0d0"], [0.5, "#6baed6"], [0.8, "#08519c"], [1.0, "#c00020"]]  # the best stand out


def write_figures(directory: SweepDirectory, trials: Sequence[Trial], table: pd.DataFrame) -> list[Path]:
    """Draw what a sweep found so far into its directory; nothing, before a trial has a score."""
    if not table["gain"].notna().to_numpy().any():
        return []
    (consensus,) = directory.bounds(CONSENSUS).values()
    gains = {
        name: {epoch: gain(bounds, consensus) for epoch, bounds in directory.bounds(name).items()}
        for name in table["trial"]
    }
    # One file with all that it needs: MLflow's frame lets no requests through.
    page = parallel_coordinates(table, trials, directory.sweep().space).to_html(include_plotlyjs=True)
    write_whole(directory.path / PARALLEL, page)
    partial = directory.path / f".{CURVES}.partial"
    gain_figure(gains, reference_gain(directory)).savefig(partial, dpi=110, format="png")
    partial.replace(directory.path / CURVES)
    return [directory.path / PARALLEL, directory.path / CURVES]


def parallel_coordinates(table: pd.DataFrame, trials: Sequence[Trial], space: Mapping[str, Distribution]) -> go.Figure:
    """Draw a line for every trial that has a score, through its settings to its gain.

    Parameters
    ----------
    table
        The leaderboard.
    space
        What was searched.
    """
    scored = table[table["gain"].notna()][::-1]  # the best are drawn last, over the others
    gains: list[float] = scored["gain"].tolist()
    chosen = {trial.name: trial.chosen for trial in trials}
    values = {name: [chosen[trial][name] for trial in scored["trial"]] for name in space}
    axes = [_axis(name, values[name], space[name]) for name in space if len(set(map(str, values[name]))) > 1]
    of_trial = {"label": "trial", "values": [*range(len(scored))], "tickvals": [*range(len(scored))]}
    if len(scored) <= MOST_NAMES:
        axes.insert(0, of_trial | {"ticktext": scored["trial"].tolist()})
    axes.append({"label": "gain", "values": gains})
    lowest = max(min(gains), -abs(max(gains)))  # what is far below takes no colours from the others
    line = {"color": gains, "colorscale": SHADES, "cmin": lowest, "cmax": max(gains)}
    figure = go.Figure(go.Parcoords(line=line, dimensions=axes, labelfont={"size": 14}, tickfont={"size": 12}))
    without = f" ({len(table) - len(scored)} others have no gain yet)" if len(scored) < len(table) else ""
    title = (
        f"{len(scored)} trials{without}, and what they gain over one volume, nats an image. Drag along axes to choose."
    )
    return figure.update_layout(
        title={"text": title, "font": {"size": 14}, "y": 0.97}, margin={"l": 90, "r": 60, "t": 90, "b": 40}
    )


def _axis(name: str, values: Sequence[Any], distribution: Distribution) -> dict[str, Any]:
    if distribution.choice is not None:
        choices = [choice for choice in distribution.values if choice in values]
        places = [choices.index(value) for value in values]
        return {
            "label": name,
            "values": places,
            "tickvals": [*range(len(choices))],
            "ticktext": [str(choice) for choice in choices],
        }
    if distribution.loguniform is None:
        return {"label": name, "values": list(values)}
    ticks = np.geomspace(min(values), max(values), NUM_TICKS)
    return {
        "label": name,
        "values": np.log10(values),
        "tickvals": np.log10(ticks),
        "ticktext": [f"{tick:.2g}" for tick in ticks],
    }


def gain_figure(gains: Mapping[str, Mapping[int, Gain]], linear: Gain) -> Figure:
    """Draw the gain of every trial after every epoch.

    Parameters
    ----------
    gains
        By trial, the best first, and epoch.
    linear
        Of the subspace that networks should beat.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    begun = [(name, of_trial) for name, of_trial in gains.items() if of_trial]
    for place, (name, of_trial) in enumerate(begun):
        style: dict[str, Any] = {"color": f"C{place}", "label": name} if place < NUM_NAMED else {"color": "silver"}
        means, errors = ([getattr(each, part) for each in of_trial.values()] for part in ("mean", "error"))
        axes.errorbar([*of_trial], means, errors, marker="o", markersize=3, linewidth=1.3, zorder=-place, **style)
    axes.axhline(linear.mean, color="black", linestyle="--", linewidth=1, label="linear subspace")
    axes.axhline(0, color="grey", linewidth=0.8)
    top = max(linear.mean, *(each.mean for _, of_trial in begun for each in of_trial.values()))
    lowest = min(each.mean for _, of_trial in begun for each in of_trial.values())
    if lowest < -top:  # first epochs of some tell nothing of the others
        axes.set_ylim(bottom=-top)
        axes.set_title(f"the lowest, at {lowest:.3g}, is below the picture", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="gain over one volume, nats an image")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
