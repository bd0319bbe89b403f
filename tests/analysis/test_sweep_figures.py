"""Pictures of sweeps: a line for every trial."""

from __future__ import annotations

import numpy as np
import pandas as pd

from drgn_ray.analysis.sweep_figures import gain_figure, parallel_coordinates
from drgn_ray.config import RunConfig
from drgn_ray.training.compare import Gain
from drgn_ray.training.sweep import Distribution, Trial

SPACE = {
    "model.dec_radius": Distribution(choice=[None, 8]),
    "size": Distribution(choice={"large": {"model.enc_dim": 512}, "small": {"model.enc_dim": 64}}),
    "training.lr": Distribution(loguniform=(1e-4, 1e-2)),
    "model.feat_sigma": Distribution(uniform=(0.5, 1.5)),
    "model.zdim": Distribution(choice=[4]),
}
CHOSEN = [(8, "small", 1e-2, 0.7), (None, "large", 1e-4, 1.2), (8, "large", 1e-3, 0.5)]
TRIALS = [
    Trial(f"trial_{number}", dict(zip(SPACE, (*chosen, 4), strict=True)), RunConfig())
    for number, chosen in enumerate(CHOSEN, start=1)
]


def test_every_trial_with_a_score_is_a_line_through_its_settings_to_its_gain() -> None:
    table = pd.DataFrame({"trial": ["trial_2", "trial_1", "trial_3"], "gain": [3.0, 1.0, np.nan]})
    figure = parallel_coordinates(table, TRIALS, SPACE)
    axes = {axis.label: axis for axis in figure.data[0].dimensions}
    assert [*axes] == [
        "trial",
        "model.dec_radius",
        "size",
        "training.lr",
        "model.feat_sigma",
        "gain",
    ]  # zdim is the same in all
    assert [*axes["trial"].ticktext] == ["trial_1", "trial_2"]  # the best on top
    assert [*axes["gain"].values] == [1, 3]
    assert [*axes["gain"].values] == [*figure.data[0].line.color]
    radius, size, lr = (axes[name] for name in ("model.dec_radius", "size", "training.lr"))
    assert [radius.ticktext[int(value)] for value in radius.values] == ["8", "None"]
    assert [size.ticktext[int(value)] for value in size.values] == ["small", "large"]
    assert [*lr.values] == [-2, -4]
    assert [*lr.ticktext] == ["0.0001", "0.00032", "0.001", "0.0032", "0.01"]
    assert "2 trials (1 others have no gain yet)" in figure.layout.title.text


def test_every_trial_has_its_curve_beside_that_of_the_linear_subspace() -> None:
    gains = {f"trial_{n}": {epoch: Gain(epoch - n, 0.1) for epoch in (1, 2, 3)} for n in range(12)}
    axes = gain_figure(gains | {"trial_waiting": {}}, Gain(1.5, 0.1)).axes[0]
    assert len(axes.containers) == 12
    assert [*axes.containers[4].lines[0].get_ydata()] == [-3, -2, -1]
    (linear,) = (line for line in axes.lines if line.get_label() == "linear subspace")
    assert {*linear.get_ydata()} == {1.5}
    assert axes.get_title() == "the lowest, at -10, is below the picture"
