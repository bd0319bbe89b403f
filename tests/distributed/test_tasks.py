"""Tasks run here or on Ray with the same results and the same errors."""

from __future__ import annotations

import math
from functools import partial

import pytest

from conversions.mrcs import read_header
from drgn_ray.distributed.tasks import run_tasks
from drgn_ray.errors import ParticleFileError, ResourceError


def test_results_are_the_same_here_and_on_ray(ray_here: None) -> None:
    tasks = [partial(math.pow, number, 2) for number in range(5)]
    assert sorted(run_tasks(tasks, num_workers=0)) == sorted(run_tasks(tasks, num_workers=2)) == [0, 1, 4, 9, 16]


def test_a_users_mistake_comes_back_as_itself_from_another_process(ray_here: None) -> None:
    with pytest.raises(ParticleFileError, match=r"^nowhere\.mrcs: there is no such image file; check the path\.$"):
        list(run_tasks([partial(math.pow, 3, 2), partial(read_header, "nowhere.mrcs")], num_workers=2))


def test_tasks_that_no_machine_has_the_memory_for_are_refused_and_not_waited_for(ray_here: None) -> None:
    tasks = [partial(math.pow, 3, 2)] * 2
    with pytest.raises(ResourceError, match=r"a task that needs 1000000\.0 GB of memory: the largest machine offers"):
        list(run_tasks(tasks, num_workers=2, memory=10**15))
    assert list(run_tasks(tasks, num_workers=2, memory=10**6)) == [9, 9]
