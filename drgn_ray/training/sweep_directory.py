"""What the directory of a sweep holds, from which the same command goes on.

``.lock`` (held by the driver), ``sweep.json`` (the trials, each written before it starts, with the settings that it has
now), ``reference/`` (the run directory of the linear subspace that all are measured by), ``trials/NAME/`` (run
directories), ``bounds/NAME/`` (held-out bounds after every epoch), ``outcomes/NAME.json`` (how it ended),
``scores/BY/NAME.json`` (what it is ranked by on request), ``halves/NAME/`` (its settings, trained on each half of the
particles), ``leaderboard.csv``, ``leaderboard.md``, ``mlflow.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from drgn_ray.config import RunConfig
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.patience import write_whole
from drgn_ray.training.lock import is_empty, locked
from drgn_ray.training.run_directory import SWEEP_NAME, RunDirectory
from drgn_ray.training.sweep import Sweep, Trial

CONSENSUS, LINEAR = "consensus", "linear"  # whose bounds are there beside those of trials


class Outcome(NamedTuple):
    """How a trial ended: ``finished``, ``stopped`` (by the scheduler) or ``failed``, and why."""

    state: str
    why: str = ""


class Score(NamedTuple):
    """What a trial is ranked by on request; None, and why there is none."""

    value: float | None
    why: str = ""


class SweepDirectory:
    """Paths and state of a sweep."""

    def __init__(self, path: str | Path) -> None:
        self.tracked = RunDirectory(path)  # whose mlflow.json is that of the parent run
        self.path = self.tracked.path
        self.file = self.path / SWEEP_NAME
        self.reference = RunDirectory(self.path / "reference")

    def run(self, trial: str) -> RunDirectory:
        """Name the run directory of a trial."""
        return RunDirectory(self.path / "trials" / trial)

    def runs(self) -> list[RunDirectory]:
        """List the run directories that trials have by now."""
        return [RunDirectory(path) for path in sorted((self.path / "trials").glob("*"))]

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the only driver of the sweep; its death, of whatever kind, lets the next one in.

        Raises
        ------
        RunError
            Another is at work here, or something that is not a sweep is here.
        """
        self._refuse_what_is_no_sweep()
        with locked(self.path, "tune"):
            yield

    def _refuse_what_is_no_sweep(self) -> None:
        if not self.file.exists() and not is_empty(self.path):
            raise RunError(str(self.path), "this directory holds something that is not a sweep", "pass another -o")

    def begin(self, sweep: Sweep, particles: str, trials: Sequence[Trial]) -> list[Trial]:
        """Make the directory that of a sweep; return its trials, those given or of the same sweep that is there."""
        settings = {"particles": particles, **sweep.model_dump(mode="json")}
        if self.file.exists():
            there = json.loads(self.file.read_text())
            changed = sorted(name for name, value in settings.items() if there["sweep"].get(name) != value)
            if changed:
                raise ConfigError(
                    str(self.path),
                    f"another sweep is here, with other {', '.join(changed)}",
                    "pass another -o, or the sweep it was begun with to go on",
                )
            return self.trials()
        self._refuse_what_is_no_sweep()
        self.path.mkdir(parents=True, exist_ok=True)
        self._save(settings, trials)
        return list(trials)

    def sweep(self) -> Sweep:
        """Read what is searched."""
        settings = json.loads(self.file.read_text())["sweep"]
        return Sweep.model_validate({name: value for name, value in settings.items() if name != "particles"})

    def trials(self) -> list[Trial]:
        """Read the trials that there are; a search that asks for them as others end adds to them."""
        return [
            Trial(each["name"], each["chosen"], RunConfig.model_validate(each["config"]))
            for each in json.loads(self.file.read_text())["trials"]
        ]

    def trial(self, name: str) -> Trial:
        """Read a trial."""
        (found,) = (trial for trial in self.trials() if trial.name == name)
        return found

    def add(self, trial: Trial) -> None:
        """Add a trial, before it starts; only the driver may."""
        self._save(json.loads(self.file.read_text())["sweep"], [*self.trials(), trial])

    def change(self, trial: Trial) -> None:
        """Keep the new settings of a trial, before it goes on with them; only the driver may."""
        settings = json.loads(self.file.read_text())["sweep"]
        self._save(settings, [trial if each.name == trial.name else each for each in self.trials()])

    def _save(self, settings: Mapping[str, Any], trials: Sequence[Trial]) -> None:
        listed = [asdict(trial) | {"config": trial.config.model_dump(mode="json")} for trial in trials]
        write_whole(self.file, json.dumps({"sweep": settings, "trials": listed}, indent=1))

    def end(self, trial: str, outcome: Outcome) -> None:
        """Keep how a trial ended; it is not run again."""
        write_whole(self.path / "outcomes" / f"{trial}.json", json.dumps(outcome._asdict()))

    def outcome(self, trial: str) -> Outcome | None:
        """Say how a trial ended; None if it did not yet."""
        file = self.path / "outcomes" / f"{trial}.json"
        return Outcome(**json.loads(file.read_text())) if file.exists() else None

    def has_finished(self, trial: str) -> bool:
        """Say whether a trial was trained to its end."""
        outcome = self.outcome(trial)
        return outcome is not None and outcome.state == "finished"

    def save_score(self, trial: str, rank_by: str, score: Score) -> None:
        """Keep the score of a trial."""
        write_whole(self.path / "scores" / rank_by / f"{trial}.json", json.dumps(score._asdict()))

    def score(self, trial: str, rank_by: str) -> Score | None:
        """Read the score of a trial; None before it was scored."""
        file = self.path / "scores" / rank_by / f"{trial}.json"
        return Score(**json.loads(file.read_text())) if file.exists() else None

    def save_bounds(self, name: str, epoch: int, bounds: Float64[np.ndarray, " n"]) -> None:
        """Keep the held-out bounds of a trial after an epoch, or of what trials are compared with."""
        file = self.path / "bounds" / name / f"{epoch:06d}.npy"
        partial = file.with_name(f".{file.name}.partial.npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(partial, bounds)
        partial.replace(file)

    def bounds(self, name: str) -> dict[int, Float64[np.ndarray, " n"]]:
        """Read the held-out bounds of a trial by epoch, in order."""
        files = sorted((self.path / "bounds" / name).glob("[0-9]*.npy"))
        return {int(file.stem): np.load(file, allow_pickle=False) for file in files}

    def forget_bounds(self, name: str, epoch: int) -> None:
        """Drop the held-out bounds of a trial from an epoch on."""
        for file in (self.path / "bounds" / name).glob("[0-9]*.npy"):
            if int(file.stem) >= epoch:
                file.unlink()
