"""Workers are fitted to the machines, and what cannot run is refused before it starts."""

from __future__ import annotations

import pytest

from drgn_ray.config import ResourcesConfig
from drgn_ray.distributed.trainer import Resources, plan_resources
from drgn_ray.errors import ResourceError


def test_a_cpu_is_left_for_reading_on_a_laptop() -> None:
    assert plan_resources(ResourcesConfig(num_workers=1), [{"CPU": 8}]) == Resources(1, 7, use_gpu=False)


def test_workers_share_the_cpus_of_a_machine() -> None:
    assert plan_resources(ResourcesConfig(num_workers=3), [{"CPU": 16}]) == Resources(3, 5, use_gpu=False)


def test_one_worker_a_gpu_over_several_machines() -> None:
    nodes = [{"CPU": 32, "GPU": 4}, {"CPU": 32, "GPU": 4}]
    assert plan_resources(ResourcesConfig(num_workers=8), nodes) == Resources(8, 7, use_gpu=True)


def test_more_workers_than_gpus_are_refused() -> None:
    with pytest.raises(ResourceError, match="--workers 3: the cluster has 2 GPUs; pass at most 2"):
        plan_resources(ResourcesConfig(num_workers=3), [{"CPU": 32, "GPU": 2}])


def test_workers_that_would_starve_the_reader_are_refused() -> None:
    with pytest.raises(ResourceError, match="3 workers can be on 1 machine with 4 CPUs; pass at most 3"):
        plan_resources(ResourcesConfig(num_workers=4), [{"CPU": 4}])


def test_a_machine_with_a_single_cpu_is_told_to_train_without_ray() -> None:
    with pytest.raises(ResourceError, match="--workers 0"):
        plan_resources(ResourcesConfig(num_workers=1), [{"CPU": 1}])
