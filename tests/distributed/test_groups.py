"""What dead processes reserved comes free, though Ray keeps it, and a reader that gets no CPU says so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
import ray
from ray.util import placement_group_table
from ray.util.placement_group import placement_group
from servers import WAIT_SECONDS

from drgn_ray.distributed.groups import await_end, remove_abandoned
from drgn_ray.distributed.reader import in_time
from drgn_ray.errors import ResourceError


@ray.remote(num_cpus=0)
class Maker:
    """Makes placement groups, as the controller of a training does."""

    def make(self, cpus: int) -> str:
        group = placement_group([{"CPU": cpus}])
        group.wait(5 if cpus <= 2 else 0.1)
        return group.id.hex()


def state(group: str) -> str:
    return placement_group_table()[group]["state"]


def made(maker: Any, cpus: int) -> str:
    return ray.get(maker.make.remote(cpus))


def test_what_a_dead_process_reserved_comes_free_placed_or_waiting(ray_here: None) -> None:
    dead, alive = Maker.remote(), Maker.remote()
    placed, waiting, other = made(dead, 2), made(dead, 3), made(alive, 1)
    assert (state(placed), state(waiting), state(other)) == ("CREATED", "PENDING", "CREATED")
    ray.kill(dead)
    time.sleep(2)
    assert state(placed) == "CREATED", "Ray frees it by itself by now: groups.py has become superfluous"
    deadline = time.monotonic() + WAIT_SECONDS
    while (state(placed), state(waiting)) != ("REMOVED", "REMOVED"):  # once Ray has seen that it is dead
        assert time.monotonic() < deadline
        remove_abandoned()
    assert state(other) == "CREATED"
    ray.kill(alive)
    await_end()
    assert state(other) == "REMOVED"
    assert ray.available_resources()["CPU"] == 4


def test_a_reader_that_waits_in_vain_says_what_is_free(ray_here: None) -> None:
    over = Event()

    def blocks() -> Iterator[int]:
        yield 1
        over.wait()

    reading = in_time(blocks(), 3)
    assert next(reading) == 1
    with pytest.raises(ResourceError, match="no particles came in 3 s; the cluster has 4 CPU, 0 GPU, of which are"):
        next(reading)
    over.set()
    assert list(in_time(iter([1, 2]), WAIT_SECONDS)) == [1, 2]
