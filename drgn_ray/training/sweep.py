"""What a sweep searches: distributions of settings in YAML, and the trials that are drawn from them.

space:                                    # settings as `drgn-ray train --config` spells them, with their sections
  model.zdim: {choice: [2, 4, 8]}
  training.lr: {loguniform: [1.0e-4, 1.0e-2]}
  size:                                   # a name of your own: settings that go together
    choice:
      256x3: {model.enc_dim: 256, model.dec_dim: 256}
      512x3: {model.enc_dim: 512, model.dec_dim: 512}
base: {training.num_epochs: 10}           # of all trials
num_samples: 12
search: random                            # or grid (no num_samples), or optuna: later trials learn from earlier ones
scheduler: asha                           # or none; or pbt: trials go on from better ones' weights, with near settings
objectives: [gain]                        # or [gain, minutes], of optuna: what gains more, and what is trained sooner

Trials of random and grid are drawn before anything starts: what is impossible is refused, and what goes on is the same.
Those of optuna are asked for as others end (`drgn_ray.training.study`).
"""

from __future__ import annotations

import copy
import difflib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from drgn_ray.config import RunConfig, Settings, TrainingConfig, describe
from drgn_ray.errors import ConfigError
from drgn_ray.training.compare import MOST_IMAGES

READY_MADE = Path(__file__).parent / "spaces"
COARSE, COARSE_SHARE = "training.coarse_share", 1 / 3  # with fidelity: resolution
CHANGEABLE = ("training.lr", "training.weight_decay", "model.beta")  # while a model is trained
LARGEST_HELD_OUT, LEAST_HELD_OUT = 0.1, 0.01  # shares of the particles, if `base` does not say
Range = tuple[float, float]
PositiveRange = tuple[PositiveFloat, PositiveFloat]


