"""The trials of a sweep from best to worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from drgn_ray.text import as_cell
from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.compare import CLEAR, Gain, gain
from drgn_ray.training.sweep import Trial
from drgn_ray.training.sweep_directory import CONSENSUS, LINEAR, SweepDirectory

RankBy = Literal["gain", "back_projection", "half_sets"]
ON_REQUEST = {
    "back_projection": "FSC of eight states with back-projections of the particles near them, less that of one volume",
    "half_sets": "FSC of volumes that trainings on either half decode for the same particles, less that for others",
}
_UNENDED = ("waiting", "running")
_SHOWN = ("trial", "state", "on_front", "epochs", *ON_REQUEST, "gain", "behind", "recon_loss", "kld", "minutes")


def leaderboard(directory: SweepDirectory, trials: Sequence[Trial], rank_by: RankBy = "gain") -> pd.DataFrame:
    """Return a row for every trial, the best first, and those without a score at the end.

    Columns: ``trial, state, epochs``; ``gain``, over one volume for all after its newest epoch, nats an image, and its
    standard error; ``behind``, what it gains less than the best, image by image, and its standard error; ``recon_loss``
    and ``kld`` of held-out particles, ``minutes`` of training; and a column for every name of the space.  Where minutes
    are an objective too, ``on_front`` marks what no other trial beats in both.  ``back_projection`` and ``half_sets``
    are there when trials were scored by them (`ON_REQUEST`).
    """
    consensus = _last(directory, CONSENSUS)
    bounds = {trial.name: _last(directory, trial.name) for trial in trials}
    scored = [trial.name for trial in trials if bounds[trial.name] is not None]
    best = max(scored, key=lambda name: bounds[name].mean(), default="")
    rows = []
    for trial in trials:
        row: dict[str, Any] = {"trial": trial.name, "state": _state(directory, trial), "epochs": 0}
        if trial.name in scored:
            over, behind = gain(bounds[trial.name], consensus), gain(bounds[best], bounds[trial.name])
            row |= {"gain": over.mean, "gain_error": over.error, "behind": behind.mean, "behind_error": behind.error}
            row |= _training(directory, trial)
        rows.append(row | dict(trial.chosen))
    columns = ["gain", "gain_error", "behind", "behind_error", "recon_loss", "kld", "minutes"]
    table = pd.DataFrame(rows, columns=["trial", "state", "epochs", *columns, *trials[0].chosen])
    if "minutes" in directory.sweep().objectives:
        table.insert(2, "on_front", _on_front(table))
    for name in ON_REQUEST:
        scores = {trial.name: directory.score(trial.name, name) for trial in trials}
        if any(scores.values()) or name == rank_by:
            values = [score.value if score else None for score in scores.values()]
            table.insert(list(table.columns).index("gain"), name, pd.Series(values, dtype=float))
    by = list(dict.fromkeys((rank_by, "gain")))
    return table.sort_values(by, ascending=False, na_position="last", kind="stable", ignore_index=True)


def _on_front(table: pd.DataFrame) -> np.ndarray:
    """Mark the finished trials than which no other gains as much in less time, or more in as little."""
    finished = (table["state"] == "finished").to_numpy()
    gain, minutes = table["gain"].to_numpy()[finished], table["minutes"].to_numpy()[finished]
    no_worse = (gain[:, None] >= gain) & (minutes[:, None] <= minutes)
    better = (gain[:, None] > gain) | (minutes[:, None] < minutes)
    front = finished.copy()
    front[finished] = ~(no_worse & better).any(0)
    return front


def unended(table: pd.DataFrame) -> list[str]:
    """Name the trials that did not come to an end yet."""
    return [name for name, state in zip(table["trial"], table["state"], strict=True) if state in _UNENDED]


def reference_gain(directory: SweepDirectory) -> Gain:
    """Say what the linear subspace gains over one volume for all, which a network should beat."""
    return gain(_last(directory, LINEAR), _last(directory, CONSENSUS))


def markdown(directory: SweepDirectory, table: pd.DataFrame, rank_by: RankBy = "gain") -> str:
    """Say who leads, by how much, and list all trials."""
    shown = [name for name in _SHOWN if name in table.columns]
    names = [*shown, *table.columns[list(table.columns).index("minutes") + 1 :]]
    lines = [names, ["---"] * len(names), *([_cell(row, name) for name in names] for row in table.to_dict("records"))]
    listed = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    legends = [f"`{name}`: {said}, where it was asked for." for name, said in ON_REQUEST.items() if name in shown]
    legend = "\n".join([_LEGEND, *legends])
    return f"{verdict(directory, table, rank_by)}\n\n{listed}\n\n{legend}\n"


def verdict(directory: SweepDirectory, table: pd.DataFrame, rank_by: RankBy = "gain") -> str:
    """Say in words which trial leads, which may be as good, and whether it beats the linear subspace."""
    said = f"{len(table) - len(unended(table))} of {directory.sweep().num_trials} trials ended."
    leads = table.iloc[0].to_dict()
    if rank_by in ON_REQUEST and not np.isnan(leads.get(rank_by, np.nan)):
        said = f"{said} By {rank_by} **{leads['trial']}** leads with {leads[rank_by]:.3f}; by gain:"
    scored = table[table["gain"].notna()]
    if scored.empty:
        return said
    best = scored.iloc[int(np.argmax(scored["gain"]))]
    others = scored[scored["trial"] != best["trial"]]
    linear = reference_gain(directory)
    as_good = others[others["behind"] < CLEAR * others["behind_error"]]["trial"]
    also = f"; {', '.join(as_good)} may be as good" if len(as_good) else ""
    over = Gain(float(best["gain"]), float(best["gain_error"]))
    against = gain(_last(directory, best["trial"]), _last(directory, LINEAR))
    worth = "better than" if against.is_clear else "not clearly better than"
    front = table[table["on_front"]]["trial"] if "on_front" in table.columns else ()
    sooner = f" No other gains more in less time than {', '.join(front)}." if len(front) else ""
    return (
        f"{said} **{best['trial']}** leads with {over} nats an image over one volume for all{also}. It is {worth} the"
        f" linear subspace, which gains {linear}.{sooner}"
    )


_LEGEND = """`gain`: nats an image over one volume for all, on particles that were held out; `behind`: what it gains
less than the best, image by image. Differences below two standard errors may be chance. `recon_loss` is of windowed
images for networks that have a window, and cannot be compared with others'."""


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if isinstance(value, float) and np.isnan(value):
        return ""
    if name == "on_front":
        return "yes" if value else ""
    if name in ("gain", "behind"):
        return str(Gain(value, row[f"{name}_error"]))
    return f"{value:.3g}" if isinstance(value, float) else as_cell(value)


def _last(directory: SweepDirectory, name: str) -> Any:
    return next(reversed(directory.bounds(name).values()), None)


def _state(directory: SweepDirectory, trial: Trial) -> str:
    outcome = directory.outcome(trial.name)
    if outcome is not None:
        return outcome.state
    return "running" if directory.run(trial.name).config_file.exists() else "waiting"


def _training(directory: SweepDirectory, trial: Trial) -> dict[str, float]:
    last = load_position(directory.run(trial.name).checkpoints).history[-1]
    found = {"recon_loss": last["val/recon_loss"], "kld": last["val/kld"], "minutes": last["perf/total_seconds"] / 60}
    return {"epochs": last["epoch"], **found}
