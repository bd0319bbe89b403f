"""UMAP keeps apart what is apart."""

from __future__ import annotations

import numpy as np

from drgn_ray.analysis import umap as module
from drgn_ray.analysis.umap import umap


def test_groups_that_are_apart_stay_apart_and_the_rest_has_no_coordinates(monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_EMBEDDED", 300)
    rng = np.random.default_rng(0)
    group = rng.random(400) < 0.5
    coordinates = umap(rng.normal(size=(400, 4)) + 8 * group[:, None])
    there = ~np.isnan(coordinates[:, 0])
    assert there.sum() == 300
    first, second = coordinates[there & group], coordinates[there & ~group]
    between = np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))
    assert between > 2 * max(first.std(), second.std())
