"""The benchmarks' simulated sets convert, and their images, labels and volumes are of the same molecules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest

from benchmarks import simulated_sets
from conversions.driver import Options, convert
from conversions.inputs import read_particles
from drgn_ray.analysis.agreement import volume_correlation
from drgn_ray.analysis.consensus import make_maps
from drgn_ray.analysis.states import all_particles
from drgn_ray.distributed.backproject import back_project
from drgn_ray.particles.backproject import Assignment, Method, half_maps


@pytest.mark.parametrize(("name", "num_states"), [("motion", 36), ("composition", 8), ("homogeneous", 1)])
def test_almost_clean_images_give_the_true_mean(
    name: str, num_states: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated_sets, "IMAGING", replace(simulated_sets.IMAGING, snr=100.0))
    star, path = simulated_sets.write_set(tmp_path, name, 40), tmp_path / "particles.zarr"
    store = convert(read_particles(str(star)), Options(str(path), None, "float32", None, None, 0, "drgn-ray convert"))
    everything = Assignment(all_particles(len(store)).weight[None], half_maps(store.columns))
    (sums,) = back_project(store, everything, Method(), num_workers=0)
    volume, truth = make_maps(sums).full, mrcfile.read(tmp_path / "gt_mean.mrc")
    states = pd.read_csv(tmp_path / "states.csv")["state"]
    assert len(states) == len(list((tmp_path / "gt").iterdir())) == num_states
    assert set(np.load(tmp_path / "labels.npy")) <= set(states)
    assert store.info.data_sign == -1
    correlation = volume_correlation(volume, truth)
    assert correlation > 0.9
    for displaced in (np.roll(volume, 1, axis=0), volume[:, :, ::-1]):
        assert volume_correlation(displaced, truth) < correlation - 0.05


def test_each_image_is_of_the_state_that_its_label_names() -> None:
    rng = np.random.default_rng(0)
    for make in simulated_sets.SETS.values():
        made = make(100, rng)
        label = made.ground_truth["state"].to_numpy()
        assert (made.particles.mass == made.states.mass[label]).all()
        away = (made.particles.position - made.states.position[label]).norm(dim=-1)
        assert away.max() < 4  # Å: half of a bin of angles, at the arm's end
