"""What Ray's machines report is said in a line."""

from __future__ import annotations

from drgn_ray.distributed.cluster import SAID_SECONDS, News, brief

TRACEBACK = """Traceback (most recent call last):
  File "external_storage.py", line 346, in spill_objects
OSError: [Errno 28] No space left on device
An internal error occurred while the IO worker was spilling objects: [Errno 28] No space left on device

"""


def test_of_a_traceback_the_end_is_said() -> None:
    assert brief(TRACEBACK).endswith("spilling objects: [Errno 28] No space left on device")


def test_the_same_of_many_tasks_is_said_once_in_a_while() -> None:
    news = News()
    assert news.is_new("worker 07abead4c386 of node 3 died", 0.0)
    assert not news.is_new("worker 35acd9712fe of node 5 died", SAID_SECONDS - 1)
    assert news.is_new("the disk is full", SAID_SECONDS - 1)
    assert news.is_new("worker 35acd9712fe of node 5 died", SAID_SECONDS + 1)


def test_of_what_ray_explains_at_length_the_beginning_is_said() -> None:
    assert brief("\n  A worker died.\nTo troubleshoot the problem, check the logs.\n") == "A worker died."
    assert brief("") == ""