class Distribution(Settings):
    """Values of a setting, one of these; a range has its ends."""

    choice: Annotated[list[Any] | dict[str, dict[str, Any]] | None, Field(min_length=1)] = None
    uniform: Range | None = None
    loguniform: PositiveRange | None = None
    integer: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Distribution:
        if sum(value is not None for _, value in self) != 1:
            raise ValueError(f"pass one of {', '.join(type(self).model_fields)}")
        low, high = self.uniform or self.loguniform or self.integer or (0, 1)
        if not low < high:
            raise ValueError(f"the range from {low} to {high} is empty")
        return self

    @property
    def values(self) -> list[Any]:
        """What there is to choose from; nothing, for a range."""
        return list(self.choice or ())

    def paths(self, name: str) -> set[str]:
        """Name the settings that it sets, where the space calls it by this name."""
        return {path for group in self.choice.values() for path in group} if isinstance(self.choice, dict) else {name}

    def within(self, value: float) -> float:
        """Bring a number into the range, which rounding may have left."""
        low, high = self.uniform or self.loguniform or self.integer or (-math.inf, math.inf)
        return min(max(value, low), high)

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value."""
        if self.choice is not None:
            return self.values[rng.integers(len(self.values))]
        if self.uniform is not None:
            low, high = self.uniform
            return rounded(rng.uniform(low, high))
        if self.loguniform is not None:
            low, high = map(math.log, self.loguniform)
            return rounded(math.exp(rng.uniform(low, high)))
        assert self.integer is not None
        return int(rng.integers(*self.integer, endpoint=True))


def rounded(value: float) -> float:
    """Round to three digits: more tell nothing, and are long to type again."""
    return float(f"{value:.3g}")


class Sweep(Settings):
    """A search."""

    space: Annotated[dict[str, Distribution], Field(min_length=1)]
    """Settings that trials differ in."""
    base: dict[str, Any] = {}
    """Settings that all trials have."""
    search: Literal["random", "grid", "optuna"] = "random"
    """random: `num_samples` draws; grid: every combination; optuna: `num_samples` points, which TPE chooses by what
    earlier ones gained."""
    objectives: list[Literal["gain", "minutes"]] = ["gain"]
    """What optuna looks for: a larger gain, or [gain, minutes]: the front of a larger gain and a shorter training."""
    num_samples: PositiveInt | None = None
    """How many trials; of a grid, which is whole, None."""
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    """asha: stop trials early that are behind; pbt: let them go on from the weights of better ones, with other
    settings; none: let all of them finish."""
    fidelity: Literal["epochs", "resolution"] = "epochs"
    """What trials that are stopped early save: epochs; or resolution too: all compare images at half of the shells for
    the first third of their epochs, which costs a quarter."""
    seed: NonNegativeInt = 0
    """Of the draws."""

    @model_validator(mode="after")
    def _countable(self) -> Sweep:
        ranges = [name for name, each in self.space.items() if not each.values]
        if self.search == "grid" and ranges:
            raise ValueError(f"a grid has no end of values of {ranges[0]}; give a choice, or pass search: random")
        if (self.search == "grid") != (self.num_samples is None):
            raise ValueError("pass num_samples for search: random or optuna, and for a grid leave it out")
        if not ranges and (self.num_samples or 0) > self.num_combinations:
            raise ValueError(f"there are only {self.num_combinations} combinations; pass search: grid for all of them")
        return self

    @model_validator(mode="after")
    def _comparable(self) -> Sweep:
        if self.objectives not in (["gain"], ["gain", "minutes"]):
            raise ValueError(f"objectives {self.objectives}: pass [gain], or [gain, minutes]")
        if self.objectives == ["gain", "minutes"] and (self.search, self.scheduler) != ("optuna", "none"):
            raise ValueError(
                "with objectives [gain, minutes] pass search: optuna, which knows what to do with two, and scheduler:"
                " none, since asha stops what gains less, however quick it is"
            )
        return self

    @model_validator(mode="after")
    def _population(self) -> Sweep:
        if self.scheduler == "pbt" and self.search == "optuna":
            raise ValueError("scheduler: pbt changes the settings itself; pass search: random or grid")
        if self.scheduler == "pbt" and self.num_trials < 2:
            raise ValueError("a population of one has no other to go on from; pass scheduler: none, or more trials")
        if self.scheduler == "pbt" and self.base.get("resources.num_workers"):
            raise ValueError("scheduler: pbt is for trials of one process; leave out resources.num_workers")
        if self.base.get("resources.max_workers"):
            raise ValueError("trials have a number of workers that stays; leave out resources.max_workers")
        return self

    @model_validator(mode="after")
    def _coarse_once(self) -> Sweep:
        if self.fidelity == "resolution" and COARSE in {*self.base, *self.paths}:
            raise ValueError(f"fidelity: resolution sets {COARSE}; leave one of them out")
        return self

    @property
    def paths(self) -> set[str]:
        """Settings that are searched."""
        return {path for name, each in self.space.items() for path in each.paths(name)}

    @property
    def num_combinations(self) -> int:
        """Size of the grid; 0, where there are ranges."""
        return math.prod(len(each.values) for each in self.space.values())

    @property
    def num_trials(self) -> int:
        """How many trials the whole sweep has."""
        return self.num_samples or self.num_combinations

    @property
    def most_epochs(self) -> int:
        """Epochs of the longest trial that there may be."""
        name = "training.num_epochs"
        found = [self.base.get(name, TrainingConfig().num_epochs)]
        if name in self.space:
            found = [*self.space[name].values, *(self.space[name].integer or ())]
        for each in self.space.values():
            groups = each.choice if isinstance(each.choice, dict) else {}
            found += [group[name] for group in groups.values() if name in group]
        return max(found)


@dataclass(frozen=True)
class Trial:
    """One point of the space.

    Attributes
    ----------
    name
        Of its run directory.
    chosen
        What was drawn, by the names of the space.
    config
        All settings of its run.
    """

    name: str
    chosen: Mapping[str, Any]
    config: RunConfig


def read_sweep(name: str) -> Sweep:
    """Read a sweep from a YAML file, or one that is ready made by its name."""
    path = Path(name)
    if not path.is_file():
        ready = {file.stem: file for file in sorted(READY_MADE.glob("*.yaml"))}
        if name not in ready:
            raise ConfigError(name, "there is no such file or ready-made sweep", f"pass a file, or {', '.join(ready)}")
        path = ready[name]
    try:
        return Sweep.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(name, f"it cannot be read as YAML ({' '.join(str(error).split())})", "mend it") from error
    except ValidationError as error:
        raise ConfigError(name, describe(error), "mend that key") from error


def draw_trials(sweep: Sweep, particles: str, num_particles: int) -> list[Trial]:
    """Draw the trials of a random search or a grid, each with its settings checked.

    Raises
    ------
    ConfigError
        There is no such setting, a sweep must leave it alone, or a trial's settings do not go together.
    """
    check_names(sweep)
    points = enumerate(_points(sweep), start=1)
    return [trial_at(sweep, particles, num_particles, number, chosen) for number, chosen in points]


def check_names(sweep: Sweep) -> None:
    """Refuse settings that there are not, or that a sweep must leave alone."""
    for name in sweep.space:
        _refuse_unsearchable(name, sweep.space[name])
        if sweep.scheduler == "pbt":
            _refuse_unchangeable(name, sweep.space[name])
    for path in sweep.base:
        _refuse_in_base(path, sweep.base[path])


def trial_at(sweep: Sweep, particles: str, num_particles: int, number: int, chosen: Mapping[str, Any]) -> Trial:
    """Make the trial at a point of the space; its number counts from 1.

    Raises
    ------
    ConfigError
        Its settings do not go together.
    """
    held_out = min(max(MOST_IMAGES / num_particles, LEAST_HELD_OUT), LARGEST_HELD_OUT)
    base = {"resources.num_workers": 0, "resources.cpus_per_worker": 1, "data.val_fraction": held_out}
    base |= {"training.back_offs": 0} | sweep.base  # a trial that diverges is no trial of another learning rate
    if sweep.fidelity == "resolution":
        base[COARSE] = COARSE_SHARE
    name = f"trial_{number:0{len(str(sweep.num_trials))}d}"
    settings = base | settings_of(sweep.space, chosen)
    return Trial(name, chosen, _config(name, RunConfig(particles=particles), settings, chosen))


def with_chosen(trial: Trial, sweep: Sweep, chosen: Mapping[str, Any]) -> Trial:
    """Move a trial to another point of the space."""
    return Trial(trial.name, chosen, _config(trial.name, trial.config, settings_of(sweep.space, chosen), chosen))


def _points(sweep: Sweep) -> list[dict[str, Any]]:
    names, rng = list(sweep.space), np.random.default_rng(sweep.seed)
    if not sweep.num_combinations:  # there are ranges
        return [{name: sweep.space[name].draw(rng) for name in names} for _ in range(sweep.num_samples or 0)]
    combinations = itertools.product(*(each.values for each in sweep.space.values()))
    grid = [dict(zip(names, combination, strict=True)) for combination in combinations]
    if sweep.num_samples is None:
        return grid
    return [grid[index] for index in rng.permutation(len(grid))[: sweep.num_samples]]  # none twice


def settings_of(space: Mapping[str, Distribution], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Say by dotted path what a point of the space sets."""
    settings: dict[str, Any] = {}
    for name, value in chosen.items():
        groups = space[name].choice
        settings |= groups[value] if isinstance(groups, dict) else {name: value}
    return settings


