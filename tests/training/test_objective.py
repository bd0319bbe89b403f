"""What trials are ranked by can be compared, whatever shells they were trained at so far."""

from __future__ import annotations

from pathlib import Path

import pytest

from drgn_ray.config import DataConfig, ModelConfig, RunConfig
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.compare import one_volume
from drgn_ray.training.loop import model_for
from drgn_ray.training.objective import held_out_bounds


def test_a_coarse_model_is_judged_with_the_one_volume_beyond_its_shells(store_path: Path) -> None:
    store = ParticleStore(store_path)
    config = RunConfig(particles=str(store_path), data=DataConfig(val_fraction=0.2))
    linear = model_for(config.model_copy(update={"model": ModelConfig(model="linear")}), store)
    assert isinstance(linear, LinearSubspace)
    linear.volumes.normal_()
    linear.contrast_variance.fill_(0.01)
    linear.noise[store.info.box_size // 4 :] *= 2
    consensus = one_volume(linear)
    everywhere, coarse = (held_out_bounds(consensus, linear, config, store, radius) for radius in (None, 4))
    assert len(everywhere) > 10
    assert coarse == pytest.approx(everywhere, rel=1e-4)
    other = one_volume(linear)
    other.volumes.zero_()
    nothing, within = (held_out_bounds(other, linear, config, store, radius) for radius in (None, 4))
    assert within != pytest.approx(nothing, rel=1e-2)
