"""What follows training costs the same for all large sets."""

from __future__ import annotations

import numpy as np
import pytest

from drgn_ray.analysis.states import State
from drgn_ray.distributed.states import MOST_OF_CONSENSUS, _consensus_weight


@pytest.mark.parametrize("count", [1_000, 45_000])
def test_the_consensus_has_images_of_both_halves_and_none_of_a_state(count: int) -> None:
    near = (np.arange(count) < 200).astype(np.float32)
    weight = _consensus_weight([State("particle_0", near)])
    assert weight.sum() == min(count - 200, MOST_OF_CONSENSUS)
    assert not (weight[:200] > 0).any()
    for half in (0, 1):  # every other image
        assert weight[half::2].sum() == pytest.approx(weight.sum() / 2, rel=0.05)


def test_where_states_have_all_images_the_consensus_has_them_too() -> None:
    assert _consensus_weight([State("particle_0", np.ones(150, np.float32))]).all()