def _config(trial: str, start: RunConfig, settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> RunConfig:
    raw = copy.deepcopy(start.model_dump())
    for path, value in settings.items():
        section, _, name = path.partition(".")
        raw[section][name] = value
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        said = ", ".join(f"{name} {value}" for name, value in chosen.items())
        remedy = "mend the space; what goes together can be one choice of named groups"
        raise ConfigError(f"{trial} ({said})", describe(error), remedy) from error


def _refuse_unchangeable(name: str, distribution: Distribution) -> None:
    for path in sorted(distribution.paths(name)):
        if path not in CHANGEABLE:
            raise ConfigError(
                path,
                "scheduler: pbt hands weights from trial to trial, and with this setting they would be of other kinds",
                f"search {', '.join(CHANGEABLE)}, or pass scheduler: asha",
            )


def _refuse_unsearchable(name: str, distribution: Distribution) -> None:
    for path in sorted(distribution.paths(name)):
        _refuse_unknown(path)
        if path.startswith(("data.", "training.seed")):
            raise ConfigError(path, "all trials are judged on the same held-out particles", "set it under base")
        if path.startswith("resources."):
            raise ConfigError(path, "it changes no result", "set it under base")


def _refuse_in_base(path: str, value: Any) -> None:
    _refuse_unknown(path)
    if path == "resources.cpus_per_worker" and value is None:
        raise ConfigError(f"{path}: null", "as many trials run as fit beside each other", "pass a number")


def _refuse_unknown(path: str) -> None:
    sections = {name: field.default for name, field in RunConfig.model_fields.items()}
    known = [
        f"{section}.{name}"
        for section, default in sections.items()
        if isinstance(default, Settings)
        for name in type(default).model_fields
    ]
    if path in known:
        return
    by_last = [each for each in known if each.partition(".")[2] == path.rpartition(".")[2]]
    near = by_last or difflib.get_close_matches(path, known, 1)
    remedy = f"pass {near[0]}" if near else "settings are named as in `drgn-ray train --config`, model.zdim for one"
    raise ConfigError(path, "there is no such setting", remedy)
