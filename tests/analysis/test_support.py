"""Volumes against back-projections of the particles near them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from drgn_ray.analysis.consensus import Maps
from drgn_ray.analysis.support import CONSENSUS, HALF_MAPS, LINEAR, MODEL, PERMUTED, Support, support

SIZE, APIX, NOISE = 32, 4.0, 0.06


def blob(x: int) -> Float[np.ndarray, "D D D"]:
    """A body that stands still and a part at `x`."""
    volume = np.zeros((SIZE,) * 3)
    volume[16, 16, 12] = 100
    volume[14, 18, x] = 60
    return gaussian_filter(volume, 1.5)


def seen(volume: Float[np.ndarray, "D D D"], rng: np.random.Generator) -> Maps:
    half1, half2 = (volume + NOISE * np.sqrt(2) * rng.normal(size=volume.shape) for _ in range(2))
    return Maps((half1 + half2) / 2, half1, half2)


@pytest.fixture(scope="module")
def found() -> Support:
    rng = np.random.default_rng(0)
    states = [blob(x) for x in (18, 20, 22, 24)]
    smeared = np.mean(states, axis=0)
    half_way = [(state + smeared) / 2 for state in states]
    return support({MODEL: states, LINEAR: half_way}, smeared, [seen(state, rng) for state in states], APIX)


def test_true_volumes_agree_as_far_as_the_noise_of_the_maps_allows(found: Support) -> None:
    assert found.scores(MODEL).mean() == pytest.approx(found.scores(HALF_MAPS).mean(), abs=0.02)


def test_a_volume_that_lags_behind_agrees_less_and_one_volume_for_all_least(found: Support) -> None:
    assert found.over(LINEAR).is_clear
    assert (found.scores(LINEAR) > found.scores(CONSENSUS)).all()


def test_volumes_of_other_states_agree_less_than_one_volume_for_all(found: Support) -> None:
    assert (found.scores(PERMUTED) < found.scores(CONSENSUS)).all()


def test_where_all_volumes_are_one_permuting_them_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    maps = [seen(blob(x), rng) for x in (18, 20, 22, 24)]
    found = support({MODEL: [blob(21)] * 4}, blob(21), maps, APIX)
    assert np.array_equal(found.curves[PERMUTED], found.curves[MODEL])


def test_shells_of_noise_do_not_count(found: Support) -> None:
    allowed = found.curves[HALF_MAPS].mean(axis=0)
    assert allowed[found.last_shell] >= 0.5 > allowed[found.last_shell + 1]
    assert f"{SIZE * APIX / found.last_shell:.3g} Å" in found.about


def test_the_table_holds_the_means_over_the_states(found: Support, tmp_path: Path) -> None:
    found.write(tmp_path)
    table = pd.read_csv(tmp_path / "fsc_states.csv")
    np.testing.assert_allclose(table[LINEAR], found.curves[LINEAR].mean(axis=0), atol=1e-5)
    assert (tmp_path / "fsc_states.png").stat().st_size > 10_000
