"""Whether volumes of states agree with back-projections of the particles that support them, which no model made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from drgn_ray.analysis.consensus import Maps, density_sign, make_masks
from drgn_ray.analysis.figures import fsc_figure
from drgn_ray.physics.fsc import HALF, first_shell_below, fourier_shell_correlation, resolution
from drgn_ray.training.compare import Gain, gain

MODEL, LINEAR, CONSENSUS, HALF_MAPS = "this model", "linear subspace", "one volume for all", "half maps"
PERMUTED = "permuted states"
NAME = "fsc_states"  # of the table and the figure


@dataclass(frozen=True)
class Support:
    """FSC of volumes of some states with the back-projections of the particles near them.

    Attributes
    ----------
    curves
        By name (`MODEL`, `CONSENSUS` and, where there is one, `LINEAR`), one row a state; of `PERMUTED` those of the
        model's volume of another state, which is all there is to see where latents tell nothing; of `HALF_MAPS` what
        the noise of the back-projection allows: its expected correlation with a map without noise, from its half maps.
    apix
        Å/px.
    """

    curves: Mapping[str, Float[np.ndarray, "states shells"]]
    box_size: int
    apix: float

    @property
    def last_shell(self) -> int:
        """Last of the shells in which the noise of the back-projections allows to see anything."""
        return max(first_shell_below(self.curves[HALF_MAPS].mean(axis=0), HALF) - 1, 1)

    def scores(self, name: str) -> Float[np.ndarray, " states"]:
        """Mean over the shells 1 to `last_shell`, a number for each state."""
        return self.curves[name][:, 1 : self.last_shell + 1].mean(axis=1)

    def over(self, name: str) -> Gain:
        """Difference of the model's scores and another's."""
        return gain(self.scores(MODEL), self.scores(name))

    def __str__(self) -> str:
        said = [f"{name} {self.scores(name).mean():.3f}" for name in self.curves if name != HALF_MAPS]
        said += [f"this model - linear subspace {self.over(LINEAR)}"] if LINEAR in self.curves else []
        allowed = self.scores(HALF_MAPS).mean()
        return f"{', '.join(said)}; the back-projections' noise allows {allowed:.3f}, and what is above it fits noise"

    @property
    def about(self) -> str:
        """Say what `scores` are of."""
        angstrom = self.box_size * self.apix / self.last_shell
        return f"FSC with the back-projections of {len(self.curves[MODEL])} states, mean of shells to {angstrom:.3g} Å"

    def write(self, folder: Path) -> None:
        """Write the curves, means over the states, as ``fsc_states.csv`` and ``fsc_states.png``."""
        means = {name: curve.mean(axis=0) for name, curve in self.curves.items()}
        shells = np.arange(len(means[MODEL]))
        pd.DataFrame({"shell": shells, **means}).to_csv(folder / f"{NAME}.csv", index=False, float_format="%.6g")
        marks = {HALF: resolution(means[MODEL], self.box_size, self.apix, HALF)}
        ordered = {name: means[name] for name in (HALF_MAPS, PERMUTED, CONSENSUS, LINEAR, MODEL) if name in means}
        fsc_figure(ordered, self.box_size, self.apix, marks).savefig(folder / f"{NAME}.png", dpi=150)


def common_mask(
    volumes: Iterable[Float[np.ndarray, "D D D"]], consensus: Float[np.ndarray, "D D D"], apix: float
) -> Float[np.ndarray, "D D D"]:
    """Loose mask of the density that the consensus or any of the volumes has; `apix` in Å/px."""
    sign = density_sign(consensus)[0] or 1
    anywhere = sign * consensus
    for volume in volumes:
        anywhere = np.maximum(anywhere, sign * volume)
    return make_masks(anywhere, apix)["loose"]


def support(
    volumes: Mapping[str, Sequence[Float[np.ndarray, "D D D"]]],
    consensus: Float[np.ndarray, "D D D"],
    maps: Iterable[Maps],
    apix: float,
) -> Support:
    """Compare volumes, and the consensus, with a back-projection of each state.

    All inside one mask, of whatever density any of the volumes has, so that it favours none and cuts no part that
    moves.

    Parameters
    ----------
    volumes
        By model, one a state.
    maps
        The back-projections, in the same order.
    apix
        Å/px.
    """
    mask = common_mask((volume for each in volumes.values() for volume in each), consensus, apix)
    names = (*volumes, CONSENSUS, PERMUTED, HALF_MAPS)
    curves: dict[str, list[Float[np.ndarray, " shells"]]] = {name: [] for name in names}
    of_model = volumes[MODEL]
    for state, of_state in enumerate(maps):
        full = of_state.full * mask
        for name, each in volumes.items():
            curves[name].append(fourier_shell_correlation(full, each[state] * mask))
        another = of_model[
            (state + len(of_model) // 2) % len(of_model)
        ]  # states go along a component: not its neighbour
        curves[PERMUTED].append(fourier_shell_correlation(full, another * mask))
        curves[CONSENSUS].append(fourier_shell_correlation(full, consensus * mask))
        between = np.maximum(fourier_shell_correlation(of_state.half1 * mask, of_state.half2 * mask), 0)
        curves[HALF_MAPS].append(np.sqrt(2 * between / (1 + between)))  # Rosenthal & Henderson, J. Mol. Biol. 2003
    return Support({name: np.stack(rows) for name, rows in curves.items()}, len(consensus), apix)
